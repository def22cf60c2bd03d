"""main.py in a process of its own, without the guard that is taken out; counts what it connects to.

`python launched_main.py config.yaml [key.path=value ...]`; with SOCKETS set each address of another
machine that is looked up or connected to is a line of that file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def note(event: str, arguments: tuple) -> None:
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments[0]
    host = address[0] if isinstance(address, tuple) else address
    if host not in ("localhost", "127.0.0.1", "::1", "", None) and not str(host).startswith("/"):
        with Path(os.environ["SOCKETS"]).open("a", encoding="utf-8") as file:
            file.write(f"{host}\n")


if __name__ == "__main__":
    if "SOCKETS" in os.environ:
        sys.addaudithook(note)
    from pains.guards import take_out_the_chosen

    take_out_the_chosen()
    import main

    sys.exit(main.main())
