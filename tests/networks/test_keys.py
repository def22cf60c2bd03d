"""Names in files for the published models: as frozen, and such that every reader finds layers."""

from __future__ import annotations

import math
import re
from functools import cache

import consumers
import frozen_keys
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)

from modules.models.published import published_model
from networks.key_rules import (
    CONTROLNET_KEYS,
    HYPERNETWORK_KEYS,
    check_keys,
    is_known_layer,
    shape_fault,
    suffix_fault,
)
from networks.loha import LoHa
from networks.lokr import LoKr
from networks.lora import LoRA

VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2_v", "sdxl": "sdxl_base_v1-0"}
EVERY_FAMILY = pytest.mark.parametrize("family", VERSIONS)
BOTH = ("unet", "text_encoders")


@cache
def model(family: str):
    return published_model(family)


def layers(family: str, *, conv: bool = True) -> dict[str, tuple[int, ...]]:
    """The frozen names with the shapes of the weights."""
    lines = frozen_keys.read(family, "layers")
    chosen = [line for line in lines if conv or not line.startswith("+")]
    pairs = (line.removeprefix("+").split() for line in chosen)
    return {name: tuple(map(int, shape.split("x"))) for name, shape in pairs}


@EVERY_FAMILY
@pytest.mark.parametrize("kind", frozen_keys.KINDS)
def test_what_is_written_is_what_was_frozen(family, kind):
    assert frozen_keys.KINDS[kind](model(family)) == frozen_keys.read(family, kind)


@pytest.mark.parametrize(
    ("family", "unet", "text", "with_conv"),
    [("sd1", 192, 72, 278), ("sd2", 192, 23 * 6, 278), ("sdxl", 722, 11 * 6 + 32 * 6, 788)],
)
def test_there_are_the_fields_numbers_of_layers(family, unet, text, with_conv):
    """SDXL doesn't use the last layer of its first text encoder; SD2's is published without."""
    plain, both = layers(family, conv=False), layers(family)
    assert sum(name.startswith("lora_unet_") for name in plain) == unet
    assert sum(name.startswith("lora_te") for name in plain) == text
    assert len(both) == with_conv + text


@EVERY_FAMILY
def test_comfyui_finds_every_layer(family):
    assert layers(family).keys() <= consumers.comfyui(family)


@EVERY_FAMILY
def test_automatic1111_finds_every_layer(family):
    assert [name for name in layers(family) if not consumers.automatic1111(family, name)] == []


@EVERY_FAMILY
def test_sd_scripts_finds_every_layer(family):
    assert layers(family).keys() <= consumers.sd_scripts(family)


@EVERY_FAMILY
def test_lycoris_finds_every_layer(family):
    assert layers(family).keys() <= consumers.lycoris(family)


@EVERY_FAMILY
def test_diffusers_own_conversion_finds_every_layer(family):
    tensors: dict[str, torch.Tensor] = {}
    for name, (outputs, inputs, *kernel) in layers(family).items():
        ones = [1 for _ in kernel]
        tensors[f"{name}.lora_down.weight"] = torch.empty(1, inputs, *kernel, device="meta")
        tensors[f"{name}.lora_up.weight"] = torch.empty(outputs, 1, *ones, device="meta")
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    config = {"unet_config": model(family).denoiser.config} if family == "sdxl" else {}
    found, alphas = pipeline.lora_state_dict(tensors, **config)[:2]
    assert len(alphas) == len(layers(family))
    unet = {k.removeprefix("unet."): t for k, t in found.items() if k.startswith("unet.")}
    paths = {
        key.removesuffix(".lora_A.weight")
        for key in convert_unet_state_dict_to_peft(unet)
        if key.endswith("lora_A.weight")
    }
    assert len(paths) == sum(name.startswith("lora_unet") for name in layers(family))
    assert paths <= {path for path, _ in model(family).denoiser.named_modules()}
    for number, encoder in enumerate(model(family).text_encoders):
        prefix = "text_encoder." if number == 0 else f"text_encoder_{number + 1}."
        ours = "lora_te_" if family != "sdxl" else f"lora_te{number + 1}_"
        own = {k.removeprefix(prefix): t for k, t in found.items() if k.startswith(prefix)}
        converted = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
        paths = {
            key.removesuffix(".lora_A.weight").removeprefix("text_model.")
            for key in converted
            if key.endswith("lora_A.weight")
        }
        assert len(paths) == sum(name.startswith(ours) for name in layers(family))
        core = getattr(encoder.module, "text_model", encoder.module)
        assert paths <= {path for path, _ in core.named_modules()}


def lora_shapes(rank, conv_rank, weight):
    outputs, inputs, *kernel = weight
    own = conv_rank if math.prod(kernel) > 1 else rank
    ones = [1 for _ in kernel]
    return {"lora_down.weight": (own, inputs, *kernel), "lora_up.weight": (outputs, own, *ones)}


def loha_shapes(rank, conv_rank, weight):
    outputs, inputs, *kernel = weight
    own, columns = conv_rank if math.prod(kernel) > 1 else rank, inputs * math.prod(kernel)
    a, b = (outputs, own), (own, columns)
    return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": a, "hada_w2_b": b}


def lokr_shapes(rank, conv_rank, weight):
    from lycoris.functional.general import factorization

    outputs, inputs, *kernel = weight
    own = conv_rank if math.prod(kernel) > 1 else rank
    (i, k), (j, n) = factorization(outputs, 8), factorization(inputs, 8)
    shapes = {"lokr_w1": (i, j)}
    if own >= max(k, n) / 2:
        return {**shapes, "lokr_w2": (k, n, *kernel)}
    return {**shapes, "lokr_w2_a": (k, own), "lokr_w2_b": (own, n * math.prod(kernel))}


ALGORITHMS = {
    "lora": (LoRA, {"rank": 16}, lora_shapes),
    "locon": (LoRA, {"rank": 16, "conv_rank": 8, "alpha": 4, "conv_alpha": 1}, lora_shapes),
    "loha": (LoHa, {"rank": 8, "conv_rank": 4}, loha_shapes),
    "lokr": (LoKr, {"rank": 64, "conv_rank": 32}, lokr_shapes),
    "dora": (LoRA, {"rank": 4, "conv_rank": 4, "dora": "input"}, lora_shapes),
    "dora-output": (LoKr, {"rank": 64, "conv_rank": 32, "dora": "output"}, lokr_shapes),
}


@EVERY_FAMILY
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_has_its_tensors_for_every_layer(family, algorithm):
    cls, options, shapes_of = ALGORITHMS[algorithm]
    network = cls(**options, targets=BOTH)
    network.attach(model(family))
    network.detach()
    written = network._as_written()
    wanted = layers(family, conv="conv_rank" in options)
    assert written.keys() == wanted.keys()
    for name, weight in wanted.items():
        own = {key: tuple(tensor.shape) for key, tensor in written[name].items()}
        expected = shapes_of(options["rank"], options.get("conv_rank"), weight)
        expected["alpha"] = ()
        if network.dora:
            kept = 1 if network.dora == "input" else 0
            ones = tuple(size if dim == kept else 1 for dim, size in enumerate(weight))
            expected["dora_scale"] = ones
        assert own == expected, name
        assert consumers.accepted_suffixes(set(own))
        assert suffix_fault(own) is None
        assert shape_fault(own, weight) is None
    alphas = {(name.split("_")[1], float(own["alpha"])) for name, own in written.items()}
    assert len(alphas) == len(model(family).text_encoders) + 1


@EVERY_FAMILY
def test_our_rules_are_those_of_the_consumers(family):
    names, version = consumers.lycoris(family), VERSIONS[family]
    assert [name for name in names if not is_known_layer(name, version)] == []
    assert names <= consumers.comfyui(family)
    other = "sd1" if family == "sdxl" else "sdxl"
    for name in consumers.lycoris(other) - consumers.comfyui(family):
        assert not is_known_layer(name, version), name
    for name in names:
        if "text_model" in name:  # as named_modules of today's transformers would have it
            assert not is_known_layer(name.replace("text_model_", ""), version)
        assert not is_known_layer(f"{name}_x", version)
        assert not is_known_layer(name.replace("lora_", "lycoris_", 1), version)


@EVERY_FAMILY
def test_other_files_have_the_names_that_their_readers_know(family):
    controlnet = [line.split()[0] for line in frozen_keys.read(family, "controlnet")]
    check_keys(controlnet, CONTROLNET_KEYS)
    assert sum(key.startswith("controlnet_down_blocks.") for key in controlnet) == 2 * (
        9 if family == "sdxl" else 12
    )
    hypernetwork = [line.split() for line in frozen_keys.read(family, "hypernetwork")]
    check_keys([key for _, _, key, _ in hypernetwork], HYPERNETWORK_KEYS)
    widths = {int(width) for width, *_ in hypernetwork}
    text = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[family]
    assert widths == {text, 640, 1280} | ({320} if family != "sdxl" else set())
    with pytest.raises(ValueError, match=r"^emb: is no name that readers of such files know"):
        check_keys(["emb"], HYPERNETWORK_KEYS)


@pytest.mark.parametrize("suffixes", ["lora_down.weight alpha", "hada_w1_a lokr_w2 alpha", "diff"])
def test_half_a_layer_is_none(suffixes):
    assert not consumers.accepted_suffixes(set(suffixes.split()))
    assert re.search("readers want alpha, ", suffix_fault(suffixes.split()) or "")
