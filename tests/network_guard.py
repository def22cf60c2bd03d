"""Refuses connections to other machines, and fails what swallowed the refusal, too."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


class NetworkUsed(OSError):
    """Raised in place of a connection to another machine."""


@contextmanager
def no_network() -> Iterator[None]:
    """Let this process reach itself alone: loopback addresses and sockets that are files.

    Raises:
        AssertionError: at the end, if its main thread tried to reach another machine.
    """
    tried: list[str] = []

    def guarded(function: Any, *, place: int) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            address = args[place] if len(args) > place else options.get("host")
            host = address[0] if isinstance(address, tuple) else address
            if isinstance(address, tuple | str | bytes) and not _is_here(host, args[0]):
                # A thread that an earlier test has left, as a tracker's, is none of this one's.
                if threading.current_thread() is threading.main_thread():
                    tried.append(str(host))
                raise NetworkUsed(f"a test wants to reach {host}")
            return function(*args, **options)

        return call

    with (
        mock.patch.object(socket.socket, "connect", guarded(socket.socket.connect, place=1)),
        mock.patch.object(socket.socket, "connect_ex", guarded(socket.socket.connect_ex, place=1)),
        mock.patch.object(socket, "getaddrinfo", guarded(socket.getaddrinfo, place=0)),
    ):
        yield
    assert not tried, f"network use with HF_HUB_OFFLINE=1: {', '.join(tried)}"


def _is_here(host: Any, first: Any) -> bool:
    if isinstance(first, socket.socket) and first.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    name = host.decode() if isinstance(host, bytes) else host
    if name in ("", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback or ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False  # a name to be looked up, which is network use, too
