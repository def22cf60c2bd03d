"""Small ONNX models with the interface of WD14 taggers, and numpy to check them by.

Every value of the input has a random weight of its own, so that the output depends on the order
of the channels, the range of values, the layout and the colour of the padding.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIDE = 8
FEATURES = 6
TAGS = [
    *[("general", 9), ("sensitive", 9), ("questionable", 9), ("explicit", 9)],
    *[("1girl", 0), ("long_hair", 0), ("^_^", 0), ("(o)_(o)", 0), ("blue_sky", 0), ("solo", 0)],
    *[("hatsune_miku", 4), ("saber_(fate)", 4)],
]
Tail = Literal["MatMul", "Gemm", "Cast"]


class TinyTagger:
    """sin(pixels @ first) are the features, sigmoid(features @ last + bias) the probabilities."""

    def __init__(self, seed: int = 0, *, side: int = SIDE, features: int = FEATURES) -> None:
        rng = np.random.default_rng(seed)
        size = side * side * 3
        self.side = side
        self.first = (rng.normal(size=(size, features)) / 255 / 2).astype(np.float32)
        self.last = rng.normal(size=(features, len(TAGS))).astype(np.float32)
        self.bias = rng.normal(size=len(TAGS)).astype(np.float32)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return the features of (side, side, 3), BGR, 0..255."""
        return np.sin(pixels.astype(np.float32).reshape(-1) @ self.first)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(self.features(pixels) @ self.last + self.bias)))

    def save(
        self,
        directory: Path,
        *,
        tail: Tail = "MatMul",
        batch: int | str = "batch",
        outputs: tuple[str, ...] = ("probabilities",),
        file: str = "model.onnx",
        tags: str | None = "selected_tags.csv",
    ) -> Path:
        """Write the model and its list of tags into a directory, and return that."""
        directory.mkdir(parents=True, exist_ok=True)
        shape = [batch, self.side, self.side, 3]
        widths = {"embedding": self.first.shape[1]}
        float32 = TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes(tail),
            "tagger",
            [helper.make_tensor_value_info("input", float32, shape)],
            [
                helper.make_tensor_value_info(name, float32, [batch, widths.get(name, len(TAGS))])
                for name in outputs
            ],
            [
                numpy_helper.from_array(array, name)
                for name, array in {
                    "first": self.first,
                    "last": self.last if tail != "Gemm" else np.ascontiguousarray(self.last.T),
                    "bias": self.bias,
                    "flat": np.array([-1, self.side * self.side * 3]),
                }.items()
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 9
        onnx.checker.check_model(model)
        onnx.save(model, directory / file)
        if tags:
            write_tags(directory / tags, TAGS)
        return directory

    def _nodes(self, tail: Tail) -> list[onnx.NodeProto]:
        node = helper.make_node
        nodes = [
            node("Reshape", ["input", "flat"], ["pixels"]),
            node("MatMul", ["pixels", "first"], ["sums"]),
            node("Sin", ["sums"], ["embedding"]),
        ]
        if tail == "Gemm":  # as torch exports a linear layer
            nodes += [node("Gemm", ["embedding", "last", "bias"], ["logits"], transB=1)]
        elif tail == "MatMul":  # as Keras' Dense is converted
            nodes += [
                node("MatMul", ["embedding", "last"], ["products"]),
                node("Add", ["bias", "products"], ["logits"]),
            ]
        else:  # weights that aren't initializers themselves
            nodes += [
                node("Cast", ["last"], ["last_cast"], to=TensorProto.FLOAT),
                node("Identity", ["bias"], ["bias_same"]),
                node("MatMul", ["embedding", "last_cast"], ["products"]),
                node("Add", ["products", "bias_same"], ["logits"]),
            ]
        return [*nodes, node("Sigmoid", ["logits"], ["probabilities"])]


def draw(path: Path, size: tuple[int, int] = (SIDE, SIDE), *, seed: int) -> None:
    """Write an image of random pixels, of a width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def as_seen(path: Path) -> np.ndarray:
    """Return what a tagger of SIDE sees of an image that isn't larger, padded without Pillow."""
    rgb = np.asarray(Image.open(path))
    square = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    top, left = (SIDE - rgb.shape[0]) // 2, (SIDE - rgb.shape[1]) // 2
    square[top : top + rgb.shape[0], left : left + rgb.shape[1]] = rgb
    return square[:, :, [2, 1, 0]]


def write_tags(path: Path, tags: list[tuple[str, int]]) -> None:
    """Write tags, (name, category), as taggers have them."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([i, name, category, 1000 - i] for i, (name, category) in enumerate(tags))
