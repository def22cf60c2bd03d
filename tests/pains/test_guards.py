"""Every test of a pain fails where what prevents the pain is taken out."""

from __future__ import annotations

import pytest
from pains.guards import run_without, tables

GUARDS = [
    pytest.param(table, number, id=str(guard))
    for table, guards in tables().items()
    for number, guard in enumerate(guards)
]


@pytest.mark.slow
@pytest.mark.parametrize(("table", "number"), GUARDS)
def test_without_its_guard_a_row_fails(table, number):
    finished = run_without(table, number)
    said = finished.stdout[-4000:] + finished.stderr[-2000:]
    assert finished.returncode == 1, said  # 2 to 5 are errors of pytest, or no test
    assert " failed" in finished.stdout.splitlines()[-1], said
