"""Keys of adapter files of all programs -> layers under kohya's names, and kohya's suffixes.

A kohya key is `<prefix>_<module path with _>.<factor>`, where dots come only behind the name. Those
of diffusers and PEFT have the module path with dots, in one of these forms:

    unet.<path>.lora_A.weight, unet.<path>.lora_A.<adapter's name>.weight    PEFT
    base_model.model.<path>.lora_A.weight                                    PEFT's directories
    unet.<path>.lora.down.weight, unet.<path>.processor.to_q_lora.down.weight    older diffusers
    text_encoder.<path>.lora_linear_layer.down.weight                        its text encoders
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
"""Pieces of a pipeline -> how their layers' names begin."""

_KOHYA = re.compile(r"((?:lora|lycoris|lllite|oft)_[^.]+)\.(.+)")
_FACTORS = {
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}
_PEFT = re.compile(
    r"(?P<path>.+?)\.(?P<factor>lora_[AB]|lora_magnitude_vector|(?:hada|lokr)_\w+"
    r"|(?:lora_embedding|oft|boft|ia3|vera)_\w+)(?:\.(?!weight$|bias$)[^.]+)?(?P<end>\.weight|\.bias)?"
)
_DIFFUSERS = re.compile(
    r"(?P<path>.+?)(?P<tail>_lora|\.lora|\.lora_linear_layer)\.(?P<factor>down|up)\.weight"
)
_ALPHA = re.compile(r"(?P<path>.+?)(?:\.lora)?\.alpha")
_STARTS = {
    "base_model.model.": "",
    "diffusion_model.": "unet.",
    "unet.unet.": "unet.",
}
_OF_THE_UNET = (
    *("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out"),
    *("time_embedding", "add_embedding", "encoder_hid_proj"),
    *("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"),
)
_OF_A_TEXT_ENCODER = ("text_model", "encoder", "text_projection")
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Key:
    """What a key is of."""

    name: str  # of the layer, in kohya's form
    factor: str  # the rest of the key, in kohya's form
    piece: str = ""  # of the pipeline; "" of a kohya key
    path: str = ""  # within the piece; "" of a kohya key


def split_key(key: str, *, piece: str | None = None) -> Key | None:
    """Split a key; None if it is of no adapter.

    `piece` is whose layers a file has that doesn't say it, as PEFT's directories.
    """
    kohya = _KOHYA.fullmatch(key)
    if kohya:
        return Key(kohya[1], kohya[2])
    found = _split(key)
    if found is None:
        return None
    path, factor = found
    for start, new in _STARTS.items():
        if path.startswith(start):
            path = new + path.removeprefix(start)
    first, _, rest = path.partition(".")
    if first in PREFIXES:
        piece, path = first, rest
    elif piece is None:
        piece = _piece_of(first)
    if piece is None:
        return None
    path = path.replace(".processor.", ".")
    if piece != "unet":
        path = _todays_text_path(path)
    elif path.endswith(".to_out"):
        path += ".0"
    return Key(f"{PREFIXES[piece]}_{path.replace('.', '_')}", factor, piece, path)


def _split(key: str) -> tuple[str, str] | None:
    """The module path of a key of diffusers or PEFT, and kohya's suffix."""
    found = _PEFT.fullmatch(key)
    if found:
        if found["end"] == ".bias":
            return found["path"], "lora_bias"
        return found["path"], _FACTORS.get(found["factor"], found["factor"])
    found = _DIFFUSERS.fullmatch(key)
    if found:
        return found["path"], _FACTORS[found["factor"]]
    found = _ALPHA.fullmatch(key)
    return (found["path"], "alpha") if found else None


def _piece_of(first: str) -> str | None:
    if first in _OF_THE_UNET:
        return "unet"
    return "text_encoder" if first in _OF_A_TEXT_ENCODER else None


def _todays_text_path(path: str) -> str:
    start, _, last = path.rpartition(".")
    return f"{start}.{_OLD_TEXT[last]}" if last in _OLD_TEXT else path
