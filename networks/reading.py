"""Adapter files of all programs, as layers under kohya's names in the plain forms of its keys.

Read are LoRA, LoCon, LoHa, LoKr and DoRA of kohya-ss/sd-scripts, KohakuBlueleaf/LyCORIS, diffusers
and PEFT, as .safetensors, as pickled tensors, and PEFT's directories.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from networks.adapter_kinds import kind_of, other_file, other_layer, rank_of
from networks.files import read_named
from networks.foreign_names import Key, split_key
from networks.peft_files import Part, Scales, parts_of
from networks.tucker import without_core

logger = logging.getLogger(__name__)

_EMBEDDINGS = "bundle_emb."


def read_layers(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of an adapter by layer and by the rest of kohya's key, each with an alpha.

    Layers have the name that the file gives them, in kohya's form; `networks/matching.py` finds a
    model's. Tucker's cores are multiplied out, scales of PEFT's configs are in the alphas, and
    magnitudes have the shape of rows or columns.

    Raises:
        ValueError: the file can't be read, or is no adapter that there is a network for; says what
            it seems to be.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for part in parts_of(path):
        for name, tensors in _layers_of(part).items():
            layers.setdefault(name, {}).update(tensors)
    if not layers:
        raise ValueError(f"{path}: has no layers of an adapter")
    return layers


def _layers_of(part: Part) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    keys: dict[str, Key] = {}  # one of each layer
    strange: list[str] = []
    tensors = read_named(part.file)
    _check_file(tensors, part.file)
    for name, tensor in tensors.items():
        if name.startswith(_EMBEDDINGS):
            continue
        key = split_key(name, piece=part.piece)
        if key is None:
            strange.append(name)
        else:
            found.setdefault(key.name, {})[key.factor] = tensor
            keys[key.name] = key
    bundled = {name.split(".")[1] for name in tensors if name.startswith(_EMBEDDINGS)}
    if bundled:
        logger.warning("%s: the embeddings in it are left out: %s", part.file, ", ".join(bundled))
    if strange:
        raise ValueError(f"{part.file}: {strange[0]} is no tensor of an adapter that is known")
    return {
        name: _plain(own, keys[name], part.scales, f"{part.file}: {name}")
        for name, own in found.items()
    }


def _check_file(tensors: Mapping[str, Tensor], file: Path) -> None:
    if not all(isinstance(key, str) for key in tensors):
        raise ValueError(f"{file}: holds no layers by name")
    words = other_file(tensors)
    if words is not None:
        raise ValueError(f"{file}: is {words}")
    for name in tensors:
        key = split_key(name)
        words = None if key is None else other_layer([key.factor])
        if words is not None:
            raise ValueError(
                f"{file}: is {words}, which can't be read; only LoRA, LoHa, LoKr and DoRA can"
            )


def _plain(
    tensors: Mapping[str, Tensor], key: Key, scales: Mapping[str, Scales], where: str
) -> dict[str, Tensor]:
    """A layer in plain form, with an alpha."""
    if kind_of(tensors) is None:
        return dict(tensors)  # of a network of the person's own
    try:
        plain = without_core(tensors)
        if "alpha" in plain:
            plain["alpha"] = plain["alpha"].float().reshape(())
        if key.piece:
            return _scaled(plain, key, scales.get(key.piece, Scales()))
        rank = float(rank_of(plain))
    except (LookupError, RuntimeError) as error:
        raise ValueError(f"{where} is incomplete, or its shapes don't fit: {error}") from error
    if not plain.get("alpha"):  # missing, or 0: readers take a scale of 1
        plain["alpha"] = torch.tensor(rank)
    return plain


def _scaled(tensors: dict[str, Tensor], key: Key, scales: Scales) -> dict[str, Tensor]:
    """A layer of PEFT with its scale in alpha, and its magnitudes as rows."""
    if "dora_scale" in tensors:
        ones = [1] * (tensors["lora_down.weight"].dim() - 1)
        tensors["dora_scale"] = tensors["dora_scale"].flatten().view(-1, *ones)
    if "alpha" in tensors:
        return tensors
    is_whole = {"lokr_w1", "lokr_w2"} <= tensors.keys()
    rank = rank_of(tensors)
    scale = scales.of(key.path, None if is_whole else rank)
    if is_whole and scale != 1.0:  # PEFT scales these too
        tensors["lokr_w1"] = tensors["lokr_w1"] * scale
    tensors["alpha"] = torch.tensor(float(rank if is_whole else scale * rank))
    return tensors
