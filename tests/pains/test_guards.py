"""Every test of a pain fails where what prevents the pain is taken out."""

from __future__ import annotations

import os

import pytest
from pains.guards import FOLDER, run_without_each, tables

TABLES = tables()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each guard is taken out in a fork")
@pytest.mark.parametrize("table", TABLES)
def test_without_its_guard_each_row_fails(table):
    outcomes = run_without_each(table)
    assert len(outcomes) == len(TABLES[table])
    harmless = [one for one in outcomes if one.status != 1]  # 2 to 5: errors of pytest, or no test
    listed = "\n".join(f"{one.guard}: status {one.status}\n{one.said}" for one in harmless)
    assert not harmless, listed


def test_every_row_has_tests_and_a_guard():
    files = {int(file.name.split("_")[1]) for file in FOLDER.glob("test_[0-9]*.py")}
    guarded = {guard.row for guards in TABLES.values() for guard in guards}
    assert files == guarded
