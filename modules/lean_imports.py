"""The first import of what training needs, without what it imports for nothing, and quickly."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_QUANTIZERS = ("bitsandbytes", "torchao", "gguf", "optimum.quanto", "modelopt")


def import_diffusers() -> None:
    """Import diffusers' models, but no package for quantized models that is installed beside.

    diffusers imports all of them as soon as they are there; bitsandbytes takes 0.6 s and 45 MiB.
    Each can be imported afterwards as ever. Does nothing if diffusers has been imported before.
    """
    if "diffusers" in sys.modules:
        return
    hidden = [name for name in _QUANTIZERS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: it isn't there
    try:
        importlib.import_module("diffusers.models.unets.unet_2d_condition")
        importlib.import_module("diffusers.quantizers")
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextmanager
def without_collecting() -> Iterator[None]:
    """Keep the garbage collector from a process's first imports, and what they leave from it.

    It would look through a million objects again and again, of which none ever is garbage: 0.7 of
    4.6 s. Does nothing if diffusers has been imported before.
    """
    if "diffusers" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
