"""What prevents the pains of data, memory and what a model predicts."""

from __future__ import annotations

import contextlib
from typing import Any

from pains.guards import Guard


def _nothing(*_args: Any, **_options: Any) -> None:
    """Do nothing."""


def _no_lines(*_args: Any, **_options: Any) -> list[str]:
    return []


GUARDS = [
    Guard(
        row=7,
        target="modules.caption_set:CaptionSet.find_missing",
        replacement=_no_lines,
        tests="test_07_captions.py",
        only="stops_the_run",
    ),
    Guard(
        row=8,
        target="modules.stale_files:find_stale",
        replacement=lambda *_args, **_options: {},
        tests="test_08_stale_caches.py",
        only="edited_image",
    ),
    Guard(
        row=9,
        target="preprocess.latent_index:LatentIndex.has",
        replacement=lambda _index, _task: False,
        tests="test_09_caching.py",
        only="reused",
    ),
    Guard(
        row=10,
        target="modules.coverage:Ledger.settle",
        replacement=_nothing,
        tests="test_10_bucket_tails.py",
        only="drops_tails",
    ),
    Guard(
        row=11,
        target="modules.config_faults:_check_length",
        replacement=_nothing,
        tests="test_11_steps_arithmetic.py",
        only="neither_wins",
    ),
    Guard(
        row=12,
        target="modules.memory_table:_lines",
        replacement=_no_lines,
        tests="test_12_out_of_memory.py",
        only="peak",
    ),
    Guard(
        row=13,
        target="modules.trainer:survived",
        replacement=lambda _what: contextlib.nullcontext(),
        tests="test_13_out_of_memory_when_sampling.py",
        only="failing_sample",
    ),
    Guard(
        row=18,
        target="modules.assembly:check_prediction",
        replacement=_nothing,
        tests="test_18_prediction_type.py",
        only="refused_with_both",
    ),
    Guard(
        row=24,
        target="modules.images:ImageOps.exif_transpose",
        replacement=lambda image: image,
        tests="test_24_pixels.py",
        only="upright",
    ),
]
