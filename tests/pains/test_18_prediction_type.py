"""A v-prediction model that says it predicts noise is refused before its first step."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import main
from modules import models
from preprocess.bucketing import bucketing
from preprocess.draw_shapes import draw_dataset
from preprocess.latent import latent

TINY_SD = Path(__file__).parents[2] / "assets" / "tiny-sd"
LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
LOSSES = r"loss is 0\.\d{3} as v_prediction and [01]\.\d{3} as epsilon"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pictures of the kind that the tiny model knows."""
    raw, directory = (tmp_path_factory.mktemp("pictures") / name for name in ("raw", "data"))
    draw_dataset(output=str(raw), count=0, plain_count=9, style="polaroid", sizes=["64x64"])
    sizes = {"resolution": 64, "min_length": 48, "max_length": 80, "step": 16}
    bucketing(directory=str(raw), output=str(directory), **sizes)
    latent(directory=str(directory), model=str(TINY_SD))
    return directory


@pytest.fixture
def as_epsilon(tmp_path) -> Path:
    """The tiny model with a scheduler of noise."""
    directory = tmp_path / "model"
    shutil.copytree(TINY_SD, directory)
    file = directory / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | {"prediction_type": "epsilon"}
    file.write_text(json.dumps(config | {"rescale_betas_zero_snr": False}))
    return directory


@pytest.fixture
def write(write_config, pictures):
    def write(model: Path, **sections) -> str:
        dataset = {"args": {"path": str(pictures)}}
        return str(write_config(model={"path": str(model)}, dataset=dataset, **sections))

    return write


@pytest.mark.parametrize("trains", ["lora", "unet"])
def test_it_is_refused_with_both_losses_and_nothing_is_written(
    write, as_epsilon, trains, tmp_path, capfd
):
    if trains == "unet":
        assert main.main([write(as_epsilon), "model.trainable=[unet]"]) == 2
    else:
        assert main.main([write(as_epsilon, networks=LORA)]) == 2
    told = capfd.readouterr().err
    assert re.search(rf"predicts v_prediction, not epsilon: .* {LOSSES}", told)
    assert "set prediction_type to v_prediction in its scheduler/scheduler_config.json" in told
    assert not (tmp_path / "output").exists()


def test_a_merge_that_lost_its_marker_is_refused_and_mended_by_one_key(
    write, as_epsilon, tmp_path, capfd
):
    file = tmp_path / "merge.safetensors"
    models.load(str(as_epsilon)).save_single_file(file, dtype=torch.float16, metadata={})
    path = write(file, networks=LORA)
    assert main.main([path]) == 2
    told = capfd.readouterr().err
    assert re.search(LOSSES, told)
    assert "write model.prediction_type: v_prediction" in told
    assert main.main([path, "model.prediction_type=v_prediction"]) == 0


def test_a_marked_file_trains_as_it_says_and_keeps_its_marker(write, tmp_path):
    from safetensors import safe_open

    file = tmp_path / "marked.safetensors"
    models.load(str(TINY_SD)).save_single_file(file, dtype=torch.float32, metadata={})
    with safe_open(file, "pt") as opened:
        assert "v_pred" in opened.keys()  # noqa: SIM118 - it is no mapping
    path = write(file, save={"directory": str(tmp_path / "output"), "format": "single_file"})
    assert main.main([path, "model.trainable=[unet]", "save.dtype=fp32"]) == 0
    with safe_open(tmp_path / "output" / "run" / "run.safetensors", "pt") as opened:
        assert "v_pred" in opened.keys()  # noqa: SIM118


def test_it_can_be_turned_into_the_other_on_purpose(write, as_epsilon, capfd):
    path = write(as_epsilon, networks=LORA, objective={"module": "modules.objectives.Epsilon"})
    assert main.main([path]) == 0
    assert re.search(rf"{LOSSES}; trained is epsilon, as objective.module", capfd.readouterr().out)
