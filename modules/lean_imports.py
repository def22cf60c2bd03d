"""The first import of diffusers, without packages that it imports for what is not used here."""

from __future__ import annotations

import importlib
import sys

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
