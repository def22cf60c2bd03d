"""Whole runs that train a VAE, and what they refuse."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from modules import models
from modules.config import load
from modules.errors import ConfigError
from modules.idle_settings import idle_settings
from modules.run_kinds import with_sampler
from modules.trainer import Trainer

DECODER = ["vae.decoder", "vae.post_quant_conv"]
OBJECTIVE = "modules.reconstruction.Reconstruction"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae_config(write_config, dataset_directory):
    """Write the config of a VAE run; sections given extend it."""

    def write(name="run", **sections):
        ours = {
            "model": {"trainable": DECODER},
            "dataset": {
                "module": "modules.dataset.ImageDataset",
                "args": {"path": str(dataset_directory), "prompt": ""},
            },
            "objective": {"module": OBJECTIVE},
        }
        for key, values in ours.items():
            sections[key] = {**values, **sections.get(key, {})}
        return write_config(name, **sections)

    return write


def train(path, *overrides):
    trainer = Trainer.from_config(load(path, *overrides))
    trainer.train()
    return trainer


def tensors(module):
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def gradients_of_one_step(path, *overrides):
    trainer = Trainer.from_config(load(path, *overrides))
    seen = {}

    def keep(*_args, **_kwargs):
        named = trainer.model.vae.named_parameters()
        seen.update({key: p.grad.clone() for key, p in named if p.grad is not None})

    trainer.optimizer.optimizer.register_step_pre_hook(keep)
    trainer.train_step(next(trainer.step_groups()))
    return seen


def test_the_decoder_alone_is_trained_and_the_latents_stay(vae_config, model_directory, capfd):
    from modules.console import set_up_logging

    set_up_logging()
    before = load_file(model_directory / "vae" / WEIGHTS)
    trainer = train(vae_config())
    after = load_file(trainer.directory / "run" / WEIGHTS)
    assert after.keys() == before.keys()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key.partition(".")[0] for key in moved} == {"decoder", "post_quant_conv"}
    of_decoder = [key for key in after if key.startswith(("decoder", "post_quant_conv"))]
    assert len(moved) > 0.9 * len(of_decoder)
    shown = capfd.readouterr().out
    assert "has no effect" not in shown
    assert "its VAE alone; UNet and text encoders are not loaded" in shown
    assert "the encoder is trained" not in shown


def test_the_whole_vae_is_trained_and_the_latents_change(vae_config, model_directory, capfd):
    from modules.console import set_up_logging

    set_up_logging()
    before = load_file(model_directory / "vae" / WEIGHTS)
    trainer = train(vae_config(model={"trainable": ["vae"]}))
    after = load_file(trainer.directory / "run" / WEIGHTS)
    moved = {key.partition(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert moved == {"encoder", "quant_conv", "decoder", "post_quant_conv"}
    assert (
        "warning: model.trainable: the encoder is trained, so that latents change: those cached "
        "with this VAE are no longer its own, and a UNet trained on them has to be trained again; "
        "[vae.decoder, vae.post_quant_conv] leaves the latents as they are"
    ) in capfd.readouterr().out


def test_diffusers_pipelines_and_our_model_vae_load_it(vae_config, write_config, model_directory):
    trainer = train(vae_config(ema={"decay": 0.5}))
    saved = trainer.directory / "run"
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        WEIGHTS,
        "sd_trainer.json",
    ]
    vae = AutoencoderKL.from_pretrained(saved)
    assert vae.config.scaling_factor == 0.5
    trained = tensors(trainer.model.vae)
    assert all(torch.equal(trained[key], value) for key, value in tensors(vae).items())
    pipeline = StableDiffusionPipeline.from_pretrained(model_directory, vae=vae)
    latents = torch.randn(1, 4, 8, 8)
    drawn = pipeline.vae.decode(latents).sample
    ours = models.load(str(model_directory), vae=str(saved))
    assert torch.equal(ours.vae.decode(latents).sample, drawn)
    averaged = load_file(trainer.directory / "run-ema" / WEIGHTS)
    assert not torch.equal(averaged["decoder.conv_out.bias"], trained["decoder.conv_out.bias"])
    again = train(vae_config("again", model={"path": str(saved), "trainable": DECODER}))
    assert again.model.path == str(saved)
    lora = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
    model = {"path": str(model_directory), "vae": str(saved)}
    train(write_config("lora", networks=lora, model=model))
    other = train(vae_config("other", model={**model, "trainable": DECODER}))
    assert other.model.path == str(saved)


def test_one_file_is_read_by_diffusers_and_by_our_model_vae(vae_config, model_directory):
    path = vae_config(save={"format": "single_file"}, sample={"num_images": 1})
    trainer = train(path)
    file = trainer.directory / "run.safetensors"
    stored = load_file(file)
    trained = tensors(trainer.model.vae)
    assert torch.equal(stored["decoder.conv_out.bias"], trained["decoder.conv_out.bias"])
    assert "decoder.up.2.block.0.conv1.weight" in stored  # the original layout, counted from below
    config = str(model_directory / "vae")
    vae = AutoencoderKL.from_single_file(str(file), config=config, local_files_only=True)
    assert all(torch.equal(trained[key], value) for key, value in tensors(vae).items())
    ours = models.load(str(model_directory), vae=str(file))
    assert all(torch.equal(trained[key], value) for key, value in tensors(ours.vae).items())
    assert ours.vae.config.scaling_factor == 0.5
    again = Trainer.from_config(load(path, f"model.vae={file}", "save.name=again"))
    found = tensors(again.model.vae)
    assert all(torch.equal(trained[key], value) for key, value in found.items())
    assert again.model.vae.config.scaling_factor == 0.5


@pytest.mark.parametrize(
    ("key", "reason"),
    [("kl", ": the encoder is not trained"), ("perceptual_weight", " without perceptual")],
)
def test_a_weight_without_effect_is_named(vae_config, capfd, key, reason):
    from modules.console import set_up_logging

    set_up_logging()
    Trainer.from_config(load(vae_config(objective={"args": {key: 0.5}})), check=True)
    line = f"warning: objective.args.{key} has no effect{reason}"
    assert line in capfd.readouterr().out.splitlines()


def test_four_pictures_are_learned_by_heart(vae_config, tmp_path):
    data = tmp_path / "four"
    tiny.save_dataset(data, {(16, 16): 4})
    for number, path in enumerate(sorted((data / "images").iterdir())):
        colour = [(250, 40, 30), (20, 90, 240), (30, 200, 60), (240, 230, 40)][number]
        picture = Image.new("RGB", (16, 16), colour)
        picture.paste(tuple(255 - c for c in colour), (4, 4, 12, 12))
        picture.save(path)
    trainer = train(
        vae_config(
            model={"trainable": ["vae"]},
            dataset={
                "module": "modules.dataset.ImageDataset",
                "args": {"path": str(data), "prompt": ""},
            },
            train={"max_train_steps": 250, "batch_size": 4, "learning_rate": 5e-3},
            lr_scheduler={"name": "cosine"},
            sample={"num_images": 4},
        )
    )
    records = trainer.metrics.read()
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0] / 10
    first, last = (record["psnr"] for record in records if "psnr" in record)
    assert last > first + 10


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_every_precision_trains_in_float32(vae_config, precision):
    model = {"trainable": ["vae"]}
    trainer = train(vae_config(model=model), f"train.mixed_precision={precision}")
    assert {p.dtype for p in trainer.model.vae.parameters()} == {torch.float32}
    assert trainer.step == 2
    assert all(torch.isfinite(p).all() for p in trainer.model.vae.parameters())


def test_checkpointing_and_accumulation_change_no_gradient(vae_config, tmp_path):
    data = tiny.save_dataset(tmp_path / "five", {(32, 32): 5})
    path = vae_config(
        model={"trainable": ["vae"]},
        objective={"args": {"sample_posterior": False}},
        dataset={
            "module": "modules.dataset.ImageDataset",
            "args": {"path": str(data), "prompt": ""},
        },
    )
    common = ("train.max_grad_norm=0", "train.batch_size=5")
    whole = gradients_of_one_step(path, *common)
    checkpointed = gradients_of_one_step(path, *common, "train.gradient_checkpointing=true")
    parts = gradients_of_one_step(
        path, common[0], "train.batch_size=2", "train.gradient_accumulation_steps=3"
    )
    assert len(whole) > 100
    assert whole.keys() == checkpointed.keys() == parts.keys()
    for key, gradient in whole.items():
        assert torch.allclose(checkpointed[key], gradient, atol=1e-6), key
        assert torch.allclose(parts[key], gradient, atol=1e-6), key
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-3


def test_checkpointing_computes_blocks_again(vae_config):
    trainer = Trainer.from_config(load(vae_config(), "train.gradient_checkpointing=true"))
    calls = []
    trainer.model.vae.decoder.mid_block.resnets[0].register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    trainer.train_step(next(trainer.step_groups()))
    assert len(calls) == 2


STATE = ("weights.safetensors", "optimizer.pt", "progress.json", "manifest.json")


def test_a_run_writes_its_folder(vae_config):
    trainer = train(vae_config(sample={"num_images": 3, "every_steps": 1}))
    written = {path.relative_to(trainer.directory).as_posix() for path in _files(trainer.directory)}
    assert written == {
        "config.yaml",
        "metrics.jsonl",
        "loss.png",
        "manifest.jsonl",
        "coverage.csv",
        "before_after.png",
        "finished.json",
        *(f"state-step00000002/{name}" for name in STATE),
        "run/config.json",
        "run/sd_trainer.json",
        f"run/{WEIGHTS}",
        *(f"samples/step0000000{step}.png" for step in range(3)),
        *(f"samples/step00000000/0{number}.png" for number in range(3)),
    }
    records = trainer.metrics.read()
    assert [record["step"] for record in records if "psnr" in record] == [0, 1, 2]
    assert [record["step"] for record in records if "loss" in record] == [1, 2]
    resolved = load(trainer.directory / "config.yaml")
    assert resolved.sample.module == "modules.reconstruction_sampler.ReconstructionSampler"
    repeated = train(trainer.directory / "config.yaml")
    files = (one.directory / "run" / WEIGHTS for one in (trainer, repeated))
    first, second = (load_file(file) for file in files)
    assert all(torch.equal(first[key], second[key]) for key in first)


def _files(directory):
    return [path for path in directory.rglob("*") if path.is_file()]


def test_the_trackers_get_the_psnr(vae_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = train(vae_config(sample={"num_images": 3}, loggers={"tensorboard": None}))
    events = EventAccumulator(str(trainer.directory / "tensorboard"))
    events.Reload()
    measured = [record["psnr"] for record in trainer.metrics.read() if "psnr" in record]
    assert [event.value for event in events.Scalars("psnr")] == pytest.approx(measured)
    assert [event.step for event in events.Images("reconstructions")] == [0, 2]


def test_masks_of_the_dataset_take_part(vae_config, tmp_path):
    data = tiny.save_dataset(tmp_path / "data", side_inputs=True)
    args = {"path": str(data), "prompt": ""}
    losses = []
    for mask in (False, True):
        dataset = {"module": "modules.dataset.ImageDataset", "args": {**args, "mask": mask}}
        trainer = train(vae_config(f"mask{mask}", dataset=dataset))
        losses.append(trainer.metrics.read()[0]["loss"])
    assert losses[1] < 0.7 * losses[0]  # the masks' mean is a half


def test_only_the_vaes_files_are_read(vae_config, model_directory, tmp_path):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(model_directory / "vae", model / "vae")
    trainer = train(vae_config(model={"path": str(model), "trainable": DECODER}))
    assert trainer.model.denoiser is None
    assert not trainer.model.text_encoders


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        (
            {"networks": {"lora": {"module": "networks.lora.LoRA"}}},
            "networks: lora can't be used while the VAE is trained",
        ),
        (
            {"model": {"trainable": ["unet.up_blocks"]}},
            f"model.trainable: 'unet.up_blocks' is no part of a VAE; with {OBJECTIVE} write "
            "[vae.decoder, vae.post_quant_conv] or [vae], and train the rest of the model in a "
            "run of its own",
        ),
        (
            {"model": {"trainable": ["vae.decoder", "text_encoders"]}},
            f"model.trainable: 'text_encoders' is no part of a VAE; with {OBJECTIVE} write "
            "[vae.decoder, vae.post_quant_conv] or [vae], and train the rest of the model in a "
            "run of its own",
        ),
        (
            {"prior": {"args": {"path": "."}}},
            "prior: there are no class images in a run that trains the VAE; take it out",
        ),
        (
            {"train": {"mixed_precision": "fp16"}},
            "train.mixed_precision: a VAE overflows in fp16; write bf16 or no",
        ),
        (
            {"train": {"tome_ratio": 0.5}},
            "train.tome_ratio: a VAE has no tokens to merge; take it out",
        ),
        (
            {"dataset": {"args": {"path": ".", "text_cache": True}}},
            "dataset.args.text_cache: a VAE is told no captions; take it out",
        ),
        (
            {"objective": {"args": {"perceptual": {"net": "vgg"}}}},
            "objective.args.perceptual: must be {module: a dotted path, args: {its arguments}}",
        ),
        (
            {"objective": {"args": {"perceptual": {"module": "lpips_.LPIPS"}}}},
            "objective.args.perceptual.module: there is no module 'lpips_'; is it spelled right, "
            "installed, or beside main.py?",
        ),
        (
            {"objective": {"args": {"perceptual": {"module": "torch.nn.ReLU", "args": {"a": 1}}}}},
            "objective.args.perceptual.args.a: torch.nn.ReLU takes no argument 'a'; it takes "
            "inplace",
        ),
        (
            {"sample": {"args": {"pictures": "no_such_folder"}}},
            "sample: pictures: no_such_folder is no folder with images in it",
        ),
    ],
)
def test_what_a_vae_run_refuses(vae_config, tmp_path, sections, fault):
    with pytest.raises(ConfigError) as raised:
        Trainer.from_config(load(vae_config(**sections)))
    assert fault in [line.strip() for line in str(raised.value).splitlines()[1:]]
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("trainable", [["vae.decoder"], ["unet", "vae.decoder"]])
def test_a_run_of_a_denoiser_refuses_the_vae(write_config, trainable):
    with pytest.raises(ConfigError) as raised:
        Trainer.from_config(load(write_config(model={"trainable": trainable})))
    assert str(raised.value).splitlines()[1:] == [
        "  model.trainable: 'vae.decoder' is trained on reconstructions; write `objective: "
        "{module: modules.reconstruction.Reconstruction}`, in a run of its own"
    ]


def test_what_fits_no_vae_is_one_clear_error(vae_config, dataset_directory, tmp_path):
    args = {"path": str(dataset_directory), "prompt": ""}
    latents = {"module": "modules.dataset.LatentDataset", "args": args}
    with pytest.raises(ConfigError) as raised:
        Trainer.from_config(load(vae_config(dataset=latents)))
    assert str(raised.value) == (
        "dataset: image000: has no pixel_values, on which a VAE is trained; write `module: "
        "modules.dataset.ImageDataset`"
    )
    with pytest.raises(ConfigError, match=r"^model\.trainable: the pattern 'vae\.decode' matches"):
        Trainer.from_config(load(vae_config(model={"trainable": ["vae.decode"]})))
    odd = tiny.save_dataset(tmp_path / "odd", {(32, 32): 1, (34, 32): 1})
    dataset = {"module": "modules.dataset.ImageDataset", "args": {"path": str(odd), "prompt": ""}}
    with pytest.raises(ConfigError) as raised:
        Trainer.from_config(load(vae_config(dataset=dataset)))
    assert str(raised.value) == (
        "dataset: image001: 34x32 pixels are no multiples of 4, which this VAE needs; run "
        "preprocess/bucketing.py with a step that is one"
    )
    with pytest.raises(ConfigError, match=r"^train: stop_text_encoders_after: no text encoder is"):
        Trainer.from_config(load(vae_config(train={"stop_text_encoders_after": 1})))


def test_settings_of_drawn_images_are_named(vae_config):
    sample = {"prompts": ["a cat"], "width": 64, "num_inference_steps": 3}
    path = vae_config(sample=sample)
    sampler = "modules.reconstruction_sampler.ReconstructionSampler"
    assert idle_settings(with_sampler(load(path))) == [
        f"sample.{key} has no effect: {sampler} takes no such argument"
        for key in ("prompts", "width", "num_inference_steps")
    ]


def test_settings_of_other_parts_of_the_model_are_named(vae_config, capfd):
    from modules.console import set_up_logging

    set_up_logging()
    path = vae_config(model={"trainable": DECODER, "clip_skip": 2, "prediction_type": "epsilon"})
    Trainer.from_config(load(path), check=True)
    lines = [line for line in capfd.readouterr().out.splitlines() if "warning" in line]
    assert lines == [
        "warning: model.prediction_type has no effect where the VAE is trained",
        "warning: model.clip_skip has no effect where the VAE is trained",
    ]


def test_the_plan_is_shown_and_nothing_is_trained(vae_config, caplog, tmp_path):

    with caplog.at_level("INFO"):
        assert Trainer.from_config(load(vae_config(sample={})), check=True) is None
    assert "its VAE alone; UNet and text encoders are not loaded" in caplog.text
    assert "trained    vae: " in caplog.text
    assert "dropped in this epoch" not in caplog.text  # there is no caption to drop
    assert f"{tmp_path / 'output' / 'run'}: run/" in caplog.text
    assert not (tmp_path / "output").exists()


def test_an_objective_of_ones_own_trains_the_vae(vae_config, monkeypatch, tmp_path):
    import sys

    (tmp_path / "my_vae.py").write_text(
        "class Mean:\n"
        "    def reconstruction_loss(self, vae, batch):\n"
        "        found = vae.decode(vae.encode(batch.pixel_values).latent_dist.mode()).sample\n"
        "        return (found - batch.pixel_values).mean((1, 2, 3)).square()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    trainer = train(vae_config(objective={"module": "my_vae.Mean"}))
    sys.modules.pop("my_vae")
    assert trainer.step == 2
    assert json.loads((trainer.directory / "run" / "config.json").read_text())["latent_channels"]
