"""Long prompts and clip skip, against diffusers' pipeline and what AUTOMATIC1111 does."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny_if import make_if

from modules.config import load
from modules.drawing import draw_images
from modules.models.prompts import set_prompts
from modules.trainer import Trainer

LONG = "a red cat on the mat, a blue dog, a photo of the red dog, a cat"
SHORT = "a blue dog"


def states(model, *captions: str) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_text(captions)["encoder_hidden_states"]


@pytest.mark.parametrize("make", [tiny.make_sd, tiny.make_sdxl])
def test_chunks_are_encoded_one_by_one_and_stand_side_by_side(make):
    """The text is written so that each chunk of 14 tokens ends behind a comma."""
    model = make()
    pieces = ["a red cat on the mat, a blue dog,", "a photo of the red dog, a cat"]
    expected = torch.cat([states(model, piece) for piece in pieces], dim=1)
    set_prompts(model, max_token_length=150, clip_skip=None)
    found = states(model, LONG, SHORT)
    assert found.shape == (2, 32, expected.shape[2])
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    set_prompts(model, max_token_length=75, clip_skip=None)
    padded = torch.cat([states(model, SHORT), states(model, "")], dim=1)
    assert torch.allclose(found[1], padded[0], atol=1e-6)


def test_three_chunks_and_what_is_beyond_them():
    model = tiny.make_sd()
    set_prompts(model, max_token_length=225, clip_skip=None)
    encoder = model.text_encoders[0]
    assert states(model, SHORT).shape[1] == 48
    assert encoder.token_count(SHORT) == (3, 3)
    words = "cat " * 50
    assert encoder.token_count(words) == (50, 42)
    assert encoder.tokenize([words]).shape == (3, 16)
    set_prompts(model, max_token_length=75, clip_skip=None)
    assert encoder.token_count(words) == (50, 14)


def test_the_pooled_output_is_the_first_chunks():
    model = tiny.make_sdxl()
    with torch.no_grad():
        alone = model.encode_text(["a red cat on the mat, a blue dog,"])["pooled_prompt_embeds"]
        set_prompts(model, max_token_length=150, clip_skip=None)
        pooled = model.encode_text([LONG, SHORT])["pooled_prompt_embeds"]
    assert pooled.shape == (2, alone.shape[1])
    assert torch.allclose(pooled[0], alone[0], atol=1e-6)


def test_clip_skip_is_that_of_diffusers_documentation():
    """Its own `clip_skip` counts from 0 and breaks on today's text encoders."""
    model = tiny.make_sd()
    module = model.text_encoders[0].module
    ids = model.text_encoders[0].tokenize([SHORT])
    with torch.no_grad():
        output = module(ids, output_hidden_states=True)
        expected = module.final_layer_norm(output.hidden_states[-2])
    assert torch.equal(states(model, SHORT), output.last_hidden_state)
    before = model.text_fingerprint()
    set_prompts(model, max_token_length=75, clip_skip=2)
    assert torch.equal(states(model, SHORT), expected)
    assert model.text_fingerprint() != before


def test_sdxl_is_read_at_the_last_layer_but_one_or_elsewhere():
    model = tiny.make_sdxl()
    plain = states(model, SHORT)
    set_prompts(model, max_token_length=75, clip_skip=2)
    assert torch.equal(states(model, SHORT), plain)
    set_prompts(model, max_token_length=75, clip_skip=1)
    assert not torch.equal(states(model, SHORT), plain)


def test_skipped_layers_are_not_trained():
    model = tiny.make_sd()
    set_prompts(model, max_token_length=75, clip_skip=2)
    trained = model.parameters_matching(["text_encoders"])
    assert not any("layers.1" in path for path in trained)
    assert any("final_layer_norm" in path for path in trained)
    assert not any("layers.1" in p for p in model.adapter_layers(["text_encoders"], conv=False))


def test_long_prompts_are_drawn_with():
    model = tiny.make_sdxl()
    set_prompts(model, max_token_length=150, clip_skip=None)
    options = {"seeds": [1], "size": (32, 32), "num_inference_steps": 2}
    long, cut = (draw_images(model, [], prompts=[text], **options)[0] for text in (LONG, SHORT))
    assert long.tobytes() != cut.tobytes()


def test_what_can_not_be_is_said():
    model = tiny.make_sd()
    with pytest.raises(ValueError, match="clip_skip: 3 is more than the 2 layers of a CLIPTextM"):
        set_prompts(model, max_token_length=75, clip_skip=3)
    deepfloyd = make_if()
    set_prompts(deepfloyd, max_token_length=75, clip_skip=None)
    with pytest.raises(ValueError, match="max_token_length: is for CLIP; a T5EncoderModel always"):
        set_prompts(deepfloyd, max_token_length=150, clip_skip=None)
    with pytest.raises(ValueError, match="clip_skip: is for CLIP; a T5EncoderModel always reads"):
        set_prompts(deepfloyd, max_token_length=75, clip_skip=2)


def test_a_run_with_long_captions_and_clip_skip(write_config, tmp_path, caplog):
    data = tiny.save_dataset(tmp_path / "data", captions=[LONG, SHORT])
    model = tiny.save_sd(tmp_path / "xl", make=tiny.make_sdxl)
    lora = {"module": "networks.lora.LoRA", "args": {"rank": 2, "targets": ["text_encoders"]}}
    sections = {"dataset": {"args": {"path": str(data)}}, "networks": {"lora": lora}}
    path = write_config(model={"path": str(model)}, **sections)
    with caplog.at_level("INFO"):
        assert Trainer.from_config(load(path), check=True) is None
    assert (
        "captions: the ends of 2 of 4 are not read: image000 (20 tokens), image002 (20 tokens); "
        "model.max_token_length: 150 or 225 reads more"
    ) in caplog.text
    caplog.clear()
    longer = {"path": str(model), "max_token_length": 150, "clip_skip": 1}
    path = write_config(model=longer, **sections)
    with caplog.at_level("INFO"):
        Trainer.from_config(load(path), check=True)
    assert "are not read" not in caplog.text
    trainer = Trainer.from_config(load(path))
    assert any("layers_1" in name for name in trainer.networks["lora"].layers)  # read at the last
    batch = next(iter(trainer.source.loader))
    assert trainer.model.encode_prompts(batch)["encoder_hidden_states"].shape[1] == 32
    trainer.train()
