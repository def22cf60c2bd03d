"""Convert a ControlNet between diffusers' directory and the single file that other programs read.

python tools/convert_controlnet.py output/pose/pose -o pose.safetensors
python tools/convert_controlnet.py pose.safetensors -o pose -m <base model>
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.console import quiet_libraries, survive_narrow_encodings
from modules.files import replacing

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREFIX = "control_model."


def to_single_file(directory: Path, output: Path, *, dtype: str = "fp16") -> int:
    """Write the ControlNet of a diffusers `directory` as one .safetensors; returns its tensors.

    Raises:
        ValueError: the directory is no ControlNet.
    """
    from safetensors.torch import save_file

    from networks.controlnet import read_controlnet

    net = read_controlnet(directory)
    names = single_file_names(net)
    target = _dtype(dtype)
    tensors = {
        PREFIX + names[key]: value.to(target).contiguous()
        for key, value in net.state_dict().items()
    }
    with replacing(output) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return len(tensors)


def to_directory(file: Path, output: Path, *, model: str, dtype: str = "fp16") -> int:
    """Write the ControlNet of a single file as a diffusers directory; returns its tensors.

    `model` is the base model it is for: a directory, a single file or a hub id.

    Raises:
        ValueError: the file is no ControlNet, or one for another kind of model.
    """
    from safetensors.torch import save_file

    net = _empty_controlnet(model)
    names = single_file_names(net)
    tensors = _read(file)
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
    if output.exists():
        raise ValueError(f"{output}: exists already; give another name")
    output.mkdir(parents=True)
    target = _dtype(dtype)
    converted = {key: tensors[name].to(target).contiguous() for key, name in names.items()}
    with replacing(output / "diffusion_pytorch_model.safetensors") as temporary:
        save_file(converted, temporary, metadata={"format": "pt"})
    net.save_config(output)
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


def _read(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a single file, without the prefix that most of them have."""
    import torch
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and pickle raise kinds of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file}: can't be read ({reason})") from error
    tensors = tensors.get("state_dict", tensors)
    return {key.removeprefix(PREFIX): value for key, value in tensors.items()}


def _dtype(name: str) -> torch.dtype:
    from modules.savers import DTYPES

    return DTYPES[name]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join((__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, help="diffusers directory, .safetensors or .pth")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-m", "--model", help="base model, needed to make a directory of a file")
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp16")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    survive_narrow_encodings()
    quiet_libraries()
    try:
        if arguments.input.is_dir():
            count = to_single_file(arguments.input, arguments.output, dtype=arguments.dtype)
        elif arguments.model is None:
            parser.error("a file needs --model, the base model that the ControlNet is for")
        else:
            options = {"model": arguments.model, "dtype": arguments.dtype}
            count = to_directory(arguments.input, arguments.output, **options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.output}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
