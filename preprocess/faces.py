"""Faces in pictures, found by a cascade of OpenCV (Viola and Jones, 2001)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modules.images import Size

Box = tuple[int, int, int, int]  # left, top, right, bottom

DEFAULT_CASCADE = "haarcascade_frontalface_default.xml"
"""OpenCV's own, for photographs."""

_ANIME = (
    "for drawn faces there is lbpcascade_animeface.xml by nagadomi, at "
    "https://github.com/nagadomi/lbpcascade_animeface"
)


def find_cascade(cascade: str | Path | None) -> Path:
    """Return the file of a cascade: a path, or the name of one that comes with OpenCV.

    Raises:
        ValueError: there is none, or OpenCV can't read it or isn't there.
    """
    own = Path(_opencv().data.haarcascades)
    path = own / DEFAULT_CASCADE if cascade is None else Path(cascade)
    if not path.is_file() and (own / path).is_file():
        path = own / path
    if not path.is_file():
        raise ValueError(
            f"cascade: {cascade} is not a file, nor a cascade that comes with OpenCV in {own}; "
            f"{_ANIME}"
        )
    load_cascade(str(path))
    return path


@lru_cache(maxsize=1)
def load_cascade(path: str) -> Any:
    """Load a cascade, once in each process.

    Raises:
        ValueError: OpenCV can't read it.
    """
    opencv = _opencv()
    opencv.setNumThreads(1)  # images are spread over processes
    classifier = opencv.CascadeClassifier()
    try:
        if classifier.load(path):
            return classifier
        reason = "it is empty"
    except opencv.error as error:
        reason = str(error).strip().splitlines()[0]
    raise ValueError(f"cascade: OpenCV can't read {path} as a cascade ({reason}); {_ANIME}")


def find_faces(
    image: Image.Image, classifier: Any, *, min_neighbors: int, min_size: int
) -> list[Box]:
    """Return the boxes of the faces in an image.

    A box is one that at least `min_neighbors` others confirm, with sides of `min_size` or more.
    """
    grey = _opencv().equalizeHist(np.asarray(image.convert("L")))
    found = classifier.detectMultiScale(
        grey, scaleFactor=1.1, minNeighbors=min_neighbors, minSize=(min_size, min_size)
    )
    return [(int(x), int(y), int(x + w), int(y + h)) for x, y, w, h in found]


def widen(box: Box, margin: float, size: Size) -> Box:
    """Return a box with a margin, in parts of its sides, within an image of `size`."""
    left, top, right, bottom = box
    x, y = round(margin * (right - left)), round(margin * (bottom - top))
    width, height = size
    return max(0, left - x), max(0, top - y), min(width, right + x), min(height, bottom + y)


def _opencv() -> Any:
    line = 'pip install "opencv-python-headless<5"'
    try:
        import cv2
    except ImportError as error:
        raise ValueError(f"faces are found with OpenCV, which isn't installed; {line}") from error
    if not hasattr(cv2, "CascadeClassifier"):
        raise ValueError(f"OpenCV {cv2.__version__} has no cascades any more; {line}")
    return cv2
