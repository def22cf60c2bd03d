"""Brightness, contrast, saturation and hue, as torchvision's ColorJitter defines them.

torchvision, BSD-3-Clause: transforms.ColorJitter and transforms.functional of torchvision 0.20.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class ColorShift:
    """Change an image's colours; as it starts it changes nothing."""

    brightness: float = 1.0
    """Factor of all values."""
    contrast: float = 1.0
    """Factor of the distance from the image's mean grey."""
    saturation: float = 1.0
    """Factor of the distance from each pixel's grey."""
    hue: float = 0.0
    """Turn of the hue, in parts of the circle."""
    order: tuple[int, ...] = (0, 1, 2, 3)
    """In which order they are done, by their number above."""

    @property
    def is_any(self) -> bool:
        """Say whether there is anything to change."""
        return (self.brightness, self.contrast, self.saturation, self.hue) != (1, 1, 1, 0)

    def __call__(self, image: Tensor) -> Tensor:
        """Return an image (3, H, W) in 0..1; what leaves that range is cut off after each step."""
        steps = (self._brighten, self._contrast, self._saturate, self._turn_hue)
        for number in self.order:
            image = steps[number](image)
        return image

    def _brighten(self, image: Tensor) -> Tensor:
        return (image * self.brightness).clamp_(0, 1) if self.brightness != 1 else image

    def _contrast(self, image: Tensor) -> Tensor:
        return _blend(image, _grey(image).mean(), self.contrast) if self.contrast != 1 else image

    def _saturate(self, image: Tensor) -> Tensor:
        return _blend(image, _grey(image), self.saturation) if self.saturation != 1 else image

    def _turn_hue(self, image: Tensor) -> Tensor:
        return turn_hue(image, self.hue) if self.hue else image


def turn_hue(image: Tensor, turn: float) -> Tensor:
    """Turn the hue of an image (3, H, W) in 0..1 by parts of the circle.

    Value and chroma of HSV stay as they are (Smith 1978, Color gamut transform pairs).
    """
    red, green, blue = image
    value = image.amax(dim=0)  # (H, W)
    chroma = value - image.amin(dim=0)
    divisor = chroma.clamp(min=1e-8)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths += 6 * turn
    result = torch.empty_like(image)
    for channel, start in enumerate((5, 3, 1)):
        place = (sixths + start).remainder_(6)
        part = torch.minimum(place, 4 - place).clamp_(0, 1)
        torch.sub(value, part.mul_(chroma), out=result[channel])
    return result


def _grey(image: Tensor) -> Tensor:
    red, green, blue = image
    return (_GREY[0] * red).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])  # (H, W)


def _blend(image: Tensor, other: Tensor, part: float) -> Tensor:
    return (part * image).add_(other, alpha=1 - part).clamp_(0, 1)
