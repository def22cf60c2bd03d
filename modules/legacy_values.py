"""How values of the original sd-trainer's config become today's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules.legacy_keys import ORIGINAL_MODULES
from modules.value_words import show


def own_class(section: str) -> Callable[[str], str | None]:
    """The class of a section, if it is not the original's."""
    return lambda module: None if module == ORIGINAL_MODULES[section] else module


def own_args(section: str) -> Callable[[Any, str], Any]:
    """The arguments of a class that is not the original's."""
    return lambda args, module: own_class(section)(module) and args


def trained_base(
    train_unet: bool | None, encoder: bool | None, up_only: bool | None, *networks: Any
) -> list[str] | None:
    """A text encoder is trained through the network, if there is one."""
    network = networks[0]
    if train_unet is None:
        train_unet = not any(networks)
    parts = ["unet.up_blocks" if up_only else "unet"] if train_unet else []
    return [*parts, *(["text_encoders"] if encoder and not network else [])] or None


def side_inputs(path: Any, pfg: bool, control: bool, *sections: Any) -> dict[str, str] | None:
    has_pfg, has_controlnet = sections
    kinds = {"pfg": "npz"} if pfg or has_pfg else {}
    return (kinds | ({"control": "image"} if control or has_controlnet else {})) or None


def adapter_class(module: str, kind: str | None) -> str:
    if module != ORIGINAL_MODULES["network"]:
        return module
    return "networks.loha.LoHa" if kind else "networks.lora.LoRA"


def adapter_targets(
    args: Any, module: str, conv_rank: Any, encoder: bool | None, up_only: bool | None
) -> list[str] | None:
    """The original also adapted the layers through which a residual block gets the timestep."""
    if module != ORIGINAL_MODULES["network"]:
        return None
    unet = "unet.up_blocks" if up_only else "unet"
    targets = [unet] if conv_rank else [unet, f"{unet}.*.time_emb_proj"]
    return [*targets, *(["text_encoders"] if encoder else [])]


def objective(v_prediction: bool | None) -> str | None:
    if v_prediction is None:
        return None
    return f"modules.objectives.{'VPrediction' if v_prediction else 'Epsilon'}"


def timestep_range(text: str | None) -> list[float] | None:
    if text is None:
        return None
    numbers = _numbers(text)
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] <= 1:
        raise ValueError(f"{show(text)} is no range of steps; write two parts of 1, as '0.0,0.5'")
    return None if numbers == [0, 1] else numbers


def warmup_ratio(schedule: str | None) -> float | None:
    return None if schedule in (None, "constant") else 0.05


def learning_rate(
    rate: str | float | None,
    trained_unet: bool | None,
    encoder: bool | None,
    up_only: bool | None,
    *networks: Any,
) -> float | dict[str, float] | None:
    """One rate, or the text encoder's and that of all else, as far as both are trained."""
    if rate is None:
        return None
    numbers = _numbers(str(rate))
    if len(numbers) not in (1, 2) or min(numbers) < 0:
        raise ValueError(
            f"{show(rate)} is no learning rate; write a number, or that of the text encoder and "
            "that of the UNet as '5e-6,1e-5'"
        )
    network = networks[0]
    base = trained_base(trained_unet, encoder, up_only, *networks) or []
    text = encoder and (network is None or network.train is not False)
    others = any(section is not None and section.train is not False for section in networks)
    if not text or numbers[0] == numbers[-1]:
        return numbers[-1]
    if not others and base == ["text_encoders"]:
        return numbers[0]
    return {"text_encoders": numbers[0], "unet": numbers[-1]}


def batch_size(size: int | None, repeat: int) -> int | None:
    """The original cut it down to a multiple of the repeats."""
    if size is None or repeat < 1:
        return size
    return size // repeat * repeat or size


def passes(epochs: int | None, repeat: int, test_steps: int | None) -> int | None:
    """A pass over the dataset counted as so many epochs as there were repeats."""
    if epochs is None or (test_steps or 0) > 0:
        return None
    return math.ceil(epochs / max(repeat, 1))


def every_epochs(epochs: int | None, steps: int | None, repeat: int) -> int | None:
    return None if steps is not None else passes(epochs, repeat, None)


def precision(amp: bool | str | None) -> str | None:
    if amp is None or isinstance(amp, bool):
        return {None: None, True: "fp16", False: "no"}[amp]
    names = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16"}
    if amp not in names:
        raise ValueError(f"{show(amp)} is not one of 'bfloat16', 'float16', true, false")
    return names[amp]


def run_name(output: str | None) -> str | None:
    return None if output is None else Path(output).name


def run_directory(output: str | None) -> str | None:
    """The original made folders of an output name with slashes."""
    folder = Path(output or "").parent
    return None if folder == Path() else (Path("output") / folder).as_posix()


def side(position: int) -> Callable[[str | int], int]:
    """Width (0) or height (-1) of `width,height`, or of a number for both."""

    def read(resolution: str | int) -> int:
        numbers = _numbers(str(resolution))
        if len(numbers) not in (1, 2) or any(n < 1 or n != int(n) for n in numbers):
            raise ValueError(f"{show(resolution)} is no size; write width and height as '640,896'")
        return int(numbers[position])

    return read


def repeated(prompt: str | None, count: int) -> list[str] | None:
    """The original drew one prompt so many times, each with a seed of its own."""
    return None if prompt is None else [prompt] * count


def above_zero(number: int | None) -> int | None:
    return number if number is not None and number > 0 else None


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []
