"""What prevents the pains of settings, machines and measures."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pains.guards import Guard

from modules.run_metadata import RunMetadata


def _nothing(*_args, **_options):
    return None


def _no_lines(*_args, **_options):
    return []


_SLOW = "test_14_very_slow.py"
_APPLIED = "test_15_setting_not_applied.py"
_ERRORS = "test_16_unreadable_errors.py"
_OPTIMIZER = "test_17_optimizer_traps.py"
_VALIDATION = "test_19_overfitting.py"
_OFFLINE = "test_21_needs_internet.py"
_CARDS = "test_22_new_cards.py"
_MADE = "test_23_what_made_it.py"

GUARDS = [
    Guard(row=14, target="modules.step_clock:StepClock.lap", replacement=_nothing, tests=_SLOW),
    Guard(
        row=14,
        target="modules.bottlenecks:Bottlenecks.look",
        replacement=_nothing,
        tests=_SLOW,
        only="told",
    ),
    Guard(
        row=15,
        target="modules.yaml_source:YamlSource.raise_if_faulty",
        replacement=_nothing,
        tests=_APPLIED,
        only="refused_with_its_line",
    ),
    Guard(
        row=15,
        target="modules.component_checks:argument_faults",
        replacement=_no_lines,
        tests=_APPLIED,
        only="passed_over",
    ),
    Guard(
        row=15,
        target="modules.assembly:show_changed",
        replacement=_nothing,
        tests=_APPLIED,
        only="shown",
    ),
    Guard(
        row=15,
        target="modules.assembly:idle_settings",
        replacement=_no_lines,
        tests=_APPLIED,
        only="without_effect",
    ),
    Guard(row=16, target="modules.yaml_text:_check_path", replacement=_nothing, tests=_ERRORS),
    Guard(
        row=16,
        target="modules.yaml_source:_read_text",
        replacement=Path.read_text,
        tests=_ERRORS,
        only="is_no_config or byte_order",
    ),
    Guard(
        row=17,
        target="modules.component_checks:optimizer_faults",
        replacement=_no_lines,
        tests=_OPTIMIZER,
        only="held_against",
    ),
    Guard(
        row=17,
        target="modules.component_checks:own_rate_faults",
        replacement=_no_lines,
        tests=_OPTIMIZER,
        only="schedule",
    ),
    Guard(
        row=17,
        target="modules.parts:warn_of_factor",
        replacement=_nothing,
        tests=_OPTIMIZER,
        only="multiplies",
    ),
    Guard(
        row=17,
        target="modules.plan:Plan.lines",
        replacement=_no_lines,
        tests=_OPTIMIZER,
        only="is_shown",
    ),
    Guard(
        row=19,
        target="modules.validation_losses:drawn_apart",
        replacement=lambda *_args: contextlib.nullcontext(),
        tests=_VALIDATION,
        only="each_time",
    ),
    Guard(
        row=19,
        target="modules.validation:Validation._keep",
        replacement=_nothing,
        tests=_VALIDATION,
        only="enough",
    ),
    Guard(
        row=19,
        target="modules.held_out:_without",
        replacement=lambda bucket, _held_out: bucket,
        tests=_VALIDATION,
        only="trained_on",
    ),
    Guard(
        row=21,
        target="modules.offline:stay_offline",
        replacement=_nothing,
        tests=_OFFLINE,
        only="hub",
    ),
    Guard(
        row=22,
        target="modules.hardware:has_kernels",
        replacement=lambda *_args: True,
        tests=_CARDS,
        only="doctor",
    ),
    Guard(
        row=22,
        target="modules.hardware:cpu_build_message",
        replacement=lambda *_args: "",
        tests=_CARDS,
        only="beside_a_card",
    ),
    Guard(
        row=23,
        target="modules.assembly:describe_run",
        replacement=lambda *_args, **_options: RunMetadata(),
        tests=_MADE,
    ),
]
