"""Names in the original layout of the real models, on the meta device; diffusers' own converters,
which read real files, must find every tensor under them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from modules.models.filling import make_module
from modules.models.full_file import file_tensors
from modules.models.layouts import LAYOUTS, published_config
from modules.models.original_names import Place, pack, places
from modules.models.portable import classic_name
from modules.models.published import published_model
from modules.models.stable_diffusion import StableDiffusion
from modules.models.stable_diffusion_xl import StableDiffusionXL

FAMILIES: dict[str, Any] = {
    "sd1": StableDiffusion,
    "sd2": StableDiffusion,
    "sdxl": StableDiffusionXL,
}
PIECES = [(layout, piece) for layout in LAYOUTS for piece in LAYOUTS[layout].prefixes]


def real_piece(layout: str, piece: str) -> Any:
    config = published_config(LAYOUTS[layout], piece)
    return make_module(FAMILIES[layout].piece_classes[piece], config, weights=False)


@pytest.mark.parametrize(
    ("layout", "piece", "tensors", "parameters"),
    [
        ("sd1", "unet", 686, 859_520_964),
        ("sd1", "vae", 248, 83_653_863),
        ("sd1", "text_encoder", 196, 123_060_480),
        ("sd2", "unet", 686, 865_910_724),
        ("sd2", "vae", 248, 83_653_863),
        ("sd2", "text_encoder", 280, 340_387_840),
        ("sdxl", "unet", 1680, 2_567_463_684),
        ("sdxl", "vae", 248, 83_653_863),
        ("sdxl", "text_encoder", 196, 123_060_480),
        ("sdxl", "text_encoder_2", 389, 694_659_840),
    ],
)
def test_published_configs_are_those_of_the_real_models(layout, piece, tensors, parameters):
    module = real_piece(layout, piece)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    names = {place.name for place in places(piece, module, LAYOUTS[layout]).values()}
    assert len(names) == tensors
    assert all(name.startswith(LAYOUTS[layout].prefixes[piece]) for name in names)


@pytest.mark.parametrize(("layout", "piece"), PIECES)
def test_diffusers_reads_every_name_of_the_real_models(layout, piece):
    module, kind = real_piece(layout, piece), LAYOUTS[layout]
    own, prefix = module.state_dict(), kind.prefixes[piece]
    stored = pack(own, places(piece, module, kind))
    if piece == "unet":
        read = convert_ldm_unet_checkpoint(dict(stored), dict(module.config))
    elif piece == "vae":
        read = convert_ldm_vae_checkpoint(dict(stored), dict(module.config))
    elif piece in kind.open_clip:
        read = convert_open_clip_checkpoint(module, dict(stored), prefix=prefix)
        read = {name.removeprefix("text_model."): tensor for name, tensor in read.items()}
        own = {name.removeprefix("text_model."): tensor for name, tensor in own.items()}
    else:
        read = convert_ldm_clip_checkpoint(dict(stored), remove_prefix=prefix)
        own = {classic_name(module, name): tensor for name, tensor in own.items()}
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {
        name: tuple(tensor.shape) for name, tensor in own.items()
    }


@pytest.mark.parametrize(
    ("layout", "count", "first"),
    [
        ("sd1", 1131, "cond_stage_model.transformer.text_model.embeddings.position_ids"),
        ("sd2", 1228, "cond_stage_model.model.transformer.resblocks.23.mlp.c_proj.bias"),
        ("sdxl", 2515, "conditioner.embedders.1.model.logit_scale"),
    ],
)
def test_a_whole_file_has_the_key_set_of_the_published_one(layout, count, first):
    names = file_tensors(published_model(layout), dtype=torch.float16, device="meta")
    assert len(names) == count
    assert first in names


def test_shapes_in_a_file_are_those_of_the_original():
    tensors = file_tensors(published_model("sd2"), dtype=torch.float16, device="meta")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    unet, text = "model.diffusion_model", "cond_stage_model.model"
    assert shapes[f"{unet}.input_blocks.1.1.proj_in.weight"] == (320, 320)
    assert shapes[f"{unet}.output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes[f"{text}.transformer.resblocks.0.attn.in_proj_weight"] == (3072, 1024)
    assert shapes[f"{text}.text_projection"] == (1024, 1024)
    assert shapes[f"{text}.positional_embedding"] == (77, 1024)
    assert shapes[f"{text}.logit_scale"] == ()
    assert shapes["first_stage_model.decoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert shapes["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert shapes["first_stage_model.encoder.down.0.downsample.conv.weight"] == (128, 128, 3, 3)


@pytest.mark.parametrize("form", ["same", "convolution", "transposed"])
def test_unpacking_undoes_packing(form):
    tensor = torch.randn(4, 6)
    place = Place("name", form)
    stored = pack({"key": tensor}, {"key": place})["name"]
    assert tuple(stored.shape) == place.shape((4, 6))
    assert torch.equal(place.unpack(stored), tensor)


def test_query_key_and_value_are_one_tensor_in_that_order():
    parts = {form: torch.randn(4, 6) for form in ("value", "key", "query")}
    where = {form: Place("name", form) for form in parts}
    stored = pack(parts, where)["name"]
    assert torch.equal(stored, torch.cat([parts["query"], parts["key"], parts["value"]]))
    for form, place in where.items():
        assert place.shape((4, 6)) == (12, 6)
        assert torch.equal(place.unpack(stored), parts[form])
