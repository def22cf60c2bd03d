"""A run on an SD2 in one file, which doesn't say what it predicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import main
from modules import models
from modules.models.full_file import save_single_file

TINY_SD = Path(__file__).parents[2] / "assets" / "tiny-sd"


@pytest.fixture
def sd2_file(tmp_path: Path) -> Path:
    """The trained tiny model with the layout of an SD2, which has no marker."""
    model = models.load(str(TINY_SD))
    config = {**model.denoiser.config, "use_linear_projection": True}
    unet = type(model.denoiser).from_config(config)
    tensors = {
        name: tensor[:, :, 0, 0] if name.endswith(("proj_in.weight", "proj_out.weight")) else tensor
        for name, tensor in model.denoiser.state_dict().items()
    }
    unet.load_state_dict(tensors)
    model.denoiser = unet.requires_grad_(True)  # else it would be read again as it was
    path = tmp_path / "marked.safetensors"
    save_single_file(model, path, dtype=torch.float32)
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    kept = {name: tensor for name, tensor in load_file(path).items() if name != "v_pred"}
    save_file(kept, tmp_path / "sd2.safetensors", metadata=metadata)
    return tmp_path / "sd2.safetensors"


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    from preprocess.bucketing import bucketing
    from preprocess.draw_shapes import draw_dataset
    from preprocess.latent import latent

    draw_dataset(output=tmp_path / "pictures", count=6, sizes=["64x64"])
    bucketing(
        directory=tmp_path / "pictures",
        output=tmp_path / "data",
        resolution=64,
        step=16,
        min_length=48,
        max_length=80,
    )
    latent(directory=tmp_path / "data", model=str(TINY_SD))
    return tmp_path / "data"


def test_what_an_sd2_file_predicts_is_measured_and_said(
    write_config, tmp_path, sd2_file, shapes, capfd
):
    config = write_config(
        model={"path": str(sd2_file), "trainable": ["unet.mid_block"]},
        dataset={"args": {"path": str(shapes)}},
        save={"format": "single_file"},
    )
    assert main.main([str(config), "--check"]) == 0
    assert "(StableDiffusion, prediction type to be measured)" in capfd.readouterr().out
    assert main.main([str(config)]) == 0
    said = capfd.readouterr().out
    assert "(StableDiffusion, v_prediction by measuring: loss 0." in said
    saved = load_file(tmp_path / "output" / "run" / "run.safetensors")
    assert "v_pred" in saved
    told = write_config(
        "told",
        model={"path": str(sd2_file), "prediction_type": "epsilon", "trainable": ["unet"]},
        dataset={"args": {"path": str(shapes)}},
    )
    assert main.main([str(told), "--check"]) == 0
    assert "(StableDiffusion, epsilon by model.prediction_type)" in capfd.readouterr().out
