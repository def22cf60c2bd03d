"""ControlNets as diffusers' directory, and as the single file that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.files import replacing_directory
from tools.command import check_new
from tools.containers import in_dtype, read_file, stored_dtype, write_file

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "control_model."

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_ORIGINAL = "https://github.com/lllyasviel/ControlNet"


def to_single_file(directory: Path, output: Path, *, dtype: str | None = "fp16") -> int:
    """Write the ControlNet of a diffusers `directory` as one file; returns its tensors.

    A `dtype` of None keeps the precision.

    Raises:
        ValueError: the directory is no ControlNet, or `output` exists.
    """
    from networks.controlnet import read_controlnet

    check_new(output)
    net = read_controlnet(directory)
    names = single_file_names(net)
    target = stored_dtype(directory) if dtype is None else dtype
    tensors = {
        PREFIX + names[key]: in_dtype(key, value, target) for key, value in net.state_dict().items()
    }
    write_file(output, tensors, _implemented(_metadata(directory / _WEIGHTS), _ORIGINAL))
    return len(tensors)


def to_directory(file: Path, output: Path, *, model: str, dtype: str | None = "fp16") -> int:
    """Write the ControlNet of a single file as a diffusers directory; returns its tensors.

    `model` is the base model it is for: a directory, a single file or a hub id.

    Raises:
        ValueError: the file is no ControlNet, or one for another kind of model.
    """
    check_new(output)
    net = _empty_controlnet(model)
    names = single_file_names(net)
    tensors, metadata = _read(file)
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise ValueError(
            f"{file}: is no ControlNet for {model}: it has no {missing[0]}"
            + (f" and {len(missing) - 1} others" if missing[1:] else "")
        )
    for key, value in net.state_dict().items():
        if tensors[names[key]].shape != value.shape:
            raise ValueError(
                f"{file}: is for another kind of model than {model}: {names[key]} has shape "
                f"{tuple(tensors[names[key]].shape)}, not {tuple(value.shape)}"
            )
    converted = {key: in_dtype(key, tensors[name], dtype) for key, name in names.items()}
    with replacing_directory(output) as folder:
        write_file(folder / _WEIGHTS, converted, _implemented(metadata, "diffusers"))
        net.save_config(folder)
    return len(converted)


def single_file_names(net: Any) -> dict[str, str]:
    """The name of each tensor of a ControlNet in a single file, without the prefix."""
    from modules.models.compvis import compvis_name

    layers = net.config.layers_per_block
    last = 2 * (len(net.controlnet_cond_embedding.blocks) + 1)
    names = {}
    for key in net.state_dict():
        part, _, rest = key.partition(".")
        if part == "controlnet_cond_embedding":
            names[key] = f"input_hint_block.{_hint_place(rest, last)}"
        elif part == "controlnet_down_blocks":
            number, _, tensor = rest.partition(".")
            names[key] = f"zero_convs.{number}.0.{tensor}"
        elif part == "controlnet_mid_block":
            names[key] = f"middle_block_out.0.{rest}"
        else:
            names[key] = compvis_name(key, layers_per_block=layers)
    return names


def _hint_place(rest: str, last: int) -> str:
    """Where a layer of the guide's embedding stands: activations lie between the layers."""
    layer, _, tensor = rest.partition(".")
    if layer == "blocks":
        number, _, tensor = tensor.partition(".")
        return f"{2 * (int(number) + 1)}.{tensor}"
    return f"{0 if layer == 'conv_in' else last}.{tensor}"


def _empty_controlnet(model: str) -> Any:
    import torch

    from modules.models import load
    from networks.controlnet import ControlNet

    with torch.device("meta"):
        network = ControlNet()
        network.attach(load(model, weights=False))
    return network.net


def _read(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The tensors of a single file, without the prefix that most of them have, and its metadata."""
    tensors, metadata = read_file(file)
    return {key.removeprefix(PREFIX): value for key, value in tensors.items()}, metadata


def _metadata(file: Path) -> Mapping[str, str]:
    from networks.files import read_metadata

    return read_metadata(file) if file.is_file() else {}


def _implemented(metadata: Mapping[str, str], by: str) -> Mapping[str, str]:
    """Metadata with whose tensor names they are beside, if it says whose."""
    key = "modelspec.implementation"
    return {**metadata, key: by} if key in metadata else metadata
