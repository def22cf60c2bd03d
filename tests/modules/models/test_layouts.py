"""The kind of a file by its tensors' names alone, and what it seems to be if it is none."""

from __future__ import annotations

import pytest

from modules.models.layouts import LAYOUTS, find_layout, layout_of

UNET = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (["cond_stage_model.transformer.text_model.final_layer_norm.bias"], "sd1"),
        (["cond_stage_model.model.ln_final.bias"], "sd2"),
        (
            [
                "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
                "conditioner.embedders.1.model.ln_final.bias",
            ],
            "sdxl",
        ),
    ],
)
def test_the_text_encoders_tell_the_kind(text, expected):
    found = find_layout({**UNET, **dict.fromkeys(text, (8,))}, "a.ckpt")
    assert found is LAYOUTS[expected]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_down_blocks_0.lora_up.weight", "seems to be a LoRA, not a base model"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "seems to be a LoRA or other"),
        ("model.diffusion_model.joint_blocks.0.a.weight", "seems to be a Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "seems to be a Flux"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "seems to be a Flux"),
        ("decoder.conv_in.weight", "seems to be a VAE alone; it belongs into model.vae"),
        ("first_stage_model.encoder.conv_in.weight", "seems to be a VAE alone"),
        ("down_blocks.0.resnets.0.conv1.weight", "seems to be a UNet alone in diffusers' format"),
        ("control_model.input_hint_block.0.weight", "seems to be a ControlNet"),
        ("emb_params", "seems to be a textual inversion"),
        ("model_ema.diffusion_modelout2bias", "averaged weights .* only"),
        ("something.else", "it has no UNet, but something.else"),
    ],
)
def test_other_files_are_told_what_they_seem_to_be(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        find_layout({name: (4,)}, "folder/a.safetensors")
    assert str(caught.value).startswith("folder/a.safetensors: ")


def test_the_refiner_is_refused_in_one_line():
    shapes = {**UNET, "conditioner.embedders.0.model.ln_final.bias": (1280,)}
    with pytest.raises(ValueError, match="the refiner of SDXL") as caught:
        find_layout(shapes, "a.safetensors")
    assert "\n" not in str(caught.value)


def test_a_unet_without_text_encoders_is_refused():
    shapes = {**UNET, "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3)}
    with pytest.raises(ValueError, match="has a UNet but no text encoder"):
        find_layout(shapes, "a.safetensors")


def test_another_schedule_is_refused():
    shapes = {**UNET, "conditioner.embedders.1.model.ln_final.bias": (8,), "edm_mean": (4,)}
    with pytest.raises(ValueError, match="EDM's schedule, which is not supported"):
        find_layout(shapes, "a.safetensors")


def test_a_file_without_tensors_is_refused():
    with pytest.raises(ValueError, match="it has no UNet and no tensors"):
        find_layout({}, "a.safetensors")


def test_the_kind_that_a_model_is_written_as():
    assert layout_of("StableDiffusionPipeline", linear_projection=False).name == "sd1"
    assert layout_of("StableDiffusionPipeline", linear_projection=True).name == "sd2"
    assert layout_of("StableDiffusionInpaintPipeline", linear_projection=True).name == "sd2"
    assert layout_of("StableDiffusionXLPipeline", linear_projection=True).name == "sdxl"
    with pytest.raises(ValueError, match="can't be written as one file; use format: diffusers"):
        layout_of("IFPipeline", linear_projection=False)
