"""WD14 taggers in ONNX form: images prepared as they want them, and run by onnxruntime."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from preprocess.wd14_files import TaggerFiles

logger = logging.getLogger(__name__)

_SIDE = 448  # of the taggers that don't tell their size
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class WD14:
    """One output of a tagger: probabilities of its tags, or features.

    Raises:
        ValueError: the model's input isn't that of a WD14 tagger.
    """

    def __init__(self, session: Any, *, output: str, name: str) -> None:
        self.name = name
        self._session = session
        self._output = output
        self._input = session.get_inputs()[0]
        shape = self._input.shape
        channels = shape[3] if len(shape) == 4 and isinstance(shape[3], int) else 3
        is_image = len(shape) == 4 and channels == 3 and shape[1] != 3  # the last: (B, 3, H, W)
        if self._input.type != "tensor(float)" or not is_image:
            raise ValueError(
                f"{name}: takes {self._input.type} of shape {shape}, which no WD14 tagger does; "
                "they take float (batch, height, width, 3)"
            )
        self.side = shape[1] if isinstance(shape[1], int) else _SIDE
        self._fixed_batch = shape[0] if isinstance(shape[0], int) else None

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return an RGB image as the tagger wants it: (side, side, 3), BGR, 0..255, uint8.

        It's padded to a square with white, in the middle, and resized.
        """
        square = max(image.size)
        padded = Image.new("RGB", (square, square), "white")
        padded.paste(image, ((square - image.width) // 2, (square - image.height) // 2))
        resized = padded.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(resized)[:, :, ::-1])

    def run(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the output (B, values), float32, of prepared images.

        Raises:
            ValueError: onnxruntime can't run the batch, or the output has another shape.
        """
        batch = np.stack(images).astype(np.float32)  # (B, side, side, 3)
        size = self._fixed_batch or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            missing = size - len(part)
            filled = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
            parts.append(self._run_part(filled)[: len(part)])
        return np.concatenate(parts)

    def _run_part(self, batch: np.ndarray) -> np.ndarray:
        try:
            (values,) = self._session.run([self._output], {self._input.name: batch})
        except Exception as error:  # onnxruntime's errors have no class in common
            raise ValueError(
                f"{self.name}: onnxruntime can't run a batch of {len(batch)} "
                f"({first_line(error)}); if memory is short, use a smaller --batch_size"
            ) from error
        if values.ndim != 2 or len(values) != len(batch):
            raise ValueError(
                f"{self.name}: output {self._output!r} has shape {values.shape} for a batch of "
                f"{len(batch)}, which is not (batch, values); use another tagger"
            )
        return values.astype(np.float32)


def load_tagger(files: TaggerFiles, *, device: str | None = None) -> WD14:
    """Load a tagger whose output is the probability of each of its tags.

    Raises:
        ValueError: it can't be loaded or is no WD14 tagger, or `device` can't be used.
    """
    session = open_session(files.model, device=device, name=files.id)
    count = len(files.read_tags())
    outputs = [output for output in session.get_outputs() if output.shape[-1] == count]
    unknown = [output for output in session.get_outputs() if not isinstance(output.shape[-1], int)]
    if not outputs + unknown:
        shapes = ", ".join(str(output.shape) for output in session.get_outputs())
        raise ValueError(
            f"{files.id}: no output has a value for each of the {count} tags in {files.tags}; "
            f"their shapes are {shapes}; use the two files of one tagger"
        )
    return WD14(session, output=(outputs + unknown)[0].name, name=files.id)


def open_session(model: Path | bytes, *, device: str | None, name: str) -> Any:
    """Open a model, a file or its content, with onnxruntime.

    `device` is cpu, cuda or cuda:<index>; CUDA is taken by default if this onnxruntime has it.

    Raises:
        ValueError: `device` can't be used, or onnxruntime doesn't read the model.
    """
    onnxruntime = import_package("onnxruntime")
    providers = _choose_providers(onnxruntime.get_available_providers(), device)
    is_on_cuda = providers[0] != _CPU
    if is_on_cuda:
        onnxruntime.preload_dlls()  # CUDA's libraries from pip's packages, if they are there
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; warnings are of no use to a person
    content = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # as above
        raise ValueError(
            f"{name}: onnxruntime can't load the model ({first_line(error)}); fetch it again"
        ) from error
    if is_on_cuda and _CUDA not in session.get_providers():
        logger.warning("%s: onnxruntime found no CUDA libraries; it runs on the CPU", name)
    return session


def import_package(name: str) -> Any:
    """Import a package that only taggers need.

    Raises:
        ValueError: it can't be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name}: can't be imported ({first_line(error)}); pip install -r requirements.txt"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _choose_providers(available: Sequence[str], device: str | None) -> list[Any]:
    kind, _, index = (device or "").partition(":")
    if kind not in ("", "cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f"device: {device!r} is not cpu, cuda or cuda:<index>")
    if kind == "cuda" and _CUDA not in available:
        raise ValueError(
            f"device: {device!r} can't be used, this onnxruntime has no CUDA; install "
            "onnxruntime-gpu in its place"
        )
    if kind == "cpu" or _CUDA not in available:
        return [_CPU]
    return [(_CUDA, {"device_id": index or "0"}), _CPU]
