"""Keys of all programs, one by one."""

from __future__ import annotations

import pytest

from networks.foreign_names import split_key

BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1"
FLAT = f"lora_unet_{BLOCK.replace('.', '_')}"
TEXT = "text_model.encoder.layers.0"
FLAT_TEXT = "lora_te_text_model_encoder_layers_0"
DOWN, UP = "lora_down.weight", "lora_up.weight"


@pytest.mark.parametrize(
    ("key", "name", "factor"),
    [
        (f"{FLAT}_to_q.lora_down.weight", f"{FLAT}_to_q", DOWN),
        ("lora_te1_text_model_x.hada_w1_a", "lora_te1_text_model_x", "hada_w1_a"),
        ("lycoris_mid_block_x.lokr_w1", "lycoris_mid_block_x", "lokr_w1"),
        (f"unet.{BLOCK}.to_q.lora_A.weight", f"{FLAT}_to_q", DOWN),
        (f"unet.{BLOCK}.to_q.lora_B.default.weight", f"{FLAT}_to_q", UP),
        (f"unet.unet.{BLOCK}.to_q.lora_B.weight", f"{FLAT}_to_q", UP),
        (f"base_model.model.{BLOCK}.to_q.lora_A.weight", f"{FLAT}_to_q", DOWN),
        (f"base_model.model.{BLOCK}.to_q.lora_A.other.weight", f"{FLAT}_to_q", DOWN),
        (f"base_model.model.{BLOCK}.to_q.hada_w1_a", f"{FLAT}_to_q", "hada_w1_a"),
        (f"base_model.model.{BLOCK}.to_q.hada_w1_a.default", f"{FLAT}_to_q", "hada_w1_a"),
        (f"base_model.model.{BLOCK}.to_q.lokr_w2.default", f"{FLAT}_to_q", "lokr_w2"),
        (f"unet.{BLOCK}.to_q.lora_magnitude_vector", f"{FLAT}_to_q", "dora_scale"),
        (f"unet.{BLOCK}.to_out.lora_magnitude_vector", f"{FLAT}_to_out_0", "dora_scale"),
        (f"unet.{BLOCK}.to_q.lora_magnitude_vector.default.weight", f"{FLAT}_to_q", "dora_scale"),
        (f"unet.{BLOCK}.to_k.lora.up.weight", f"{FLAT}_to_k", UP),
        (f"unet.{BLOCK}.processor.to_out_lora.down.weight", f"{FLAT}_to_out_0", DOWN),
        (f"{BLOCK}.processor.to_v_lora.up.weight", f"{FLAT}_to_v", UP),
        (f"unet.{BLOCK}.to_q.alpha", f"{FLAT}_to_q", "alpha"),
        (f"diffusion_model.{BLOCK}.to_q.lora_A.weight", f"{FLAT}_to_q", DOWN),
        (f"text_encoder.{TEXT}.mlp.fc1.lora_linear_layer.up.weight", f"{FLAT_TEXT}_mlp_fc1", UP),
        (f"text_encoder.{TEXT}.self_attn.to_q_lora.up.weight", f"{FLAT_TEXT}_self_attn_q_proj", UP),
        (f"text_encoder.{TEXT}.mlp.fc2.lora_A.weight", f"{FLAT_TEXT}_mlp_fc2", DOWN),
        (f"base_model.model.{TEXT}.mlp.fc2.lora_A.weight", f"{FLAT_TEXT}_mlp_fc2", DOWN),
        (
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight",
            "lora_te2_text_model_encoder_layers_0_mlp_fc1",
            UP,
        ),
        (f"unet.{BLOCK}.to_q.lora_B.bias", f"{FLAT}_to_q", "lora_bias"),
        ("transformer.blocks.0.to_q.lora_A.weight", None, None),
        ("down_blocks.0.resnets.0.conv1.weight", None, None),
    ],
)
def test_forms(key, name, factor):
    found = split_key(key)
    assert (found and (found.name, found.factor)) == (name and (name, factor))


def test_whose_layers_a_directory_has_may_be_said():
    key = "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"
    found = split_key(key, piece="text_encoder_2")
    assert found is not None
    assert found.name == "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    assert found.path == "text_model.encoder.layers.0.mlp.fc1"
