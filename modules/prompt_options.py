"""One prompt of a validation image with settings of its own: in a line, or as a mapping.

The line's grammar is that of kohya-ss/sd-scripts: `a cat --n blurry --w 512 --h 768 --d 1`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.hints import nearest
from modules.sampler_names import SAMPLER_NAMES, SamplerName, find_sampler
from modules.value_words import quote, show

_OPTION = re.compile(r"(?:^|\s)--(?=[A-Za-z])")


@dataclass(frozen=True, kw_only=True)
class SamplePrompt:
    """A prompt and what it has of its own; None takes what the sampler says for all."""

    prompt: str
    where: str = ""  # for messages: "prompts.txt, line 3"
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: SamplerName | None = None
    control_image: str | None = None
    multiplier: float | None = None


class PromptFaults(Exception):
    """What is wrong with one prompt, each fault in a line of its own."""

    def __init__(self, faults: list[str]):
        super().__init__("\n".join(faults))
        self.faults = faults


def parse_line(line: str, where: str) -> SamplePrompt:
    """A prompt of a line with options behind it.

    Raises:
        PromptFaults: an option is not known, or has a value that it can't have.
    """
    prompt, *parts = _OPTION.split(line)
    options: list[tuple[str, Any]] = []
    for part in parts:
        name, _, value = part.strip().partition(" ")
        options.append((name, value.strip()))
    return _make_prompt(prompt.strip(), options, where, mark="--")


def parse_mapping(values: Mapping[str, Any], where: str) -> SamplePrompt:
    """A prompt of a mapping, under our names or those of other programs.

    Raises:
        PromptFaults: a name is not known, or a value is none that it can have.
    """
    options = [(str(name), value) for name, value in values.items() if name != "prompt"]
    prompt = values.get("prompt")
    if not isinstance(prompt, str):
        given = "is missing" if "prompt" not in values else f"is {show(prompt)}, not text"
        raise PromptFaults([f"{where}: prompt {given}"])
    return _make_prompt(prompt.strip(), options, where, mark="")


def _make_prompt(
    prompt: str, options: list[tuple[str, Any]], where: str, *, mark: str
) -> SamplePrompt:
    faults: list[str] = []
    found: dict[str, Any] = {}
    for name, value in options:
        field = _FIELDS.get(name.lower())
        if field is None:
            known = [word for word in _FIELDS if len(word) > 2]
            near = nearest(name, known) or f"; known: {_listed(mark)}"
            faults.append(f"{where}: there is no option {mark}{name}{near}")
            continue
        problem = None
        try:
            converted = _READERS[field](value)
        except ValueError as error:
            problem = str(error)
        if problem is None and field in found and found[field] != converted:
            problem = f"sets {field} a second time; keep one"
        if problem is not None:
            faults.append(f"{where}: {mark}{name} {problem}")
            continue
        found[field] = converted
    if faults:
        raise PromptFaults(faults)
    return SamplePrompt(prompt=prompt, where=where, **found)


def _listed(mark: str) -> str:
    """The options as one would write them in a line, or in a mapping."""
    words = [names[0] if mark else field for field, names in _NAMES.items()]
    return ", ".join(f"{mark}{word}" for word in words)


def _whole(low: int) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        try:
            if isinstance(value, bool):
                raise TypeError
            number = int(value) if isinstance(value, str) else value
            if number != int(number) or number >= 2**63:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"wants a whole number, not {show(value)}") from None
        if number < low:
            raise ValueError(f"{number} is too small; it must be at least {low}")
        return int(number)

    return read


def _seed(value: Any) -> int | None:
    """A seed; -1, which elsewhere means a random one, takes that of the prompt's place."""
    number = _whole(-1)(value)
    return None if number == -1 else number


def _number(low: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"wants a number, not {show(value)}")
        if number < low:
            raise ValueError(f"{number:g} is too small; it must be at least {low:g}")
        return number

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"wants text, not {show(value)}")
    return value


def _sampler(value: Any) -> SamplerName:
    found = find_sampler(_text(value))
    if found is None:
        near = nearest(value, SAMPLER_NAMES) or f"; known: {', '.join(SAMPLER_NAMES)}"
        raise ValueError(f"{quote(value)} is no sampler{near}")
    return found


def _image(value: Any) -> str:
    path = _text(value)
    try:
        is_file = Path(path).is_file()
    except (OSError, ValueError):  # too long, or with a character that no path has
        is_file = False
    if not is_file:
        raise ValueError(f"{quote(path)} is not a file")
    return path


_NAMES: dict[str, tuple[str, ...]] = {
    "negative_prompt": ("n", "neg"),
    "width": ("w",),
    "height": ("h",),
    "seed": ("d",),
    "guidance_scale": ("l", "g", "cfg", "cfg_scale", "scale"),
    "num_inference_steps": ("s", "steps", "sample_steps"),
    "sampler": ("ss", "sample_sampler"),
    "control_image": ("cn", "controlnet_image", "ctrl_img"),
    "multiplier": ("m", "network_multiplier"),
}
"""Field -> its other names: of a line in sd-scripts, and of mappings and other programs."""

_FIELDS = {word: field for field, names in _NAMES.items() for word in (field, *names)}

_READERS: dict[str, Callable[[Any], Any]] = {
    "negative_prompt": _text,
    "width": _whole(1),
    "height": _whole(1),
    "seed": _seed,
    "guidance_scale": _number(0),
    "num_inference_steps": _whole(1),
    "sampler": _sampler,
    "control_image": _image,
    "multiplier": _number(-math.inf),
}
