"""Base models in one file: both ways, old files' quirks, what they predict, and no network."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules import models
from modules.batch import Batch
from modules.models.fingerprint import hash_tokenizer
from modules.models.full_file import save_single_file
from modules.models.single_file import SingleFile

KINDS = {
    "sd1": {},
    "sd2": {"sd2": True, "prediction_type": "v_prediction"},
    "sdxl": {"make": tiny.make_sdxl},
}
TEXT = "cond_stage_model.transformer.text_model."


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading and saving files opens no connection."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.save_sd(tmp_path / request.param, **KINDS[request.param])


@pytest.fixture(scope="module")
def sd1_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sd1")
    model = models.load(str(tiny.save_sd(directory / "model")))
    save_single_file(model, directory / "model.safetensors", dtype=torch.float32)
    return directory / "model.safetensors"


def content(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a diffusers directory."""
    return {
        f"{file.parent.name}.{name}": tensor
        for file in directory.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def rewrite(file: Path, output: Path, *, remove: str = "", add: dict | None = None) -> Path:
    """The file without the tensors whose names begin so, and with others; the metadata stays."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    kept = {k: v for k, v in load_file(file).items() if not remove or not k.startswith(remove)}
    save_file({**kept, **(add or {})}, output, metadata=metadata)
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_directory_to_file_to_directory_is_bit_identical(folder, tmp_path, dtype):
    models.load(str(folder)).save_pretrained(tmp_path / "rounded", dtype=dtype)
    file = tmp_path / "model.safetensors"
    save_single_file(models.load(str(tmp_path / "rounded")), file, dtype=dtype)
    told = KINDS[folder.name].get("prediction_type")
    models.load(str(file), prediction_type=told).save_pretrained(tmp_path / "again", dtype=dtype)
    assert_equal(content(tmp_path / "again"), content(tmp_path / "rounded"))


def test_file_to_file_is_bit_identical(folder, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_single_file(models.load(str(folder)), first, dtype=torch.float16)
    changed = {name: tensor * 2 for name, tensor in load_file(first).items() if "logit" in name}
    rewrite(first, first, add=changed)  # what has no use is carried over, too
    save_single_file(models.load(str(first)), second, dtype=torch.float16)
    assert_equal(load_file(second), load_file(first))


def test_a_loaded_file_is_the_model(folder, tmp_path):
    original = models.load(str(folder))
    save_single_file(original, tmp_path / "model.safetensors", dtype=torch.float32)
    loaded = models.load(str(tmp_path / "model.safetensors"))
    assert type(loaded) is type(original)
    assert loaded.path == str(tmp_path / "model.safetensors")
    batch = Batch(captions=["a red cat"], latents=torch.randn(1, 4, 8, 8))
    with torch.no_grad():
        ours, theirs = loaded.encode_prompts(batch), original.encode_prompts(batch)
    assert torch.equal(ours["encoder_hidden_states"], theirs["encoder_hidden_states"])
    assert torch.equal(loaded.encode_images(batch), original.encode_images(batch))
    for own, other in zip(loaded.text_encoders, original.text_encoders, strict=True):
        assert hash_tokenizer(own.tokenizer) == hash_tokenizer(other.tokenizer)
    for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"):
        assert loaded.scheduler.config[name] == original.scheduler.config[name]
    assert torch.equal(loaded.scheduler.alphas_cumprod, original.scheduler.alphas_cumprod)
    for module in (*loaded.components().values(), loaded.vae):
        assert not module.training
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
        assert all(buffer.device.type == "cpu" for buffer in module.buffers())


def test_diffusers_reads_our_file(folder, tmp_path):
    file = tmp_path / "model.safetensors"
    save_single_file(models.load(str(folder)), file, dtype=torch.float32)
    cls = StableDiffusionXLPipeline if folder.name == "sdxl" else StableDiffusionPipeline
    pipeline = cls.from_single_file(
        str(file), config=str(folder), local_files_only=True, dtype=torch.float32
    )
    original = models.load(str(folder))
    for name, piece in original.pieces().items():
        if not name.startswith("tokenizer"):
            assert_equal(getattr(pipeline, name).state_dict(), piece.state_dict())


def test_without_weights_nothing_is_read(sd1_file):
    model = models.load(str(sd1_file), weights=False)
    for module in (*model.components().values(), model.vae):
        assert all(parameter.is_meta for parameter in module.parameters())
    model = models.load(str(sd1_file), weights={"text_encoder"})
    assert not next(model.text_encoders[0].module.parameters()).is_meta
    assert next(model.denoiser.parameters()).is_meta


def test_old_files_with_more_in_them_are_read(sd1_file, tmp_path):
    more = {
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "alphas_cumprod": torch.ones(1000),
        "betas": torch.ones(1000),
        f"{TEXT}embeddings.position_ids": torch.arange(16).half()[None],
    }
    file = rewrite(sd1_file, tmp_path / "old.safetensors", add=more)
    plain, loaded = models.load(str(sd1_file)), models.load(str(file))
    assert_equal(loaded.denoiser.state_dict(), plain.denoiser.state_dict())
    save_single_file(loaded, tmp_path / "new.safetensors", dtype=torch.float32)
    assert_equal(load_file(tmp_path / "new.safetensors"), load_file(sd1_file))


def test_files_of_2022_without_text_model_in_their_names_are_read(sd1_file, tmp_path):
    old = {k.replace(".text_model.", "."): v for k, v in load_file(sd1_file).items()}
    with safe_open(sd1_file, "pt") as opened:
        save_file(old, tmp_path / "old.safetensors", metadata=opened.metadata())
    plain, loaded = models.load(str(sd1_file)), models.load(str(tmp_path / "old.safetensors"))
    ours, theirs = (model.text_encoders[0].module for model in (loaded, plain))
    assert_equal(ours.state_dict(), theirs.state_dict())


def test_a_vae_whose_attention_is_linear_is_read(sd1_file, tmp_path):
    attention = {
        name: tensor[:, :, 0, 0].contiguous()
        for name, tensor in load_file(sd1_file).items()
        if ".attn_1." in name and tensor.dim() == 4
    }
    assert attention
    file = rewrite(sd1_file, tmp_path / "linear.safetensors", add=attention)
    assert_equal(
        models.load(str(file)).vae.state_dict(), models.load(str(sd1_file)).vae.state_dict()
    )


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
