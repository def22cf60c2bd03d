"""What other programs accept in the files that we write: names, shapes, and how they go together.

Rules are those of ComfyUI, AUTOMATIC1111, diffusers, LyCORIS and kohya-ss/sd-scripts, and hold for
what is common to all of them; `docs/files.md` says who reads what.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

Shape = tuple[int, ...]

_TRANSFORMER = (
    r"(proj_in|proj_out|transformer_blocks_\d+_(attn[12]_to_(q|k|v|out_0)|ff_net_(0_proj|2)))"
)
_DIFFUSERS_UNET = (
    r"((down|up)_blocks_\d+|mid_block)_attentions_\d+_" + _TRANSFORMER,
    r"((down|up)_blocks_\d+|mid_block)_resnets_\d+_(conv[12]|time_emb_proj|conv_shortcut)",
    r"(down_blocks_\d+_down|up_blocks_\d+_up)samplers_0_conv",
    r"conv_in|conv_out|time_embedding_linear_[12]",
)
_SGM_RESNET = r"(in_layers_2|emb_layers_1|out_layers_3|skip_connection)"
_SGM_UNET = (
    r"((in|out)put_blocks_\d+|middle_block)_1_" + _TRANSFORMER,
    r"((in|out)put_blocks_\d+_0|middle_block_[02])_" + _SGM_RESNET,
    r"input_blocks_\d+_0_op|output_blocks_\d+_[12]_conv",
    r"input_blocks_0_0|out_2|time_embed_[02]|label_emb_0_[02]",
)
_IF_UNET = (
    r"((down|up)_blocks_\d+|mid_block)_attentions_\d+_(add_[kv]_proj|to_(q|k|v|out_0))",
    r"((down|up)_blocks_\d+|mid_block)_(resnets|(down|up)samplers)_\d+_"
    r"(conv[12]|time_emb_proj|conv_shortcut)",
    r"conv_in|conv_out|time_embedding_linear_[12]|encoder_hid_proj|add_embedding_proj",
    r"add_embedding_pool_[qkv]_proj",
)
_CLIP = (r"text_model_encoder_layers_\d+_(self_attn_(q|k|v|out)_proj|mlp_fc[12])",)
_T5 = (r"encoder_block_\d+_layer_\d+_(SelfAttention_[qkvo]|DenseReluDense_(wi|wi_[01]|wo))",)

_SD = {"lora_unet": _DIFFUSERS_UNET, "lora_te": _CLIP}
LAYERS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "sd_v1": _SD,
    "sd_v2": _SD,
    "sd_v2_v": _SD,
    "sdxl_base_v1-0": {"lora_unet": _SGM_UNET, "lora_te1": _CLIP, "lora_te2": _CLIP},
    "deepfloyd_if_i": {"lora_unet": _IF_UNET, "lora_te": _T5},
}
"""By a family's `ss_base_model_version`: prefix -> what the rest of a layer's name matches."""

_LORA = (("lora_down.weight", "lora_up.weight"),)
_LOHA = (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),)
_W1, _W2 = (((f"lokr_w{number}",), (f"lokr_w{number}_a", f"lokr_w{number}_b")) for number in (1, 2))
SUFFIXES = [{*each, "alpha"} for each in (*_LORA, *_LOHA)] + [
    {*first, *second, "alpha"} for first in _W1 for second in _W2
]
"""The sets of tensors that a layer may consist of; `dora_scale` may stand beside each."""

HYPERNETWORK_KEYS = r"linear\.\d+\.(weight|bias)"
PFG_KEYS = r"pfg_linear\.(weight|bias)"
EMBEDDING_KEYS = r"emb_params|clip_[lg]"
CONTROLNET_KEYS = (
    r"(conv_in|controlnet_cond_embedding\.(conv_in|conv_out|blocks\.\d+)"
    r"|controlnet_down_blocks\.\d+|controlnet_mid_block"
    r"|(time|add)_embedding\.linear_[12]|(down_blocks\.\d+|mid_block)\..+)\.(weight|bias)"
)


def is_known_layer(name: str, version: str | None) -> bool:
    """Whether readers know a layer's name in files for this family; None is one without rules."""
    if version is None or version not in LAYERS:
        return True
    prefix, rest = component_of(name)
    return any(re.fullmatch(pattern, rest) for pattern in LAYERS[version].get(prefix, ()))


def check_layers(names: Mapping[str, str], version: str | None) -> None:
    """Check the names of layers in files, by module path.

    Raises:
        ValueError: readers know no layer of that name.
    """
    for path, name in names.items():
        if not is_known_layer(name, version):
            raise ValueError(
                f"{path!r} would be {name} in the file, which no program reads; in text encoders "
                "adapt attention and MLP only"
            )


def component_of(name: str) -> tuple[str, str]:
    """`lora_te1_text_model_x` -> (`lora_te1`, `text_model_x`)."""
    found = re.match(r"(lora_(?:unet|te\d?))_(.*)", name)
    return (found[1], found[2]) if found else ("", name)


def suffix_fault(suffixes: Collection[str]) -> str | None:
    """What is wrong with the names of a layer's tensors; None if readers know them."""
    own = set(suffixes) - {"dora_scale"}
    if own in SUFFIXES:
        return None
    nearest = min(SUFFIXES, key=lambda known: len(own ^ known))
    odd = sorted(own ^ nearest)
    return f"has {', '.join(sorted(suffixes))}; readers want {', '.join(sorted(nearest))} ({odd})"


def shape_fault(shapes: Mapping[str, Shape], weight: Shape) -> str | None:
    """What is wrong with the shapes of a layer's tensors beside a weight's; None if they fit."""
    outputs, inputs, kernel = weight[0], weight[1], weight[2:]
    ones, area = (1,) * len(kernel), math.prod(kernel)
    expected: dict[str, Sequence[Shape]] = {"alpha": [()]}
    expected["dora_scale"] = [(outputs, 1, *ones), (1, inputs, *ones)]
    if "lora_down.weight" in shapes:
        rank = shapes["lora_down.weight"][0]
        expected["lora_down.weight"] = [(rank, inputs, *kernel)]
        expected["lora_up.weight"] = [(outputs, rank, *ones)]
    elif "hada_w1_b" in shapes:
        for number in (1, 2):
            rank = shapes[f"hada_w{number}_b"][0]
            expected[f"hada_w{number}_a"] = [(outputs, rank)]
            expected[f"hada_w{number}_b"] = [(rank, inputs * area)]
    else:
        (i, j), (k, n) = _sizes(shapes, "lokr_w1"), _sizes(shapes, "lokr_w2")
        if (i * k, j * n) != (outputs, inputs * area):
            return f"makes a weight of {i}*{k} rows and {j}*{n} columns, not of {weight}"
        for name in ("lokr_w1", "lokr_w2"):
            if f"{name}_a" in shapes and shapes[f"{name}_a"][1] != shapes[f"{name}_b"][0]:
                return f"{name}_a {shapes[f'{name}_a']} and {name}_b {shapes[f'{name}_b']}"
    for name, shape in shapes.items():
        if name in expected and shape not in expected[name]:
            return f"{name} has shape {shape}, readers want {' or '.join(map(str, expected[name]))}"
    return None


def check_keys(keys: Iterable[str], pattern: str) -> None:
    """Check the names of a file's tensors.

    Raises:
        ValueError: its readers know no such name.
    """
    for key in keys:
        if not re.fullmatch(pattern, key):
            raise ValueError(f"{key}: is no name that readers of such files know")


def _sizes(shapes: Mapping[str, Shape], name: str) -> Shape:
    """Rows and columns of a factor, whole or of two."""
    if name in shapes:
        return shapes[name][0], math.prod(shapes[name][1:])
    return shapes[f"{name}_a"][0], shapes[f"{name}_b"][1]
