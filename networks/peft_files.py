"""What PEFT's and diffusers' files say of scales: in the header's JSON, or in adapter_config.json.

Their tensors alone don't tell: alpha, and how it scales, stand in the config of the adapter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from networks.files import read_metadata

HEADER = "lora_adapter_metadata"
"""The key under which diffusers writes the configs of all pieces into a file's header."""

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_PIPELINE = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_PIECES = ("unet", "text_encoder", "text_encoder_2")
_KINDS = ("LORA", "LOHA", "LOKR")
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")
_CLASSES = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
    "T5EncoderModel": "text_encoder",
}


@dataclass(frozen=True, kw_only=True)
class Scales:
    """How the layers of one piece are scaled."""

    rank: int = 0
    alpha: float | None = None  # None: the rank
    ranks: Mapping[str, int] = field(default_factory=dict)  # by pattern
    alphas: Mapping[str, float] = field(default_factory=dict)
    rank_stabilized: bool = False

    def of(self, path: str, rank: int | None) -> float:
        """The factor of a layer's change; `rank` is that of its tensors, if they tell it."""
        rank = rank or _matching(self.ranks, path) or self.rank or 1
        alpha = _matching(self.alphas, path)
        alpha = self.alpha if alpha is None else alpha
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


@dataclass(frozen=True)
class Part:
    """A file of an adapter and what is known of it beside its tensors."""

    file: Path
    piece: str | None  # whose layers it has, where its keys don't say it
    scales: Mapping[str, Scales]  # by piece


def parts_of(path: Path) -> Iterator[Part]:
    """The files of an adapter: `path` itself, or what a directory of PEFT or diffusers has.

    Raises:
        ValueError: a directory has none, or a config can't be read.
    """
    if not path.is_dir():
        yield Part(path, None, _header_scales(path))
        return
    for name in _PIPELINE:
        if (path / name).is_file():
            yield Part(path / name, None, _header_scales(path / name))
            return
    folders = [path, *(path / piece for piece in _PIECES)]
    found = [folder for folder in folders if (folder / CONFIG).is_file()]
    for folder in found:
        yield _directory_part(folder)
    if not found:
        raise ValueError(
            f"{path}: is a directory without {CONFIG}, so no adapter of PEFT; name the file in it"
        )


def _directory_part(folder: Path) -> Part:
    config = _read_config((folder / CONFIG).read_text(encoding="utf-8"), folder / CONFIG)
    mapping = config.get("auto_mapping") or {}
    piece = _CLASSES.get(str(mapping.get("base_model_class")))
    if folder.name in _PIECES:
        piece = folder.name
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: has {CONFIG}, but no {WEIGHTS[0]}")
    scales = _scales(config, folder / CONFIG)
    return Part(file, piece, dict.fromkeys(_PIECES, scales))


def _header_scales(file: Path) -> dict[str, Scales]:
    """The scales in a file's header, by piece."""
    text = read_metadata(file).get(HEADER)
    if text is None:
        return {}
    config, where = _read_config(text, f"{file}: {HEADER}"), f"{file}: {HEADER}"
    found = {}
    for piece in _PIECES:
        start = f"{piece}."
        own = {k.removeprefix(start): v for k, v in config.items() if k.startswith(start)}
        if own:
            found[piece] = _scales(own, where)
    return found


def _scales(config: Mapping[str, Any], where: Path | str) -> Scales:
    kind = config.get("peft_type") or "LORA"
    if kind not in _KINDS:
        raise ValueError(f"{where}: is PEFT's {kind}; only LoRA, LoHa and LoKr can be read")
    start = config.get("init_lora_weights")
    if str(start).startswith(_CHANGES_THE_BASE):
        raise ValueError(
            f"{where}: was begun with init_lora_weights {start}, which changes the base's weights "
            "too; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    alpha = config.get("lora_alpha", config.get("alpha"))
    return Scales(
        rank=int(config.get("r") or 0),
        alpha=None if alpha is None else float(alpha),
        ranks=config.get("rank_pattern") or {},
        alphas=config.get("alpha_pattern") or {},
        rank_stabilized=bool(config.get("use_rslora")),
    )


def _read_config(text: str, where: Path | str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{where}: is no config of an adapter")
    return config


def _matching(patterns: Mapping[str, Any], path: str) -> Any:
    """The value of the first pattern that fits, as PEFT finds it: at the path's end, a regex."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return None
