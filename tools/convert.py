"""Convert files between the forms that other programs read. What a file is it tells itself.

python tools/convert.py lora.safetensors -o peft.safetensors --to peft    kohya's names -> PEFT's
python tools/convert.py peft.safetensors -o lora.safetensors              and back; also a directory
python tools/convert.py lora.safetensors -o folder --to peft              PEFT's directories
python tools/convert.py lora.pt -o lora.safetensors                       adapters, PFG, embeddings
python tools/convert.py model_folder -o model.safetensors                 diffusers -> one file
python tools/convert.py model.safetensors -o model_folder                 and back
python tools/convert.py pose_folder -o pose.safetensors                   a ControlNet
python tools/convert.py pose.safetensors -o pose_folder -m <base model>   and back
python tools/convert.py model.ckpt -o model.safetensors                   no code in it is run

Metadata is kept where the form has a place for it. Nothing is overwritten.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.adapter_forms import is_kohya, is_peft, to_kohya, to_peft
from tools.command import check_new, make_parser, run_command
from tools.containers import FILES, change_container, shapes_of
from tools.controlnet_files import PREFIX, to_directory, to_single_file
from tools.embedding_forms import convert_embedding, is_embedding
from tools.model_forms import convert_model
from tools.tensor_listing import list_tensors

FORMS = ("kohya", "peft")


def convert(
    input: str | Path,
    output: str | Path,
    *,
    to: str | None = None,
    model: str | Path | None = None,
    dtype: str | None = None,
) -> str:
    """Write `input` in the form that `output`'s ending, and of an adapter `to`, say.

    Args:
        to: of an adapter, whose names: `kohya`, or `peft` for diffusers and PEFT. None turns PEFT's
            into kohya's, and else changes the container only.
        model: the base model that a ControlNet, or an adapter of no published size, is for.
        dtype: fp32, fp16 or bf16; None keeps the precision.

    Returns:
        What was written, in a few words.

    Raises:
        ValueError: the input is of no known form, this can't be done with it, or `output` exists.
    """
    source, target = Path(input), Path(output)
    model = None if model is None else str(model)
    check_new(target)
    if to is not None and to not in FORMS:
        raise ValueError(f"to: {to!r} is not one of {', '.join(FORMS)}")
    if not source.exists():
        raise ValueError(f"{source}: no such file or directory")
    as_file = target.suffix in FILES
    kind = _kind(source)
    if kind == "model" and not (as_file and source.is_file()):
        return f"{target}: {convert_model(source, target, dtype=dtype)}"
    if kind == "controlnet" and source.is_dir():
        count = to_single_file(source, target, dtype=dtype)
    elif kind == "controlnet" and not as_file:
        if model is None:
            raise ValueError(f"{source}: give the base model that the ControlNet is for (--model)")
        count = to_directory(source, target, model=model, dtype=dtype)
    elif not as_file and not (kind in FORMS and to == "peft"):
        raise ValueError(f"{target}: this is written as a file; end its name with .safetensors")
    elif kind == "embedding":
        count = convert_embedding(source, target, dtype=dtype)
        return f"{target}: {count} vectors"
    elif kind in FORMS:
        count = _convert_adapter(source, target, kind, to=to, model=model, dtype=dtype)
    else:
        count = change_container(source, target, dtype=dtype)
    return f"{target}: {count} tensors"


def _kind(source: Path) -> str:
    """What a file or directory is: model, controlnet, embedding, kohya or peft; "" for others."""
    if source.is_dir():
        if (source / "model_index.json").is_file():
            return "model"
        return _kind_of_directory(source)
    shapes = shapes_of(source)
    if not shapes and list_tensors(source).widths:
        raise ValueError(f"{source}: is a hypernetwork, which programs read as a .pt alone")
    if is_embedding(source, shapes):
        return "embedding"
    names = [*shapes]
    if any(name.startswith("model.diffusion_model.") for name in names):
        return "model"
    if any(name.removeprefix(PREFIX).startswith("input_hint_block.") for name in names):
        return "controlnet"
    if is_kohya(names):
        return "kohya"
    return "peft" if is_peft(names) else ""


def _kind_of_directory(source: Path) -> str:
    config = source / "config.json"
    if not config.is_file():
        return "peft"
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("_class_name", "ControlNetModel")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config}: can't be read ({error})") from error
    if name != "ControlNetModel":
        advice = "; train with save.format: single_file for one file" if "Autoenc" in name else ""
        raise ValueError(f"{source}: holds {name}, for which there is no other form{advice}")
    return "controlnet"


def _convert_adapter(
    source: Path, target: Path, kind: str, *, to: str | None, model: str | None, dtype: str | None
) -> int:
    wanted = to or "kohya"
    if wanted == kind and source.is_file() and target.suffix:
        if source.suffix == target.suffix and dtype is None:
            other = FORMS[1 - FORMS.index(kind)]
            raise ValueError(f"{source}: has {kind}'s names already; --to {other} gives the others")
        return change_container(source, target, dtype=dtype)
    convert_to = to_kohya if wanted == "kohya" else to_peft
    return convert_to(source, target, model=model, dtype=dtype)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, input="a file or directory", output="the new one", dtype="")
    parser.add_argument("--to", choices=FORMS, help="of an adapter, whose names; default: kohya")
    parser.add_argument(
        "-m", "--model", help="base model of a ControlNet, or of an adapter of no published size"
    )
    options = vars(parser.parse_args(argv))
    return run_command(lambda: convert(options.pop("input"), options.pop("output"), **options))


if __name__ == "__main__":
    sys.exit(main())
