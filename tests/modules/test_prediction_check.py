"""A model that is trained for what it does not predict is refused, with both losses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from interrupted_runs import assemble, interrupted

from modules import models
from modules.errors import ConfigError
from modules.prediction_probe import measure
from preprocess.bucketing import bucketing
from preprocess.draw_shapes import draw_dataset
from preprocess.latent import latent

TINY_SD = Path(__file__).parents[2] / "assets" / "tiny-sd"
LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
LOSSES = r"on 8 of the images its loss is 0\.\d{3} as v_prediction and [01]\.\d{3} as epsilon"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Ten pictures as the tiny model was trained on, with latents."""
    raw, directory = (tmp_path_factory.mktemp("pictures") / name for name in ("raw", "data"))
    draw_dataset(output=str(raw), count=0, plain_count=10, style="polaroid", sizes=["64x64"])
    sizes = {"resolution": 64, "min_length": 48, "max_length": 80, "step": 16}
    bucketing(directory=str(raw), output=str(directory), **sizes)
    latent(directory=str(directory), model=str(TINY_SD))
    return directory


@pytest.fixture(scope="module")
def mislabeled(tmp_path_factory) -> Path:
    """The tiny model, which predicts velocity; its scheduler says noise."""
    directory = tmp_path_factory.mktemp("mislabeled") / "model"
    shutil.copytree(TINY_SD, directory)
    file = directory / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    assert config["prediction_type"] == "v_prediction"
    config |= {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    file.write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def unmarked(mislabeled, tmp_path_factory) -> Path:
    """The same in one file, as merges are that have lost their marker."""
    file = tmp_path_factory.mktemp("file") / "model.safetensors"
    models.load(str(mislabeled)).save_single_file(file, dtype=torch.float32, metadata={})
    return file


@pytest.fixture
def write(write_config, pictures):
    def write(model: Path, module: str = "modules.dataset.LatentDataset", **sections) -> Path:
        dataset = {"module": module, "args": {"path": str(pictures)}}
        return write_config(model={"path": str(model)}, dataset=dataset, networks=LORA, **sections)

    return write


@pytest.mark.parametrize(
    "module", ["modules.dataset.LatentDataset", "modules.dataset.ImageDataset"]
)
def test_a_model_whose_scheduler_is_wrong_is_refused_before_anything_is_written(
    write, mislabeled, module, tmp_path
):
    with pytest.raises(ConfigError) as caught:
        assemble(write(mislabeled, module))
    assert re.fullmatch(
        rf"model: {re.escape(str(mislabeled))}: predicts v_prediction, not epsilon: {LOSSES}, "
        r"which its scheduler says; set prediction_type to v_prediction in its scheduler/"
        r"scheduler_config.json, or write objective.module: modules.objectives.VPrediction. To "
        r"turn it into the other on purpose, write objective.module: modules.objectives.Epsilon",
        str(caught.value),
    )
    assert not (tmp_path / "output").exists()


def test_both_remedies_mend_it(write, mislabeled, caplog):
    trainer = assemble(write(mislabeled), "objective.module=modules.objectives.VPrediction")
    trainer.train()
    assert "predicts v_prediction, not" not in caplog.text
    assemble(write(TINY_SD)).train()


def test_on_purpose_is_a_warning_with_both_losses(write, mislabeled, caplog):
    assemble(write(mislabeled), "objective.module=modules.objectives.Epsilon").train()
    assert re.search(rf"{LOSSES}; trained is epsilon, as objective.module says", caplog.text)
    caplog.clear()
    # The files are right here, and the config isn't.
    config = json.loads((TINY_SD / "scheduler" / "scheduler_config.json").read_text())
    zero = ["objective.args.zero_terminal_snr=false"] if config["rescale_betas_zero_snr"] else []
    assemble(write(TINY_SD), "objective.module=modules.objectives.Epsilon", *zero)
    assert re.search(LOSSES, caplog.text)


def test_a_single_file_without_marker_is_refused_and_told_which_key(write, unmarked):
    with pytest.raises(
        ConfigError, match=rf"{LOSSES}, which this kind of .* without a marker"
    ) as e:
        assemble(write(unmarked))
    assert "; write model.prediction_type: v_prediction. To turn" in str(e.value)
    assemble(write(unmarked), "model.prediction_type=v_prediction").train()


def test_what_a_person_says_of_a_file_is_measured_too(write, unmarked):
    with pytest.raises(ConfigError, match=rf"{LOSSES}, which model.prediction_type says; write"):
        assemble(write(unmarked), "model.prediction_type=epsilon")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("make", [tiny.make_sd, tiny.make_sdxl])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_models_are_not_refused(make, prediction_type, seed, write_config, tmp_path, caplog):
    directory = tmp_path / "model"
    made = make(prediction_type=prediction_type, seed=seed)
    made.save_pretrained(directory, dtype=torch.float32)
    assemble(write_config(model={"path": str(directory)}, networks=LORA))
    assert "predicts" not in caplog.text


def test_a_run_that_goes_on_is_not_measured(write, monkeypatch):
    path = write(TINY_SD)
    interrupted(path, 1)
    monkeypatch.setattr("modules.prediction_check.measure", lambda *_, **__: 1 / 0)
    assemble(path, "train.resume=auto").train()


def test_measuring_changes_nothing_of_a_run(write, monkeypatch):
    weights = []
    for name in ("measured", "not"):
        trainer = assemble(write(TINY_SD), f"save.name={name}")
        trainer.train()
        weights.append({k: v.clone() for k, v in trainer.networks["lora"].state_dict().items()})
        monkeypatch.setattr("modules.assembly.check_prediction", lambda *_, **__: None)
    assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())


@pytest.mark.parametrize("is_right", [True, False])
def test_two_images_are_enough_where_they_make_it_clear(
    is_right, write, mislabeled, monkeypatch, caplog
):
    measured = []

    def count(model, batch, **options):
        measured.append(len(batch.captions))
        return measure(model, batch, **options)

    monkeypatch.setattr("modules.prediction_check.measure", count)
    objective = "VPrediction" if is_right else "Epsilon"
    assemble(write(mislabeled), f"objective.module=modules.objectives.{objective}")
    assert sum(measured) == (2 if is_right else 8)
