"""What a file of tensors is: which kind of network or model, for which family, of which ranks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from networks.adapter_kinds import kind_of, other_file, other_layer, rank_of, width_of
from networks.foreign_names import split_key
from tools.tensor_listing import Listed, Listing

SD1, SD2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL"
_BY_WIDTH = {768: SD1, 1024: SD2, 2048: SDXL}
"""Width of the text that a family's cross-attention reads."""
_ARCHITECTURES = {
    "stable-diffusion-v1": SD1,
    "stable-diffusion-v2": SD2,
    "stable-diffusion-xl": SDXL,
}
_WHOLE = {
    "conditioner.embedders.1.": SDXL,
    "conditioner.embedders.0.model.": "the refiner of Stable Diffusion XL",
    "cond_stage_model.model.": SD2,
    "cond_stage_model.transformer.": SD1,
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
}
"""How a tensor's name in a whole model begins -> its family."""
_ALONE = {
    "pfg_linear.": "PFG",
    "controlnet_cond_embedding.": "ControlNet",
    "control_model.": "ControlNet in the original layout",
    "model.diffusion_model.": "UNet alone, in the original layout",
    "first_stage_model.": "VAE",
    "down_blocks.": "UNet alone",
    "decoder.": "VAE",
    "encoder.": "VAE",
    "text_model.": "text encoder alone",
    "string_to_param": "textual inversion",
}
"""How a tensor's name begins -> what the file is, where nothing before in the table fits."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file is."""

    kind: str
    family: str | None = None
    family_source: str = "tensors"
    layers: Mapping[str, int] = field(default_factory=dict)  # of an adapter, by piece
    ranks: Mapping[str, int] = field(default_factory=dict)  # layers by rank
    alphas: Mapping[str, int] = field(default_factory=dict)  # layers by alpha
    form: str | None = None  # whose key names an adapter has


def identify(listing: Listing) -> Contents:
    """Say what a file is, by its tensors, and its family by its metadata if they tell it."""
    found = _identify(listing.tensors, listing)
    told = told_family(listing.metadata)
    if told is None:
        return found
    return Contents(**{**vars(found), "family": told, "family_source": "metadata"})


def told_family(metadata: Mapping[str, str]) -> str | None:
    """Return the family that a file says it is for."""
    version = metadata.get("ss_base_model_version", "")
    for start, family in (("sdxl_", SDXL), ("sd_v1", SD1), ("sd_v2", SD2)):
        if version.startswith(start):
            return family
    architecture = metadata.get("modelspec.architecture", "").partition("/")[0]
    if version or architecture:
        known = (f for start, f in _ARCHITECTURES.items() if architecture.startswith(start))
        return next(known, version or architecture)
    return None


def _identify(tensors: Mapping[str, Listed], listing: Listing) -> Contents:
    if listing.widths:
        return Contents(kind="hypernetwork", family=_family_of_widths(listing.widths))
    if any(name.startswith("lllite_") for name in tensors):
        return Contents(kind="ControlNet-LLLite")
    layers: dict[str, dict[str, Listed]] = {}
    forms: Counter[str] = Counter()
    for name, tensor in tensors.items():
        key = split_key(name)
        if key is not None:
            layers.setdefault(key.name, {})[key.factor] = tensor
            forms[_form(name, key.piece)] += 1
    known = {name: own for name, own in layers.items() if kind_of(own) or other_layer(own)}
    if known:
        return _adapter(known, tensors, listing.metadata, forms.most_common(1)[0][0])
    return _embedding(tensors) or _model(tensors)


def _form(name: str, piece: str) -> str:
    if not piece:
        return "kohya's"
    return "PEFT's" if any(f".{each}" in name for each in ("lora_A", "lora_B")) else "diffusers'"


def _adapter(
    layers: Mapping[str, Mapping[str, Listed]],
    tensors: Mapping[str, Listed],
    metadata: Mapping[str, str],
    form: str,
) -> Contents:
    kinds: Counter[str] = Counter()
    ranks: Counter[str] = Counter()
    alphas: Counter[str] = Counter()
    is_spatial = is_decomposed = False
    for own in layers.values():
        kind = kind_of(own)
        kinds[kind.name if kind else _noun(other_layer(own))] += 1
        is_decomposed |= "dora_scale" in own
        down = own.get("lora_mid.weight", own.get("lora_down.weight"))
        is_spatial |= down is not None and max((1, 1, *down.shape)[-2:]) > 1 and len(down.shape) > 2
        if kind is not None:
            whole = {"lokr_w1", "lokr_w2"} <= own.keys()
            ranks["whole factors" if whole else str(rank_of(own))] += 1  # type: ignore[arg-type]
        if "alpha" in own and own["alpha"].value is not None:
            alphas[f"{own['alpha'].value:g}"] += 1
    names = ["LoCon" if name == "LoRA" and is_spatial else name for name, _ in kinds.most_common()]
    kind_name = ("DoRA of " if is_decomposed else "") + " and ".join(names)
    return Contents(
        kind=kind_name,
        family=_adapter_family(layers) or _foreign(tensors),
        layers=dict(Counter(_piece(name) for name in layers)),
        ranks=dict(ranks),
        alphas=dict(alphas) or _header_alphas(metadata),
        form=form,
    )


def _noun(words: str | None) -> str:
    """`an OFT or BOFT` -> `OFT or BOFT`."""
    first, _, rest = (words or "").partition(" ")
    return rest if first in ("a", "an", "one") else words or "unknown"


def _piece(layer: str) -> str:
    for start, piece in (("lora_te1", "text_encoders.0"), ("lora_te2", "text_encoders.1")):
        if layer.startswith(start):
            return piece
    return "text_encoders.0" if layer.startswith(("lora_te", "lycoris_te")) else "unet"


def _header_alphas(metadata: Mapping[str, str]) -> Mapping[str, int]:
    """The alphas that PEFT's and diffusers' configs in a header say."""
    try:
        config: Any = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        found = {v for k, v in config.items() if k.rpartition(".")[2] in ("lora_alpha", "alpha")}
    except (ValueError, AttributeError):
        return {}
    return {f"{alpha:g}": 0 for alpha in found if isinstance(alpha, int | float)}


def _adapter_family(layers: Mapping[str, Mapping[str, Listed]]) -> str | None:
    """By the widths of what reads text, else by names that one family alone has."""
    for name, own in layers.items():
        if "attn2_to_k" in name or "attn2_to_v" in name:
            width = width_of(own)  # type: ignore[arg-type]
            if width in _BY_WIDTH:
                return _BY_WIDTH[width]
    if any(name.startswith(("lora_te1_", "lora_te2_")) for name in layers):
        return SDXL
    for name, own in layers.items():
        if name.startswith("lora_te_") and "attn" in name:
            return _BY_WIDTH.get(width_of(own) or 0)  # type: ignore[arg-type]
    return None


def _foreign(tensors: Mapping[str, Listed]) -> str | None:
    words = other_file(tensors) or ""
    return next((family for family in ("Flux", "SD3") if f"for {family}" in words), None)


def _family_of_widths(widths: tuple[int, ...]) -> str | None:
    return next((_BY_WIDTH[width] for width in widths if width in _BY_WIDTH), None)


def _embedding(tensors: Mapping[str, Listed]) -> Contents | None:
    if {"clip_l", "clip_g"} <= tensors.keys():
        return Contents(kind="textual inversion", family=SDXL)
    if len(tensors) != 1:
        return None
    ((name, tensor),) = tensors.items()
    is_vectors = len(tensor.shape) in (1, 2) and not name.endswith((".weight", ".bias"))
    if not is_vectors:
        return None
    return Contents(kind="textual inversion", family=_BY_WIDTH.get(tensor.shape[-1]))


def _model(tensors: Mapping[str, Listed]) -> Contents:
    if any(name.startswith("model.diffusion_model.") for name in tensors):
        for start, family in _WHOLE.items():
            if any(name.startswith(start) for name in tensors):
                return Contents(kind="whole model", family=family)
    for start, kind in _ALONE.items():
        if any(name.startswith(start) for name in tensors):
            return Contents(kind=kind, family=_model_family(tensors))
    return Contents(kind="unknown")


def _model_family(tensors: Mapping[str, Listed]) -> str | None:
    """By the width of the first cross-attention that reads text."""
    for name, tensor in tensors.items():
        if name.endswith("attn2.to_k.weight"):
            return _BY_WIDTH.get(tensor.shape[1])
    return None
