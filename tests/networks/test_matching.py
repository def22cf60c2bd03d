"""Names of layers of the real models: each has one meaning, in every form."""

from __future__ import annotations

import pytest
from torch import nn

from modules.models.published import published_model
from networks.keys import kohya_name, split_component
from networks.matching import known_names

COUNTS = {"sd1": 282 + 72, "sd2": 282 + 138, "sdxl": 794 + 72 + 193}
"""Linear and convolution layers of the UNet, and of the text encoders."""


@pytest.fixture(scope="module", params=COUNTS)
def published(request):
    return request.param, published_model(request.param)


def paths_of(model) -> list[str]:
    return [
        f"{component}.{path}"
        for component, module in model.components().items()
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]


def test_every_layer_is_found_by_the_name_that_is_written(published):
    name, model = published
    known, paths = known_names(model), paths_of(model)
    assert len(paths) == COUNTS[name]
    written = {path: kohya_name(model, path) for path in paths}
    assert len(set(written.values())) == len(paths)
    assert all(known[name] == path for path, name in written.items())


def test_no_name_is_of_two_layers(published):
    _, model = published
    forms: dict[str, set[str]] = {}
    for path in paths_of(model):
        component, inner = split_component(path)
        for form in model.known_paths(component, inner):
            forms.setdefault(f"{component} {form.replace('.', '_')}", set()).add(path)
    assert [name for name, found in forms.items() if len(found) > 1] == []


NAMES = {
    "sd1": {
        "lora_unet_input_blocks_4_1_proj_in": "unet.down_blocks.1.attentions.0.proj_in",
        "lora_unet_output_blocks_2_1_conv": "unet.up_blocks.0.upsamplers.0.conv",
        "lycoris_mid_block_resnets_0_conv1": "unet.mid_block.resnets.0.conv1",
        "lora_te_encoder_layers_11_mlp_fc1": "text_encoders.0.encoder.layers.11.mlp.fc1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc2": "text_encoders.0.encoder.layers.0.mlp.fc2",
        "lycoris_text_model_encoder_layers_0_mlp_fc2": "text_encoders.0.encoder.layers.0.mlp.fc2",
    },
    "sd2": {
        "lora_te_text_model_encoder_layers_22_mlp_fc1": "text_encoders.0.encoder.layers.22.mlp.fc1",
        "lora_unet_time_embed_0": "unet.time_embedding.linear_1",
    },
    "sdxl": {
        "lora_unet_label_emb_0_2": "unet.add_embedding.linear_2",
        "lora_unet_up_blocks_0_upsamplers_0_conv": "unet.up_blocks.0.upsamplers.0.conv",
        "lora_unet_output_blocks_2_2_conv": "unet.up_blocks.0.upsamplers.0.conv",
        "lora_te1_text_model_encoder_layers_3_mlp_fc1": "text_encoders.0.encoder.layers.3.mlp.fc1",
        "lora_te2_text_model_encoder_layers_31_self_attn_q_proj": (
            "text_encoders.1.text_model.encoder.layers.31.self_attn.q_proj"
        ),
        "lora_te2_text_projection": "text_encoders.1.text_projection",
    },
}


def test_names_of_the_field(published):
    name, model = published
    known = known_names(model)
    assert {key: known.get(key) for key in NAMES[name]} == NAMES[name]
