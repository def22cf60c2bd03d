import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from preprocess.scenes import PALETTE, SHAPES, draw_scene, sample_scene
from tools import make_tiny_sd, tiny_models, tiny_pictures, tiny_scores, tiny_stage

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "tiny-sd"
PARTS = {"vae", "unet", "text_encoder", "tokenizer", "scheduler"}


def make(tmp_path, *options):
    budget = ["--vae-steps", "2", "--decoder-steps", "2", "--unet-steps", "2"]
    budget += ["--pictures", "40", "--score-count", "0"]
    folders = ["-o", str(tmp_path / "tiny"), "--work", str(tmp_path / "work")]
    assert make_tiny_sd.main([*budget, *folders, *options]) == 0


@pytest.fixture
def pipeline():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        ASSETS, local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_every_word_is_one_token():
    tokenizer = tiny_models.build_tokenizer()
    words = [*PALETTE, *SHAPES, *tiny_models.SUFFIX_WORDS, *tiny_models.OTHER_WORDS]
    ids = [tokenizer(word).input_ids for word in words]
    assert {len(each) for each in ids} == {3}
    assert len({each[1] for each in ids}) == len(words)
    assert tokenizer.model_max_length == 32
    # Any other word is spelt out of bytes rather than lost.
    assert tokenizer.decode(tokenizer("zürich").input_ids, skip_special_tokens=True) == "zürich"


def test_script_writes_a_pipeline_directory(tmp_path):
    from diffusers import StableDiffusionPipeline

    make(tmp_path)
    output = tmp_path / "tiny"
    assert {path.name for path in output.iterdir()} == PARTS | {"model_index.json"}
    names = {path.name for path in (output / "tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"} <= names
    text_weights = load_file(output / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in text_weights)
    assert {value.dtype for value in text_weights.values()} == {torch.float16}
    assert sum(f.stat().st_size for f in output.rglob("*") if f.is_file()) <= 8e6
    pipeline = StableDiffusionPipeline.from_pretrained(
        output, local_files_only=True, torch_dtype=torch.float32
    )
    saved = {f"text_model.{k}": v for k, v in pipeline.text_encoder.state_dict().items()}
    for key, value in text_weights.items():
        torch.testing.assert_close(saved[key], value.float())
    assert pipeline.vae.config.scaling_factor != 0.18215


def test_vocabulary_files_give_the_same_tokenizer(tmp_path):
    tokenizer = tiny_models.build_tokenizer()
    tiny_models.save_vocabulary(tokenizer, tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    caption = "an orange circle on a blue background, polaroid"
    assert again(caption).input_ids == tokenizer(caption).input_ids


def test_stage_resumes_where_it_stopped(tmp_path, caplog):
    def train(checkpoint, steps):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

        def compute_loss(step):
            if len(seen) == stop_after:
                raise KeyboardInterrupt
            seen.append(step)
            return (model(torch.randn(4, 2)) - 1).square().mean()

        tiny_stage.run_stage(
            "test", checkpoint, {"m": model}, optimizer, compute_loss, steps=steps, log_every=2
        )
        return model.weight.detach()

    caplog.set_level(logging.INFO)
    seen, stop_after = [], None
    whole = train(tmp_path / "whole.pt", 6)
    seen, stop_after = [], 5
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pt", 6)
    seen, stop_after = [], None
    parts = train(tmp_path / "parts.pt", 6)
    assert seen == [4, 5]
    assert torch.equal(whole, parts)
    assert "step 6/6" in caplog.text


def test_captions_are_varied():
    rng = np.random.default_rng(0)
    captions = [tiny_pictures.vary_caption(rng, "a red circle") for _ in range(500)]
    assert 20 < captions.count("") < 90
    assert any("photo of" in caption for caption in captions)
    words = tiny_models.SUFFIX_WORDS
    assert all(any(word in caption for caption in captions) for word in words)


def test_assets_load_and_reconstruct(pipeline):
    size = sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file())
    assert size <= 8e6
    psnr, share = tiny_scores.score_vae(pipeline.vae, count=20)
    assert psnr >= 30
    assert share >= 0.9


def test_assets_have_latents_of_unit_variance(pipeline):
    rng = np.random.default_rng(1)
    images = np.stack([np.array(draw_scene(sample_scene(rng, size=(64, 64)))) for _ in range(32)])
    with torch.no_grad():
        posterior = pipeline.vae.encode(tiny_pictures.to_pixel_values(images)).latent_dist
    deviation = posterior.mean.std().item() * pipeline.vae.config.scaling_factor
    assert deviation == pytest.approx(1, abs=0.1)


def test_assets_draw_their_captions(pipeline):
    hits = tiny_scores.score_base(pipeline, count=20)
    assert hits["all"] >= 0.7
