"""Training from single files and to them: outputs, untouched pieces, markers, the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import tiny_inpaint
import torch
from diffusers import StableDiffusionPipeline
from families import IMAGES
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import main
from modules import models
from modules.models.full_file import save_single_file

UNET = "model.diffusion_model."


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture
def single_file(tmp_path: Path, model_directory: Path) -> Path:
    path = tmp_path / "base.safetensors"
    save_single_file(models.load(str(model_directory)), path, dtype=torch.float16)
    return path


def run(config: Path, tmp_path: Path) -> Path:
    assert main.main([str(config)]) == 0
    return tmp_path / "output" / "run"


@pytest.mark.parametrize(
    ("make", "source", "mixed_precision"),
    [
        (tiny.make_sd, "base.safetensors", "no"),
        (tiny.make_sd, "base", "bf16"),
        (tiny.make_sdxl, "base.safetensors", "bf16"),
    ],
)
def test_a_whole_model_is_trained_to_one_file(
    write_config, tmp_path, make, source, mixed_precision
):
    base = tiny.save_sd(tmp_path / "base", make=make)
    single_file = tmp_path / "base.safetensors"
    save_single_file(models.load(str(base)), single_file, dtype=torch.float16)
    config = write_config(
        model={"path": str(tmp_path / source), "trainable": ["unet.up_blocks"]},
        train={"mixed_precision": mixed_precision},
        save={"format": "single_file", "dtype": "fp16", "every_steps": 1},
        ema={"decay": 0.9},
    )
    folder = run(config, tmp_path)
    files = {path.name for path in folder.glob("*.safetensors")}
    assert files == {
        "run.safetensors",
        "run-ema.safetensors",
        "run-step00000001.safetensors",
        "run-ema-step00000001.safetensors",
    }
    before, after = load_file(single_file), load_file(folder / "run.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.startswith(f"{UNET}output_blocks.") for name in changed)
    assert not equal(load_file(folder / "run-ema.safetensors"), after)
    with safe_open(folder / "run.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.title"] == "run"
    kind = "stable-diffusion-xl-v1-base" if make is tiny.make_sdxl else "stable-diffusion-v1"
    assert metadata["modelspec.architecture"] == kind
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["ss_steps"] == "2"
    assert type(models.load(str(folder / "run.safetensors"))) is type(models.load(str(base)))


def test_the_trained_file_is_read_by_diffusers(
    write_config, tmp_path, single_file, model_directory
):
    config = write_config(
        model={"path": str(single_file), "trainable": ["unet", "text_encoders"]},
        save={"format": "single_file", "dtype": "fp32"},
    )
    file = run(config, tmp_path) / "run.safetensors"
    pipeline = StableDiffusionPipeline.from_single_file(
        str(file), config=str(model_directory), local_files_only=True, dtype=torch.float32
    )
    ours = models.load(str(file))
    assert equal(pipeline.unet.state_dict(), ours.denoiser.state_dict())
    encoder = ours.text_encoders[0].module
    assert equal(pipeline.text_encoder.state_dict(), encoder.state_dict())


def test_a_single_file_is_trained_to_a_directory(write_config, tmp_path, single_file):
    config = write_config(
        model={"path": str(single_file), "trainable": ["text_encoders"]}, save={"dtype": "fp16"}
    )
    folder = run(config, tmp_path) / "run"
    saved = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    own = {k: v.half() for k, v in models.load(str(single_file)).vae.state_dict().items()}
    assert equal(saved, own)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert (
        pipeline.tokenizer("a red cat").input_ids[1:-1]
        == tiny.make_tokenizer()("a red cat", add_special_tokens=False).input_ids
    )


def test_a_lora_is_the_same_from_file_and_directory(
    write_config, tmp_path, model_directory, single_file
):
    lora = {"module": "networks.lora.LoRA", "args": {"rank": 2, "targets": ["unet"]}}
    exact = tmp_path / "exact.safetensors"
    save_single_file(models.load(str(model_directory)), exact, dtype=torch.float32)
    results = []
    for name, path in (("from_file", exact), ("from_folder", model_directory)):
        config = write_config(name, model={"path": str(path)}, networks={"lora": lora})
        assert main.main([str(config)]) == 0
        results.append(load_file(tmp_path / "output" / name / f"{name}.safetensors"))
    assert equal(*results)


def test_training_for_zero_terminal_snr_writes_both_markers(write_config, tmp_path, single_file):
    config = write_config(
        model={"path": str(single_file), "trainable": ["unet"]},
        objective={
            "module": "modules.objectives.VPrediction",
            "args": {"zero_terminal_snr": True},
        },
        save={"format": "single_file"},
    )
    saved = load_file(run(config, tmp_path) / "run.safetensors")
    assert {"v_pred", "ztsnr"} <= saved.keys()


def test_faults_of_a_file_stop_the_run_in_one_line(write_config, tmp_path, single_file, capfd):
    marked = {**load_file(single_file), "v_pred": torch.tensor([])}
    with safe_open(single_file, "pt") as opened:
        save_file(marked, tmp_path / "v.safetensors", metadata=opened.metadata())
    path = str(tmp_path / "v.safetensors")
    config = write_config(model={"path": path, "prediction_type": "epsilon", "trainable": ["unet"]})
    assert main.main([str(config), "--check"]) == 2
    error = capfd.readouterr().err
    assert "model: " in error
    assert "prediction_type says epsilon" in error
    assert "Traceback" not in error


def test_an_inpainting_model_is_trained_from_and_to_one_file(
    write_config, tmp_path, dataset_directory
):
    base = tiny.save_sd(tmp_path / "base", make=tiny_inpaint.make_sd)
    save_single_file(models.load(str(base)), tmp_path / "base.safetensors", dtype=torch.float16)
    config = write_config(
        model={"path": str(tmp_path / "base.safetensors"), "trainable": ["unet.conv_in"]},
        dataset={"module": IMAGES, "args": {"path": str(dataset_directory)}},
        save={"format": "single_file"},
    )
    saved, before = run(config, tmp_path) / "run.safetensors", tmp_path / "base.safetensors"
    after, before = load_file(saved), load_file(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"{UNET}input_blocks.0.0.weight", f"{UNET}input_blocks.0.0.bias"}
    assert models.load(str(saved), weights=False).pipeline == "StableDiffusionInpaintPipeline"


def test_a_vae_is_trained_from_a_whole_file_to_one_of_its_own(
    write_config, tmp_path, single_file, dataset_directory
):
    config = write_config(
        model={"path": str(single_file), "trainable": ["vae.decoder"]},
        dataset={"module": IMAGES, "args": {"path": str(dataset_directory)}},
        objective={"module": "modules.reconstruction.Reconstruction"},
        save={"format": "single_file", "dtype": "fp32"},
    )
    file = run(config, tmp_path) / "run.safetensors"
    model = models.load(str(single_file), vae=str(file))
    own, trained = models.load(str(single_file)).vae, model.vae
    assert equal(own.encoder.state_dict(), trained.encoder.state_dict())
    assert not equal(own.decoder.state_dict(), trained.decoder.state_dict())


def test_a_format_without_a_trained_base_is_idle(write_config, capfd):
    lora = {"module": "networks.lora.LoRA", "args": {"rank": 2}}
    config = write_config(networks={"lora": lora}, save={"format": "single_file"})
    assert main.main([str(config), "--check"]) == 0
    assert "save.format has no effect without model.trainable" in capfd.readouterr().out


def test_scripts_take_a_single_file(tmp_path, single_file, dataset_directory):
    from preprocess.class_images import class_images
    from preprocess.latent import latent
    from preprocess.text_cache import cache_text

    settings = {"width": 32, "height": 32, "num_inference_steps": 1}
    drawn = class_images(
        model=str(single_file), prompt="a cat", count=1, output=tmp_path / "cats", **settings
    )
    assert drawn.done == 1
    counts = latent(
        directory=dataset_directory, model=str(single_file), output=tmp_path / "latents"
    )
    assert counts.done == 8
    counts = cache_text(
        directory=dataset_directory, model=str(single_file), output=tmp_path / "text"
    )
    assert counts.done == 8
