"""Two processes of which one comes too late; its own main.

`torchrun --nproc_per_node 2 meeting_processes.py <late rank>`: what is raised is printed.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from modules import meeting
from modules.engine import create_accelerator
from modules.errors import RunError


def main(late: str) -> None:
    accelerator = create_accelerator("no")
    meeting.meet(accelerator, "a point where all come")
    meeting.PATIENCE = timedelta(seconds=2)
    if accelerator.process_index == int(late):
        time.sleep(8)
        return
    begun = time.monotonic()
    try:
        meeting.meet(accelerator, "prepare.0 (my.part)")
    except RunError as error:
        print(f"told after {time.monotonic() - begun:.0f} s: {error}", flush=True)


if __name__ == "__main__":
    from pains.guards import take_out_the_chosen

    take_out_the_chosen()
    main(*sys.argv[1:])
