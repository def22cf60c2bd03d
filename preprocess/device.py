"""The device and the precision in which models of preprocess/ compute."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(name: str | None) -> torch.device:
    """Return the device of that name, by default the accelerator if there is one, else the CPU.

    Raises:
        ValueError: it can't be used.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {name!r} can't be used ({reason})") from error


def choose_dtype(name: str) -> torch.dtype:
    """Return the precision of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype: {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]
