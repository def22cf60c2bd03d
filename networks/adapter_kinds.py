"""What an adapter's tensors are, by their keys: which network they are for, or what else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """A kind of layer that there is a network for."""

    name: str
    module: str
    mark: str  # how one of a layer's keys begins


KINDS = (
    Kind("LoRA", "networks.lora.LoRA", "lora_up."),
    Kind("LoHa", "networks.loha.LoHa", "hada_w1_a"),
    Kind("LoKr", "networks.lokr.LoKr", "lokr_w"),
)

_OTHER_LAYERS = {
    "oft_": "an OFT or BOFT",
    "boft_": "a BOFT",
    "ia3_l": "an (IA)^3",
    "on_input": "an (IA)^3",
    "a1.": "a GLoRA",
    "a2.": "a GLoRA",
    "diff": "made of whole changes of weights (algo full)",
    "diff_b": "made of whole changes of weights (algo full)",
    "set_weight": "made of whole weights",
    "w_norm": "one with changes of normalisations (train_norm)",
    "b_norm": "one with changes of normalisations (train_norm)",
    "vera_": "a VeRA",
    "lora_embedding_": "one with changes of an embedding matrix",
    "lora_bias": "one with trained biases",
    "bias": "one with trained biases",
    "reference.": "a LoRA in Nunchaku's or another packed form",
}
"""How the rest of a key begins -> what the adapter is."""

_OTHER_FILES = {
    "lllite_": "a ControlNet-LLLite",
    "model.diffusion_model.": "a whole base model, which belongs into model.path",
    "cond_stage_model.": "a whole base model, which belongs into model.path",
    "first_stage_model.": "a VAE, which belongs into model.vae",
    "control_model.": "a ControlNet; networks.controlnet.ControlNet takes it as a directory",
    "controlnet_": "a ControlNet; networks.controlnet.ControlNet takes it as a directory",
    "input_hint_block.": "a ControlNet; networks.controlnet.ControlNet takes it as a directory",
    "zero_convs.": "a ControlNet; networks.controlnet.ControlNet takes it as a directory",
    "ip_adapter.": "an IP-Adapter",
    "image_proj.": "an IP-Adapter",
    "pfg_linear.": "a PFG; write `module: networks.pfg.PFG`",
    "emb_params": "a textual inversion's embedding (networks.textual_inversion)",
    "clip_l": "a textual inversion's embedding (networks.textual_inversion)",
    "string_to_param": "a textual inversion's embedding (networks.textual_inversion)",
    "transformer.": "for a transformer, as SD3 or Flux, which is not supported",
    "lora_transformer_": "for a transformer, as SD3 or Flux, which is not supported",
    "lora_unet_double_blocks_": "for Flux, which is not supported",
    "lora_unet_single_blocks_": "for Flux, which is not supported",
    "lora_unet_joint_blocks_": "for SD3, which is not supported",
}
"""How a key begins -> what the file is."""


def kind_of(tensors: Iterable[str]) -> Kind | None:
    """The kind of a layer, by the rest of its keys; None if there is no network for it."""
    keys = list(tensors)
    return next((kind for kind in KINDS if any(key.startswith(kind.mark) for key in keys)), None)


def other_layer(tensors: Iterable[str]) -> str | None:
    """What a layer is that no network here can hold, in words; None if nothing is known."""
    for key in tensors:
        for start, words in _OTHER_LAYERS.items():
            is_start = start[-1] in "._" and key.startswith(start)
            if is_start or key in (start, f"{start}.weight"):
                return words
    return None


def other_file(keys: Iterable[str]) -> str | None:
    """What a file is that is no adapter, or one for another kind of model, in words."""
    for key in keys:
        for start, words in _OTHER_FILES.items():
            if key.startswith(start):
                return words
    return None


def rank_of(tensors: Mapping[str, Tensor]) -> int:
    """The rank of a layer in plain form; of a LoKr of two whole factors its alpha, or 1.

    Raises:
        KeyError: it is incomplete.
    """
    kind = kind_of(tensors)
    if kind is not None and kind.name != "LoKr":
        return tensors["lora_down.weight" if kind.name == "LoRA" else "hada_w1_b"].shape[0]
    for name in ("lokr_w1_a", "lokr_w2_a"):
        if name in tensors:
            return tensors[name].shape[1]
    return max(1, int(tensors["alpha"])) if "alpha" in tensors else 1


def width_of(tensors: Mapping[str, Tensor]) -> int | None:
    """The input's size of a Linear layer that these tensors, in plain form, are for."""
    for name in ("lora_down.weight", "hada_w1_b"):
        if name in tensors:
            return tensors[name].shape[1]
    factors = [
        next((tensors[name].shape[1] for name in names if name in tensors), None)
        for names in (("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_b"))
    ]
    return None if None in factors else prod(size for size in factors if size is not None)
