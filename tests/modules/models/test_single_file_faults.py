"""What a single file says of itself, contradictions, and files that are no model."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import assert_equal, rewrite

from modules import models
from modules.models.full_file import save_single_file
from modules.models.single_file import SingleFile

pytestmark = pytest.mark.usefixtures("no_network")


# -- what it predicts ---------------------------------------------------------------------------


def test_markers_say_what_is_predicted(sd1_file, tmp_path):
    none = torch.tensor([])
    marked = rewrite(sd1_file, tmp_path / "v.safetensors", add={"v_pred": none, "ztsnr": none})
    config = models.load(str(marked)).scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr
    assert config.timestep_spacing == "trailing"
    assert models.load(str(sd1_file)).scheduler.config.prediction_type == "epsilon"


def test_markers_are_written_back(sd1_file, tmp_path):
    none = torch.tensor([])
    marked = rewrite(sd1_file, tmp_path / "v.safetensors", add={"v_pred": none, "ztsnr": none})
    save_single_file(models.load(str(marked)), tmp_path / "again.safetensors", dtype=torch.float16)
    with safe_open(tmp_path / "again.safetensors", "pt") as opened:
        assert {"v_pred", "ztsnr"} <= set(opened.keys())
        assert opened.get_tensor("v_pred").numel() == 0
        assert opened.metadata()["modelspec.prediction_type"] == "v"
    models.load(str(marked)).save_pretrained(tmp_path / "folder", dtype=torch.float16)
    text = (tmp_path / "folder/scheduler/scheduler_config.json").read_text()
    assert json.loads(text)["prediction_type"] == "v_prediction"


def test_the_person_says_what_a_file_does_not(sd1_file):
    model = models.load(str(sd1_file), prediction_type="v_prediction")
    assert model.scheduler.config.prediction_type == "v_prediction"
    assert model.prediction_source == "model.prediction_type"


def test_an_sd2_file_without_a_marker_is_not_settled(tmp_path):
    model = models.load(str(tiny.save_sd(tmp_path / "sd2", sd2=True)))
    save_single_file(model, tmp_path / "model.safetensors", dtype=torch.float32)
    assert models.load(str(tmp_path / "model.safetensors")).prediction_source is None
    told = models.load(str(tmp_path / "model.safetensors"), prediction_type="epsilon")
    assert told.prediction_source == "model.prediction_type"


def test_contradictions_name_both_sides(sd1_file, tmp_path):
    marked = rewrite(sd1_file, tmp_path / "v.safetensors", add={"v_pred": torch.tensor([])})
    with pytest.raises(ValueError, match=r"prediction_type says epsilon, but the file's marker v_"):
        models.load(str(marked), prediction_type="epsilon")
    folder = tiny.save_sd(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"says v_prediction, but the scheduler .* says epsilon"):
        models.load(str(folder), prediction_type="v_prediction")
    assert models.load(str(folder), prediction_type="epsilon").prediction_source == "its scheduler"


# -- files that can't be used -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.safetensors", "no such file"),
        ("missing.ckpt", "no such file"),
        ("model.gguf", "ends with one of .safetensors, .ckpt, .pt"),
        ("broken.safetensors", "can't be read"),
        ("broken.ckpt", "can't be read"),
    ],
)
def test_paths_that_lead_to_no_model(tmp_path, name, message):
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match=message) as caught:
        models.load(str(tmp_path / name))
    assert name in str(caught.value)


def test_missing_pieces_and_tensors_are_named(sd1_file, tmp_path):
    file = rewrite(sd1_file, tmp_path / "a.safetensors", remove="first_stage_model.")
    with pytest.raises(ValueError, match=r"the file has no vae; name one in model\.vae"):
        models.load(str(file), weights=False)
    file = rewrite(sd1_file, tmp_path / "b.safetensors", remove="model.diffusion_model.out.2.bias")
    with pytest.raises(ValueError, match=r"incomplete, it has no model\.diffusion_model\.out\.2\."):
        models.load(str(file), weights=False)


def test_a_model_of_another_size_is_refused(sd1_file, tmp_path):
    save_file(load_file(sd1_file), tmp_path / "bare.safetensors")  # without our metadata
    with pytest.raises(ValueError, match=r"it has no model\.diffusion_model\..* and \d+ others"):
        models.load(str(tmp_path / "bare.safetensors"), weights=False)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    file = rewrite(sd1_file, tmp_path / "wide.safetensors", add={name: torch.zeros(24, 4, 3, 3)})
    with pytest.raises(
        ValueError, match=r"input_blocks\.0\.0\.weight has shape \(24, 4, 3, 3\), not"
    ):
        models.load(str(file), weights=False)


def test_a_ckpt_is_read_with_the_published_configs(sd1_file, tmp_path, monkeypatch):
    monkeypatch.setattr("modules.models.layouts.CONFIGS", tmp_path)
    with safe_open(sd1_file, "pt") as opened:
        configs = json.loads(opened.metadata()["sd_trainer.configs"])
    (tmp_path / "sd1").mkdir()
    for name, config in configs.items():
        (tmp_path / "sd1" / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    (tmp_path / "sd1/scheduler.json").write_text(json.dumps(schedule), encoding="utf-8")
    content = {"state_dict": load_file(sd1_file), "global_step": 470000, "epoch": 3}
    torch.save(content, tmp_path / "model.ckpt")
    loaded, expected = models.load(str(tmp_path / "model.ckpt")), models.load(str(sd1_file))
    for name, piece in expected.pieces().items():
        if not name.startswith("tokenizer"):
            assert_equal(loaded.pieces()[name].state_dict(), piece.state_dict())


def test_metadata_that_is_no_config_is_refused(sd1_file, tmp_path):
    metadata = {"sd_trainer.configs": "[1]"}
    save_file(load_file(sd1_file), tmp_path / "odd.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"its metadata sd_trainer\.configs can't be read"):
        models.load(str(tmp_path / "odd.safetensors"))


def test_inpainting_is_another_class(sd1_file, tmp_path):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    file = rewrite(sd1_file, tmp_path / "in.safetensors", add={name: torch.zeros(16, 9, 3, 3)})
    checkpoint = SingleFile(file)
    assert checkpoint.index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert checkpoint.config("unet")["in_channels"] == 9
