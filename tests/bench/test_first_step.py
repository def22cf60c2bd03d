"""The benchmark of start-up, on a model that trains in no time."""

import pytest
from small_architectures import SMALL

from bench import first_step
from bench.processes import Taken


def test_cells_compare_rounds_with_their_own():
    found = {
        "imports": [Taken(cpu=2.0, wall=2.5, mib=300), Taken(cpu=3.0, wall=3.5, mib=300)],
        "ours": [Taken(cpu=3.0, wall=3.25, mib=400), Taken(cpu=5.0, wall=5.25, mib=420)],
        "peft": [Taken(cpu=4.0, wall=4.5, mib=800), Taken(cpu=5.0, wall=5.5, mib=840)],
    }
    assert first_step.describe(found) == [
        *("2.50", "4.00", "4.50", "**0.88** (0.75 to 1.00)"),
        *("1.50", "2.00", "**0.75**"),
        *("4.25", "5.00", "410", "820", "**0.50** (0.50 to 0.50)"),
    ]


def test_nothing_above_the_imports_is_said_in_words():
    taken = {"imports": 2.0, "ours": 1.5, "peft": 2.5}
    found = {name: [Taken(cpu=cpu, wall=cpu, mib=1.0)] for name, cpu in taken.items()}
    assert first_step.describe(found)[4:7] == ["-0.50", "0.50", "**below 0**"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_row(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(first_step.ARCHITECTURES, "tiny", SMALL)
    sides = first_step.commands(tmp_path, first_step.ARCHITECTURES["tiny"])
    found = first_step.alternate(sides, rounds=1)
    assert [len(taken) for taken in found.values()] == [1, 1, 1]
    assert (tmp_path / "output" / "run-2" / "run.safetensors").is_file()  # one warmed caches
    (imports,), (ours,), (peft,) = (found[side] for side in ("imports", "ours", "peft"))
    assert min(imports.cpu, ours.cpu, peft.cpu) > 0.5
    assert 100 < imports.mib < min(ours.mib, peft.mib)
    assert len(first_step.describe(found)) == len(first_step.HEADER) - 1
    capsys.readouterr()
