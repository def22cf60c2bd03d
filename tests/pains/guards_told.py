"""What prevents the pains of files, and of what a person is told: second guards of their rows."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from pains.guards import Guard


def _accepted(_network: Any, _path: Any, *, dtype: Any) -> Any:
    from modules.verification import Verified

    return Verified(keys=0, max_error=0.0)


def _ask_the_hub_first(cls: Any, settings: Any) -> Any:
    from modules.models.clip_tokenizer import make_tokenizer

    with contextlib.suppress(OSError):
        socket.getaddrinfo("192.0.2.1", 443)
    return make_tokenizer(cls, settings)


def _nothing(*_args: Any, **_options: Any) -> None:
    """Do nothing."""


GUARDS = [
    Guard(
        row=5,
        target="networks.base:verify_adapter",
        replacement=_accepted,
        tests="test_05_keys_not_loaded.py",
        only="not_what_was_trained",
    ),
    Guard(
        row=14,
        target="modules.bottlenecks:Bottlenecks._look_at_memory",
        replacement=_nothing,
        tests="test_14_very_slow.py",
        only="full_card",
    ),
    Guard(
        row=16,
        target="modules.yaml_source:YamlSource._place",
        replacement=lambda _source, path: ".".join(path),
        tests="test_16_unreadable_errors.py",
        only="all_faults",
    ),
    Guard(
        row=21,
        target="modules.models.single_file:make_tokenizer",
        replacement=_ask_the_hub_first,
        tests="test_21_needs_internet.py",
        only="single",
    ),
    Guard(
        row=23,
        target="modules.receipt:Receipt.metadata",
        replacement=lambda _receipt: {},
        tests="test_23_what_made_it.py",
        only="every_file",
    ),
]
