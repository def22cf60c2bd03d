"""metrics.jsonl and the loss curve."""

from __future__ import annotations

import pytest
from PIL import Image

from modules.metrics import Metrics, smoothed


def test_records_are_read_back_and_plotted(tmp_path):
    metrics = Metrics(tmp_path)
    assert metrics.read() == []
    metrics.write({"step": 1, "loss": 0.5})
    assert metrics.plot() is None
    metrics.write({"step": 2, "loss": 0.25})
    metrics.write({"step": 2, "other": 1})
    assert metrics.read()[1] == {"step": 2, "loss": 0.25}
    path = metrics.plot()
    assert path == tmp_path / "loss.png"
    with Image.open(path) as picture:
        assert picture.width > 600


def test_smoothing_starts_at_the_first_value():
    assert smoothed((2.0, 2.0, 2.0)) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed((1.0, 0.0), weight=0.5) == pytest.approx([1.0, 1 / 3])
