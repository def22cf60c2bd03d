"""Stable Diffusion 1 and 2 on disk and in use, against diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from modules import models
from modules.batch import Batch, DenoiserInputs
from modules.objectives import Epsilon, VPrediction

TINY_SD = Path(__file__).parents[3] / "assets" / "tiny-sd"
CAPTIONS = ["a red cat", "a blue dog on the mat"]


@pytest.mark.parametrize(
    ("options", "objective"),
    [({}, Epsilon), ({"prediction_type": "v_prediction", "sd2": True}, VPrediction)],
)
def test_a_saved_model_is_the_same_in_diffusers(tmp_path, options, objective):
    directory = tiny.save_sd(tmp_path / "model", **options)
    model = models.load(str(directory))
    pipeline = StableDiffusionPipeline.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32
    )
    assert model.default_objective() is objective
    batch = Batch(captions=CAPTIONS)
    sample = torch.randn(2, 4, 8, 8)
    timestep = torch.tensor([10, 700])
    with torch.no_grad():
        states = model.encode_prompts(batch)["encoder_hidden_states"]
        expected, _ = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)
        assert torch.equal(states, expected)
        prediction = model.denoise(
            DenoiserInputs(sample=sample, timestep=timestep, encoder_hidden_states=states)
        )
        assert torch.equal(prediction, pipeline.unet(sample, timestep, expected).sample)
        latents = torch.randn(1, 4, 8, 8)
        picture = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pixels = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    drawn = torch.frombuffer(bytearray(model.decode(latents)[0].tobytes()), dtype=torch.uint8)
    assert torch.equal(drawn.view(32, 32, 3), pixels[0].permute(1, 2, 0))


def test_cached_latents_and_pixels_are_scaled_alike(model_directory):
    model = models.load(str(model_directory))
    latents = torch.randn(2, 4, 8, 8)
    scaled = model.encode_images(Batch(captions=["", ""], latents=latents))
    assert torch.equal(scaled, latents * model.vae.config.scaling_factor)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.manual_seed(1)
    encoded = model.encode_images(Batch(captions=["", ""], pixel_values=pixels))
    torch.manual_seed(1)
    with torch.no_grad():
        expected = model.vae.encode(pixels).latent_dist.sample() * model.vae.config.scaling_factor
    assert torch.equal(encoded, expected)


def test_files_keep_the_names_that_older_readers_know(model_directory):
    tensors = load_file(model_directory / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in tensors)
    assert (model_directory / "tokenizer" / "vocab.json").is_file()
    assert (model_directory / "tokenizer" / "merges.txt").is_file()


def test_without_weights_nothing_is_read_but_shapes_are_known(tmp_path, model_directory):
    directory = tmp_path / "configs"
    shutil.copytree(
        model_directory, directory, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")
    )
    model = models.load(str(directory), weights=False)
    assert {p.device.type for p in model.denoiser.parameters()} == {"meta"}
    whole = models.load(str(model_directory))
    assert [p.shape for p in model.denoiser.parameters()] == [
        p.shape for p in whole.denoiser.parameters()
    ]
    with pytest.raises(ValueError, match=r"has no weights"):
        models.load(str(directory))


def test_a_directory_with_fp16_files_only_is_loaded_in_float32(tmp_path, model_directory):
    directory = tmp_path / "fp16"
    shutil.copytree(model_directory, directory)
    names = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    names["text_encoder"] = "model"
    for folder, stem in names.items():
        path = directory / folder / f"{stem}.safetensors"
        path.rename(path.with_name(f"{stem}.fp16.safetensors"))
    model = models.load(str(directory))
    for module in (*model.components().values(), model.vae):
        assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_another_vae_is_taken(tmp_path, model_directory):
    other = tmp_path / "vae"
    shutil.copytree(model_directory / "vae", other)
    config = json.loads((other / "config.json").read_text())
    config["scaling_factor"] = 0.25
    (other / "config.json").write_text(json.dumps(config))
    model = models.load(str(model_directory), vae=str(other))
    assert model.vae.config.scaling_factor == 0.25


def test_what_is_no_model_is_named(tmp_path, model_directory):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"not a diffusers model, it has no model_index\.json"):
        models.load(str(tmp_path / "empty"))
    other = tmp_path / "other"
    shutil.copytree(model_directory, other)
    (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="models of FluxPipeline are not supported"):
        models.load(str(other))
    with pytest.raises(ValueError, match="there is no such directory here"):
        models.load("nobody/nothing")


def test_patterns_choose_parameters(model_directory):
    model = models.load(str(model_directory), weights=False)
    up = model.parameters_matching(["unet.up_blocks"])
    assert up
    assert all(path.startswith("unet.up_blocks.") for path in up)
    attention = model.parameters_matching(["unet.*.attn2"])
    assert attention
    assert all(".attn2." in path for path in attention)
    both = model.parameters_matching(["unet", "text_encoders"])
    assert len(both) == sum(len(list(m.parameters())) for m in model.components().values())
    with pytest.raises(ValueError, match=r"'unet.up_block' matches no module; there: .*up_blocks"):
        model.parameters_matching(["unet.up_blocks", "unet.up_block"])


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("tokenizer", "it has no tokenizer/tokenizer.json or vocab.json or spiece.model"),
        ("text_encoder", "it has no text_encoder/config.json"),
        ("scheduler", "it has no scheduler/scheduler_config.json"),
        ("unet", "it has no unet/config.json"),
        ("vae", "it has no vae/config.json"),
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_a_missing_piece_is_named(tmp_path, model_directory, gone, message, weights):
    directory = tmp_path / "part"
    shutil.copytree(model_directory, directory)
    shutil.rmtree(directory / gone)
    with pytest.raises(ValueError, match=f"the model is incomplete, {message}"):
        models.load(str(directory), weights=weights)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "names no _class_name"), ("{", "is not a JSON file")]
)
def test_an_index_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        models.load(str(tmp_path))


def test_the_tokenizer_of_another_model_is_refused(tmp_path, model_directory):
    directory = tmp_path / "mixed"
    shutil.copytree(model_directory, directory)
    shutil.rmtree(directory / "tokenizer")
    shutil.copytree(TINY_SD / "tokenizer", directory / "tokenizer")
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the text encoder \d+"):
        models.load(str(directory), weights=False)


def test_weights_that_cannot_be_read_are_named(tmp_path, model_directory):
    directory = tmp_path / "torn"
    shutil.copytree(model_directory, directory)
    path = directory / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="unet: the weights can't be read"):
        models.load(str(directory))


def test_what_was_not_trained_is_saved_as_it_was(tmp_path, model_directory):
    model = models.load(str(model_directory))
    model.text_encoders[0].module.requires_grad_(False).to(torch.bfloat16)
    model.vae.requires_grad_(False).to(torch.bfloat16)
    with torch.no_grad():
        model.denoiser.conv_in.weight += 1
    model.save_pretrained(tmp_path / "saved", dtype=torch.float32)
    for folder, file in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        a, b = (
            load_file(d / folder / f"{file}.safetensors")
            for d in (model_directory, tmp_path / "saved")
        )
        assert all(torch.equal(a[key], b[key]) for key in a)
    saved = load_file(tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(saved["conv_in.weight"], model.denoiser.conv_in.weight)


def test_a_saved_model_keeps_its_scheduler(tmp_path, model_directory):
    directory = tmp_path / "pndm"
    shutil.copytree(model_directory, directory)
    path = directory / "scheduler" / "scheduler_config.json"
    config = {
        **json.loads(path.read_text()),
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
    }
    path.write_text(json.dumps(config))
    models.load(str(directory)).save_pretrained(tmp_path / "saved", dtype=torch.float16)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    assert pipeline.scheduler.config.skip_prk_steps is True
