"""The quickstart: short here, whole with two seeds under `-m slow`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import main
from bench.concept_hits import arguments_of
from modules import models
from modules.batch import Batch, DenoiserInputs
from networks.lora import LoRA

ROOT = Path(__file__).parent.parent
TINY_SD = ROOT / "assets" / "tiny-sd"
CAPTIONS = ["a red circle on a blue background, polaroid", "a green cross on a pink background"]


def run_quickstart(directory: Path, *overrides: str) -> Path:
    """Run the shipped YAML with its files in `directory`; returns the run's folder."""
    pictures = directory / "pictures"
    status = main.main(
        [
            str(ROOT / "config" / "quickstart.yaml"),
            f"model.path={TINY_SD}",
            f"prepare.0.args.output={pictures}",
            f"prepare.1.args.directory={pictures}",
            f"dataset.args.path={directory / 'dataset'}",
            f"save.directory={directory / 'output'}",
            *overrides,
        ]
    )
    assert status == 0
    return directory / "output" / "quickstart"


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps with a high learning rate, of UNet and text encoder."""
    return run_quickstart(
        tmp_path_factory.mktemp("quickstart"),
        "train.max_train_steps=12",
        "train.learning_rate=5e-3",
        "networks.lora.args.targets=[unet,text_encoders]",
        "sample.num_inference_steps=2",
    )


def test_it_leaves_pictures_weights_and_a_curve(short_run):
    for name in ("before_after.png", "loss.png"):
        with Image.open(short_run / name) as picture:
            assert min(picture.size) > 200
    for name in ("quickstart.safetensors", "config.yaml", "metrics.jsonl"):
        assert (short_run / name).stat().st_size > 0


@torch.no_grad()
def outputs(model) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = model.encode_prompts(Batch(captions=CAPTIONS))["encoder_hidden_states"]
    inputs = DenoiserInputs(
        sample=torch.randn(2, 4, 16, 16, generator=generator),
        timestep=torch.tensor([300, 800]),
        encoder_hidden_states=states,
    )
    return states, model.denoise(inputs)


def test_its_lora_is_the_same_in_diffusers(short_run):
    path = short_run / "quickstart.safetensors"
    model = models.load(str(TINY_SD))
    plain = outputs(model)
    network = LoRA(**arguments_of(path))
    network.attach(model)
    network.load(path)
    ours = outputs(model)
    network.detach()
    pipeline = StableDiffusionPipeline.from_pretrained(
        TINY_SD, local_files_only=True, dtype=torch.float32
    )
    pipeline.load_lora_weights(path)
    model.denoiser, model.text_encoders[0].module = pipeline.unet, pipeline.text_encoder
    for mine, theirs, base in zip(ours, outputs(model), plain, strict=True):
        assert (mine - base).abs().max() > 1e-2
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_the_concept_is_learned_and_the_old_captions_stay(tmp_path, seed):
    from bench.concept_hits import concept_hits

    folder = run_quickstart(tmp_path, f"train.seed={seed}", f"prepare.0.args.seed={seed}")
    hits = concept_hits(model=str(TINY_SD), lora=str(folder / "quickstart.safetensors"))
    assert hits.new_before < 0.10, hits
    assert hits.new_after > 0.70, hits
    assert hits.old_after > hits.old_before - 0.10, hits
