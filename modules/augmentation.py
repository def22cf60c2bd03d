"""Augmentation: what may be done to images at random, and what is drawn for one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modules.color_shift import ColorShift
from modules.transform import Transform

_COLORS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far images are changed at random before they are trained on.

    Raises:
        ValueError: an argument is out of range; lists all that are.
    """

    flip: float = 0.0
    """Probability of mirroring an image left to right."""
    crop_jitter: float = 0.0
    """Greatest part of the sides that a cut leaves out; it is then scaled back."""
    rotation: float = 0.0
    """Greatest angle in degrees, either way; no corner stays empty."""
    color_jitter: float | Sequence[float] = 0.0
    """Greatest change of brightness, contrast and saturation, as part of them, and of hue, in parts
    of the circle. One number is that of the first three; the hue then stays."""

    def __post_init__(self) -> None:
        if faults := list(self._find_faults()):
            raise ValueError("; ".join(faults))

    def draw(self, rng: np.random.Generator) -> Transform:
        """Draw what is done to an image this time."""
        # All of them, used or not: a setting that is changed leaves what others draw as it was.
        mirrored, size, right, down, turn = rng.random(5)
        colors = rng.random(4)
        order = tuple(rng.permutation(4).tolist())
        zoom = 1 - self.crop_jitter * size
        factors = [
            1 + jitter * (2 * part - 1)
            for jitter, part in zip(self._colors(), colors.tolist(), strict=True)
        ]
        return Transform(
            is_flipped=bool(mirrored < self.flip),
            zoom=float(zoom),
            shift=(float(2 * right - 1), float(2 * down - 1)),
            angle=float(self.rotation * (2 * turn - 1)),
            color=ColorShift(
                brightness=factors[0],
                contrast=factors[1],
                saturation=factors[2],
                hue=factors[3] - 1,
                order=order,
            ),
        )

    def changes(self) -> list[str]:
        """Name the settings that change something."""
        names = ("flip", "crop_jitter", "rotation")
        changed = [name for name in names if getattr(self, name)]
        return [*changed, "color_jitter"] if any(self._colors()) else changed

    def _colors(self) -> tuple[float, ...]:
        """Greatest changes of brightness, contrast, saturation and hue."""
        if isinstance(self.color_jitter, Sequence):
            return tuple(self.color_jitter)
        return (self.color_jitter, self.color_jitter, self.color_jitter, 0.0)

    def _find_faults(self) -> Iterator[str]:
        if not 0 <= self.flip <= 1:
            yield f"flip: {self.flip} is no probability; use 0 to 1, 0.5 is usual"
        if not 0 <= self.crop_jitter <= 0.5:
            yield (
                f"crop_jitter: {self.crop_jitter} is not within 0 and 0.5; 0.1 cuts 90 to 100 % "
                "of a side"
            )
        if not 0 <= self.rotation <= 45:
            yield f"rotation: {self.rotation} is not within 0 and 45 degrees; 5 is usual"
        colors = self._colors()
        if len(colors) != 4:
            yield (
                f"color_jitter: has {len(colors)} numbers; give one, or four: {', '.join(_COLORS)}"
            )
            return
        for name, jitter, most in zip(_COLORS, colors, (1, 1, 1, 0.5), strict=True):
            if not 0 <= jitter <= most:
                yield f"color_jitter: {name} of {jitter} is not within 0 and {most}"
