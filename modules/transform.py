"""What is done to an image, and to all that lies on it, before it is trained on in an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from modules.color_shift import ColorShift
from modules.images import Size, covering_size

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A cut of an image, turned, scaled back to the image's size and mirrored; its colours shifted.

    As it starts it changes nothing. It knows no pixels, so that an image, the guide on it and a
    mask of fewer positions go the same way.
    """

    is_flipped: bool = False
    """Mirrored left to right, after all else."""
    zoom: float = 1.0
    """Side of the cut in parts of the greatest one that has no empty corners."""
    shift: Point = (0.0, 0.0)
    """Where the cut is, right and down: from -1 to 1 within that greatest one."""
    angle: float = 0.0
    """Of the cut in the image, in degrees; the picture turns the other way."""
    color: ColorShift = field(default_factory=ColorShift)
    """What is done to the colours of the image itself."""

    @property
    def is_cut(self) -> bool:
        """Say whether pixels are computed anew, rather than kept or mirrored."""
        return self.zoom != 1 or self.angle != 0

    def picture(self, pixel_values: Tensor) -> Tensor:
        """Return pixels (3, H, W) in [-1, 1], colours and all."""
        moved = self._move(pixel_values, "bicubic").clamp(-1, 1)
        if not self.color.is_any:
            return moved
        return self.color(moved.add_(1).div_(2)).mul(2).sub_(1)

    def follow(self, values: Tensor) -> Tensor:
        """Return a guide or a mask, (C, h, w), as it lies on the picture now."""
        return self._move(values, "bilinear")

    def corner(self, corner: tuple[int, int], *, original: Size, size: Size) -> tuple[int, int]:
        """Return top and left of the crop in the scaled original, from those of the image's crop.

        A cut that is scaled back to the image's `size` (width, height) is a crop of that size from
        the `original` (width, height) scaled up by as much; of one that is turned, the crop with
        the same centre and area counts. In a mirrored picture left is counted from its own edge.
        """
        (width, height), (top, left) = size, corner
        scale, (x, y) = self._cut(width, height)
        new_left = (left + (1 + x - scale) * width / 2) / scale
        new_top = (top + (1 + y - scale) * height / 2) / scale
        if self.is_flipped:
            new_left = covering_size(original, size)[0] / scale - new_left - width
        return max(0, round(new_top)), max(0, round(new_left))

    def geometry(self, row: list[int], *, size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return an image's height and width, and top and left of the crop, from a row of them."""
        height, width, top, left = row
        corner = self.corner((top, left), original=(width, height), size=size)
        return (height, width), corner

    def _move(self, values: Tensor, mode: Literal["bicubic", "bilinear"]) -> Tensor:
        if self.is_cut:
            matrix = torch.tensor([self._matrix(*values.shape[:0:-1])])  # (1, 2, 3)
            places = functional.affine_grid(matrix, [1, *values.shape], align_corners=False)
            values = functional.grid_sample(
                values[None], places, mode=mode, padding_mode="border", align_corners=False
            )[0]
        return values.flip(-1) if self.is_flipped else values

    def _cut(self, width: int, height: int) -> tuple[float, Point]:
        """Return the cut's side in parts of the image's, and its centre; the edges are -1 and 1."""
        sine, cosine = self._turn()
        # A turned rectangle of the image's shape is inside if the box around it is.
        box = width * cosine + height * abs(sine), width * abs(sine) + height * cosine
        greatest = min(width / box[0], height / box[1])
        right, down = (greatest * (1 - self.zoom) * part for part in self.shift)
        centre = (
            cosine * right - sine * down * height / width,
            sine * right * width / height + cosine * down,
        )
        return greatest * self.zoom, centre

    def _matrix(self, width: int, height: int) -> list[list[float]]:
        """Map a place in the result to one in the image; the edges of both are -1 and 1."""
        sine, cosine = self._turn()
        scale, (x, y) = self._cut(width, height)
        return [
            [scale * cosine, -scale * sine * height / width, x],
            [scale * sine * width / height, scale * cosine, y],
        ]

    def _turn(self) -> Point:
        return math.sin(math.radians(self.angle)), math.cos(math.radians(self.angle))
