"""What one picture is drawn with, and how that stands in its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from modules.files import replacing
from modules.sampler_names import SHOWN_NAMES, SamplerName


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """All that a picture is drawn with; those equal in `shared` can be drawn in one batch."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    sampler: SamplerName
    multiplier: float  # of the networks' own strength

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def shared(self) -> tuple[Any, ...]:
        """What pictures of one batch have in common."""
        return (
            self.size,
            self.num_inference_steps,
            self.guidance_scale,
            self.sampler,
            self.multiplier,
        )


def parameters_text(settings: PictureSettings, *, further: Mapping[str, Any]) -> str:
    """A picture's settings as AUTOMATIC1111 writes them, by which many programs read them.

    The prompt, its negative in a line of its own, then names and values; what is `further` behind.
    """
    values = {
        "Steps": settings.num_inference_steps,
        "Sampler": SHOWN_NAMES[settings.sampler],
        "CFG scale": f"{settings.guidance_scale:g}",
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        **({} if settings.multiplier == 1 else {"Multiplier": f"{settings.multiplier:g}"}),
        **further,
    }
    listed = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items())
    negative = settings.negative_prompt
    return "\n".join(
        [settings.prompt, *([f"Negative prompt: {negative}"] if negative else []), listed]
    )


def read_pngs(folder: Path, count: int) -> list[Image.Image] | None:
    """The pictures 00.png, 01.png, ... of a folder; None if one is missing."""
    files = [folder / f"{number:02d}.png" for number in range(count)]
    if not all(file.is_file() for file in files):
        return None
    return [Image.open(file).convert("RGB") for file in files]


def save_png(image: Image.Image, path: Path, *, parameters: str | None = None) -> None:
    """Write a picture with its settings in the PNG's text; what isn't Latin goes there as UTF-8."""
    info = PngImagePlugin.PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)
    with replacing(path) as temporary:
        image.save(temporary, pnginfo=info)


def _quoted(value: str) -> str:
    """A value in JSON's quotes where it has a character of the list itself."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value
