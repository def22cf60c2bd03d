"""The benchmark of waiting for data, on a model that trains in no time."""

import pytest
from small_architectures import SMALL

from bench import data_wait


def test_rows(capsys, monkeypatch):
    monkeypatch.setitem(data_wait.ARCHITECTURES, "reduced", SMALL)
    arguments = ["--batch-sizes", "2", "--steps", "10"]
    assert data_wait.main(arguments) == 0
    header, _, single, packed = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()[-4:]
    )
    assert header == list(data_wait.HEADER)
    assert [row[:2] for row in (single, packed)] == [["a file each", "2"], ["packed", "2"]]
    for row in (single, packed):
        seconds, data = float(row[2]), float(row[3]) / 1000
        assert 0 < data < seconds
        share = float(row[4].strip("*%")) / 100
        assert share == pytest.approx(data / seconds, rel=0.1)  # of rounded figures
