"""DeepFloyd IF on disk and in use, against diffusers' own pipeline; every network on it."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_if
import torch
from diffusers import IFPipeline
from families import NETWORKS
from PIL import Image
from probes import perturb
from safetensors.torch import load_file
from transformers import T5EncoderModel, T5Tokenizer

from modules import models
from modules.batch import Batch, DenoiserInputs, collate
from modules.config import load
from modules.drawing import draw_images, make_sampling_scheduler, starting_noise
from modules.errors import ConfigError
from modules.objectives import Epsilon
from modules.trainer import Trainer
from networks.hypernetwork import Hypernetwork
from networks.lora import LoRA
from networks.textual_inversion import TextualInversion
from preprocess import create_mask, latent
from tools.convert import main as convert_files

ROOT = Path(__file__).parents[3]
CAPTIONS = ["a red CAT ", "a blue dog on the mat, {} and <x>"]
LORA = {"lora": NETWORKS["lora"]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A random stage I on disk; tests don't write to it."""
    return tiny.save_sd(tmp_path_factory.mktemp("model") / "if", make=tiny_if.make_if)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Pictures with masks of their pixels, guides and features, and without latents."""
    place = tmp_path_factory.mktemp("dataset") / "data"
    captions = ("a red <thing>", "a blue dog")
    options = {"side_inputs": True, "factor": 1, "captions": captions}
    tiny.save_dataset(place, {(16, 16): 4, (16, 24): 2}, **options)
    shutil.rmtree(place / "latents")
    return place


@pytest.fixture
def assemble(write_config, directory, dataset):
    """Build the trainer of a config over the tiny IF and its pictures."""

    def build(name: str = "run", *, args: dict | None = None, **sections) -> Trainer:
        given = {
            "model": {"path": str(directory)},
            "dataset": {
                "module": "modules.dataset.ImageDataset",
                "args": {"path": str(dataset), "extras": {"pfg": "npz"}, **(args or {})},
            },
        }
        trainer = Trainer.from_config(load(write_config(name, **{**given, **sections})))
        assert trainer is not None
        return trainer

    return build


def test_a_saved_model_is_the_same_in_diffusers(directory):
    model = models.load(str(directory))
    pipeline = IFPipeline.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    assert model.default_objective() is Epsilon
    sample, timestep = torch.randn(2, 3, 16, 16), torch.tensor([10, 700])
    with torch.no_grad():
        states = model.encode_prompts(Batch(captions=CAPTIONS))["encoder_hidden_states"]
        expected, _ = pipeline.encode_prompt(CAPTIONS, device="cpu")
        assert states.shape == (2, 77, 24)
        assert model.text_encoders[0].token_count("cat " * 90) == (90, 76)  # and an end
        assert torch.equal(states, expected)
        prediction = model.denoise(
            DenoiserInputs(sample=sample, timestep=timestep, encoder_hidden_states=states)
        )
        noise, _ = pipeline.unet(sample, timestep, expected).sample.chunk(2, dim=1)
    assert torch.equal(prediction, noise)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(model.encode_images(Batch(captions=[""], pixel_values=pixels)), pixels)
    drawn = np.asarray(model.decode(pixels)[0], dtype=np.float32)
    ours = pixels[0].permute(1, 2, 0).numpy()
    assert np.abs(drawn / 127.5 - 1 - ours).max() < 1 / 255


def test_t5_is_written_once_and_read_by_transformers(directory, tmp_path):
    tensors = load_file(directory / "text_encoder" / "model.safetensors")
    assert "shared.weight" in tensors
    assert "encoder.embed_tokens.weight" not in tensors
    encoder, info = T5EncoderModel.from_pretrained(
        directory / "text_encoder", output_loading_info=True
    )
    assert not info["missing_keys"]
    own = models.load(str(directory)).text_encoders[0]
    again = T5Tokenizer.from_pretrained(directory / "tokenizer")
    assert again(CAPTIONS).input_ids == own.tokenizer(CAPTIONS).input_ids
    assert torch.equal(encoder.shared.weight, own.module.shared.weight)


def test_a_tokenizer_as_sentencepiece_model_alone(directory, tmp_path):
    pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2 as layout

    content = layout.ModelProto()
    whole = json.loads((directory / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    for number, (piece, score) in enumerate(whole["model"]["vocab"]):
        kind = {0: 3, 1: 3, 2: 2}.get(number, 1)  # control, control, unknown, normal
        content.pieces.add(piece=piece, score=score, type=kind)
    content.trainer_spec.model_type, content.trainer_spec.unk_id = 1, 2
    shutil.copytree(directory, tmp_path / "hub")
    folder = tmp_path / "hub" / "tokenizer"
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(content.SerializeToString())
    model = models.load(str(tmp_path / "hub"))
    fast = models.load(str(directory))
    ids = model.text_encoders[0].tokenize(CAPTIONS)
    assert torch.equal(ids, fast.text_encoders[0].tokenize(CAPTIONS))
    model.save_pretrained(tmp_path / "saved", dtype=torch.float32)
    kept = (tmp_path / "saved" / "tokenizer" / "spiece.model").read_bytes()
    assert kept == content.SerializeToString()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "controlnet"])
def test_every_network_trains_in_bf16_with_masks(assemble, name):
    train = {
        "max_train_steps": 2,
        "batch_size": 4,
        "minibatch_repeat": 2,
        "learning_rate": 1e-2,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
    }
    shared = {"args": {"mask": True}, "train": train}
    trainer = assemble("first", networks={name: NETWORKS[name]}, **shared)
    network = trainer.networks[name]
    perturb(network, scale=0.05)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    base = {key: value.clone() for key, value in trainer.model.denoiser.state_dict().items()}
    trainer.train()
    changed = [not torch.equal(before[key], value) for key, value in network.named_parameters()]
    assert sum(changed) > 0.9 * len(changed)
    after = trainer.model.denoiser.state_dict()
    assert all(torch.equal(base[key], after[key]) for key in base)
    written = [path for path in trainer.directory.iterdir() if path.name.startswith("first")]
    section = {**NETWORKS[name], "resume": str(min(written))}
    batch = next(iter(trainer.source.loader))
    losses = []
    for one in (trainer, assemble("second", networks={name: section}, **shared)):
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(one._loss(batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_drawing_goes_on_from_the_clipped_image(directory):
    model = models.load(str(directory))
    size, seeds = (16, 16), [3]
    sample = starting_noise(model, seeds, size)
    scheduler = make_sampling_scheduler(model.scheduler)
    scheduler.set_timesteps(3)
    assert scheduler.config.thresholding
    with torch.no_grad():
        states = model.encode_text(["a cat"])["encoder_hidden_states"]
        for number, timestep in enumerate(scheduler.timesteps):
            inputs = DenoiserInputs(
                sample=sample, timestep=timestep[None], encoder_hidden_states=states
            )
            alpha = scheduler.alphas_cumprod[timestep]
            clean = (sample - (1 - alpha).sqrt() * model.denoise(inputs)) / alpha.sqrt()
            clean = scheduler._threshold_sample(clean)
            noise = (sample - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            last = number == 2
            after = torch.tensor(1.0) if last else scheduler.alphas_cumprod[timestep - 333]
            sample = after.sqrt() * clean + (1 - after).sqrt() * noise
    drawn = draw_images(
        model,
        [],
        prompts=["a cat"],
        seeds=seeds,
        size=size,
        num_inference_steps=3,
        guidance_scale=1,
    )
    (expected,) = model.decode(sample)
    difference = np.asarray(drawn[0], dtype=int) - np.asarray(expected, dtype=int)
    assert np.abs(difference).max() <= 1


def test_checkpointing_computes_the_same(assemble):
    losses = []
    for checkpointing in (False, True):
        trainer = assemble(networks=LORA, train={"gradient_checkpointing": checkpointing})
        torch.manual_seed(0)  # T5's dropout would draw of it
        losses.append(trainer.loss(next(iter(trainer.source.loader))).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_hypernetwork_changes_what_is_made_of_text():
    model = tiny_if.make_if()
    network = Hypernetwork()
    network.attach(model)
    assert sorted(map(int, network.pairs)) == [32]
    kinds = {path.rpartition(".")[2] for path in network._targets}
    assert kinds == {"to_k", "to_v", "add_k_proj", "add_v_proj"}


def test_a_new_token_reaches_t5_and_leaves_the_others_alone():
    model = tiny_if.make_if()
    with torch.no_grad():
        plain = model.encode_text(["a red cat"])["encoder_hidden_states"]
        network = TextualInversion(tokens={"<Thing>": "cat"})
        network.attach(model)
        same = model.encode_text(["a red <thing>"])["encoder_hidden_states"]
        assert torch.equal(same, plain)  # it begins as its word
        network.embeddings[0].add_(1.0)
        assert not torch.equal(model.encode_text(["a red <thing>"])["encoder_hidden_states"], plain)
        assert torch.equal(model.encode_text(["a red cat"])["encoder_hidden_states"], plain)


def test_tokens_cannot_be_merged(assemble):
    with pytest.raises(ConfigError, match="this UNet has no attention in which to merge tokens"):
        assemble(networks=LORA, train={"tome_ratio": 0.5})


def test_buckets_that_the_unet_cannot_halve_are_refused(assemble, tmp_path):
    place = tiny.save_dataset(tmp_path / "data", {(16, 15): 1}, factor=1)
    message = r"dataset: .*sides of bucket 16x15 are no multiples of 2; run .* --step 2"
    with pytest.raises(ConfigError, match=message):
        assemble(args={"path": str(place), "extras": {}}, networks=LORA)


def test_latents_and_a_vae_are_refused(
    write_config, directory, dataset, model_directory, dataset_directory, capsys
):
    lora = {"networks": LORA, "model": {"path": str(directory)}}
    path = write_config("latents", **lora)  # of the dataset of SD
    with pytest.raises(ConfigError, match=r"has no pixel_values.*modules\.dataset\.ImageDataset"):
        Trainer.from_config(load(path))
    path = write_config("vae", **lora)
    with pytest.raises(ConfigError, match=r"works on pixels and has no VAE; take vae \(.*\) out"):
        Trainer.from_config(load(path, f"model.vae={model_directory}"))
    assert latent.main(["-d", str(dataset), "-m", str(directory)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"{directory}: works on pixels and has no VAE")
    assert error.endswith("train with `module: modules.dataset.ImageDataset`")
    assert not (dataset / "latents").exists()


@pytest.mark.parametrize(
    "name", ["IFSuperResolutionPipeline", "IFInpaintingSuperResolutionPipeline"]
)
def test_a_later_stage_is_refused(directory, tmp_path, name):
    shutil.copytree(directory, tmp_path / "second")
    for file, changes in (
        ("unet/config.json", {"in_channels": 6, "class_embed_type": "timestep"}),
        ("model_index.json", {"_class_name": name}),
    ):
        path = tmp_path / "second" / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match="is a stage of DeepFloyd IF that enlarges images"):
        models.load(str(tmp_path / "second"), weights=False)


def test_a_trained_unet_is_drawn_from_with_a_fixed_variance(assemble, directory):
    kept = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    assert kept["variance_type"] == "learned_range"
    sample = {"prompts": ["a cat"], "width": 16, "height": 24, "num_inference_steps": 2}
    trainer = assemble(
        model={"path": str(directory), "trainable": ["unet", "text_encoders"]},
        sample=sample,
        train={"max_train_steps": 2, "gradient_checkpointing": True},
    )
    assert len(trainer.trained_base) == sum(
        len(list(module.parameters())) for module in trainer.model.components().values()
    )
    trainer.train()
    saved = trainer.directory / "run"
    pipeline = IFPipeline.from_pretrained(saved, local_files_only=True)
    assert pipeline.scheduler.config.variance_type == "fixed_small"
    assert pipeline.scheduler.config.thresholding
    image = pipeline("a cat", num_inference_steps=2, output_type="np").images
    assert np.isfinite(image).all()
    with Image.open(trainer.directory / "before_after.png") as sheet:
        assert sheet.height > 24


@pytest.mark.slow
def test_four_pictures_are_learned(assemble, directory, tmp_path):
    place = tmp_path / "data"
    captions = ("a red cat", "a blue dog", "a photo of the mat", "the cat on the mat")
    tiny.save_dataset(place, {(8, 8): 4}, captions=captions, factor=1)
    for name, color in enumerate(("red", "blue", "gray", "olive")):
        Image.new("RGB", (8, 8), color).save(place / "images" / f"image{name:03d}.png")
    trainer = assemble(
        model={"path": str(directory), "trainable": ["unet"]},
        args={"path": str(place), "extras": {}},
        train={
            "max_train_steps": 150,
            "batch_size": 16,
            "minibatch_repeat": 4,
            "learning_rate": 5e-3,
        },
        optimizer={"args": {"weight_decay": 0.0}},
        lr_scheduler={"name": "cosine"},
    )
    dataset = trainer.source.loader.dataset.dataset
    batch = collate([dataset[index] for index in range(4)] * 8)
    losses = []
    for last in (False, True):
        torch.manual_seed(5)
        with torch.no_grad():
            losses.append(trainer.loss(batch).item())
        if not last:
            trainer.train()
    assert losses[1] < 0.1 * losses[0]


def test_a_trained_text_encoder_keeps_the_learned_variance(directory, tmp_path):
    model = models.load(str(directory))
    model.denoiser.requires_grad_(False)
    model.save_pretrained(tmp_path / "saved", dtype=torch.float32)
    scheduler = json.loads((tmp_path / "saved" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["variance_type"] == "learned_range"


def test_captions_and_masks_are_prepared_and_used(assemble, directory, dataset, tmp_path, caplog):
    place = tmp_path / "data"
    shutil.copytree(dataset, place)
    shutil.rmtree(place / "mask")
    assert latent.main(["-d", str(place), "-m", str(directory), "--text"]) == 0
    assert create_mask.main(["-d", str(place), "--num_workers", "1"]) == 0
    options = {"path": str(place), "mask": True, "text_cache": True}
    section = {"networks": {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}}
    with pytest.raises(ConfigError, match=r"run preprocess/create_mask\.py --scale_factor 1 again"):
        assemble(args=options, **section)
    assert create_mask.main(["-d", str(place), "--num_workers", "1", "--scale_factor", "1"]) == 0
    prior = {"module": "modules.dataset.ImageDataset", "args": {"path": str(dataset)}}
    caplog.set_level(logging.WARNING)
    trainer = assemble(args=options, prior=prior, **section)
    batch = next(iter(trainer.source.loader))
    assert batch.mask.shape[2:] == batch.pixel_values.shape[2:]
    encoded = trainer.model.encode_text(batch.captions)["encoder_hidden_states"]
    assert torch.equal(batch.text["encoder_hidden_states"], encoded)
    trainer.train()
    assert "is not used" not in caplog.text


def test_a_lora_in_diffusers_as_the_notes_say(directory, tmp_path):
    """diffusers' reader of kohya's names loses two of IF's layers; under PEFT's it has all."""
    notes = (ROOT / "docs" / "deepfloyd_if.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python tools/convert\.py (.*)$", notes, re.M)
    (use,) = re.findall(r"^```python\n(.*?)^```$", notes, re.M | re.S)
    model = models.load(str(directory))
    network = LoRA(rank=2, alpha=1)
    network.attach(model)
    perturb(network)
    file = tmp_path / "lora.safetensors"
    network.save(file, dtype=torch.float32, metadata={})
    converted = str(tmp_path / "if_peft.safetensors")
    _, _, _, *options, _ = shlex.split(command)
    assert convert_files([str(file), "-o", converted, *options, str(directory)]) == 0
    scope: dict = {"model_path": str(directory)}
    exec(use.replace("if_peft.safetensors", converted), scope)
    assert scope["pipeline"].scheduler.config.variance_type == "fixed_small"
    partial = IFPipeline.from_pretrained(directory, local_files_only=True)
    partial.load_lora_weights(file)
    inputs = torch.randn(1, 3, 16, 16), torch.tensor([5]), torch.randn(1, 77, 24)
    with torch.no_grad():
        expected = model.denoiser(*inputs).sample
        assert torch.allclose(scope["pipeline"].unet(*inputs).sample, expected, atol=1e-5)
        assert not torch.allclose(partial.unet(*inputs).sample, expected, atol=1e-3)
