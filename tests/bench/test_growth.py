"""The benchmark of growth, on a model that trains in no time and on few images."""

import pytest
from small_architectures import SMALL

from bench import growth


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_grows_with_images(capsys):
    assert growth.main(["--batch-sizes", "--latent-sizes", "--images", "60", "600"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    header, _, few, many = map(cells, lines)
    assert header == list(growth.IMAGES_HEADER)
    assert (few[0], many[0]) == ("60", "600")
    for row, count in ((few, 60), (many, 600)):
        for seconds, each in ((row[1], row[2]), (row[3], row[4]), (row[5], row[6])):
            assert float(each) == pytest.approx(1e6 * float(seconds) / count, abs=1e2 / count)
        assert float(row[3]) > float(row[1]) > 0
    assert few[8] == ""
    more = 2**20 * (float(many[7]) - float(few[7])) / 540
    assert float(many[8]) == pytest.approx(more, abs=2**20 / 540)


def test_what_is_more_is_counted_from_the_row_above():
    assert growth._steps_up([100.0, 130.0, 250.0], [1, 4, 10]) == ["", "10.0", "20.0"]
    assert growth._steps_up([], []) == []


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_grows_with_batches_and_pixels(capsys, monkeypatch):
    monkeypatch.setitem(growth.ARCHITECTURES, "reduced", SMALL)
    sizes = ["--batch-sizes", "1", "4", "--latent-sizes", "8", "16", "--images"]
    assert growth.main([*sizes, "--rounds", "2", "--steps", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    batches, pixels = lines[:4], lines[4:]
    for part, labels, units, memory in (
        (batches, ("1", "4"), (1, 4), "MiB"),
        (pixels, ("32x32", "64x64"), (64, 256), "KiB"),
    ):
        header, _, *rows = map(cells, part)
        assert len(header) == len(growth.STEP_HEADER) + 1
        assert header[7].startswith(f"{memory} more a")
        assert tuple(row[0] for row in rows) == labels
        assert rows[0][3] == rows[0][4] == "**1.00** (1.00 to 1.00)"
        for row, count in zip(rows, units, strict=True):
            assert float(row[2]) == pytest.approx(1000 * float(row[1]) / count, rel=0.05)
        small, large = (float(row[6]) for row in rows)
        one = {"MiB": 1, "KiB": 2**10}[memory] / (units[1] - units[0])
        assert float(rows[1][7]) == pytest.approx((large - small) * one, abs=one + 0.1)
