"""The benchmark of training, on a model that trains in no time."""

import pytest
from small_architectures import SMALL, SMALL_SDXL

from bench import training
from bench.training_models import ARCHITECTURES, make_model


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(SMALL, marks=pytest.mark.exhaustive, id="sd1"),
        pytest.param(SMALL_SDXL, id="sdxl"),
    ],
)
def test_rows(architecture, capsys, monkeypatch):
    monkeypatch.setitem(training.ARCHITECTURES, "reduced", architecture)
    arguments = "--precisions no --batch-sizes 2 --rounds 2 --steps 1 --images 4 --peak 1"
    assert training.main(arguments.split()) == 0
    lines = capsys.readouterr().out.splitlines()[-5:]
    header, lora, full, fused = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])
    )
    assert header == list(training.HEADER)
    assert [row[0] for row in (lora, full, fused)] == [
        "reduced, LoRA, fp32",
        "reduced, full, fp32",
        "reduced, full, fused backward, fp32",
    ]
    for row in (lora, full, fused):
        ours, theirs = float(row[5]), float(row[6])
        told = float(row[7].strip("*"))
        assert told == pytest.approx(ours / theirs, abs=0.011)  # both are rounded
        assert 100 < ours < 4000
        assert "MFU" in row[9]


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_real_architectures_have_their_size(name):
    import torch

    with torch.device("meta"):
        model = make_model(ARCHITECTURES[name])
    count = sum(p.numel() for p in model.denoiser.parameters())
    assert count == {"sd1": 859_520_964, "sdxl": 2_567_463_684}[name]
