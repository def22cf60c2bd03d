"""What torch can do here: its build, the cards, precision, attention kernels."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

from tools.findings import Finding, first_line

_KERNELS = {
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "math": "MATH",
}
"""Of scaled_dot_product_attention, by diffusers' and our names."""


def find_driver() -> Iterator[Finding]:
    """Yield what the NVIDIA driver says of its cards, also without torch."""
    query = "--query-gpu=name,driver_version,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except FileNotFoundError:
        yield Finding("ok", "driver", "no NVIDIA driver (nvidia-smi) here")
        return
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()
    if done.returncode:
        text = f"nvidia-smi fails: {said[0] if said else f'status {done.returncode}'}"
        yield Finding("problem", "driver", text, "reinstall the NVIDIA driver, then restart")
        return
    for line in said:
        name, version, memory = (part.strip() for part in line.rsplit(",", 2))
        yield Finding("ok", "driver", f"{version}, {name}, {memory}")


def find_torch() -> Iterator[Finding]:
    """Yield torch's build and whether it can compute on the cards that are here."""
    import torch

    from modules.hardware import build_faults

    built: Any = torch.version  # `hip` is not in all builds
    kind = f"CUDA {built.cuda}" if built.cuda else f"ROCm {built.hip}" if built.hip else "CPU only"
    yield Finding("ok", "torch", f"{torch.__version__}, built for {kind}")
    for fault in build_faults():
        text, _, line = fault.rpartition("; to use the card: ")
        yield Finding("problem", "torch", text, line)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield from _find_card(number)
    elif torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        yield Finding("ok", "device", str(device))
    elif built.cuda:
        yield from _find_hidden_card()
    else:
        yield Finding("warning", "device", "CPU: training is slow")


def _find_hidden_card() -> Iterator[Finding]:
    """Yield why a build with CUDA has no card: driver, container, CUDA_VISIBLE_DEVICES."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:
        reason = first_line(error)
    else:
        reason = "no card is visible"
    has_driver = any(one.state == "ok" and "," in one.text for one in find_driver())
    state = "problem" if has_driver else "warning"
    hint = "; see the driver's version and CUDA_VISIBLE_DEVICES" if has_driver else ""
    yield Finding(state, "device", f"CPU, training is slow; CUDA says: {reason}{hint}")


def _find_card(number: int) -> Iterator[Finding]:
    """Yield a card's memory and capability, whether a kernel runs, and whether bf16 does."""
    import torch

    from modules.hardware import precision_fault

    name = f"cuda:{number}"
    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    text = (
        f"{properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, compute "
        f"capability {properties.major}.{properties.minor}"
    )
    try:
        torch.ones(8, device=name).square().sum().item()
    except RuntimeError as error:
        yield Finding("problem", name, f"{text}; a first computation fails: {first_line(error)}")
        return
    yield Finding("ok", name, text)
    with torch.cuda.device(number):
        fault = precision_fault("bf16")
    if fault:
        text = fault.removeprefix("train.mixed_precision: ")
        yield Finding("warning", name, text.replace("use fp16", "set train.mixed_precision: fp16"))
    else:
        yield Finding("ok", name, "bf16")


def find_attention() -> Iterator[Finding]:
    """Yield which attention kernels run here, forward and backward, on a tiny tensor."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    works = [name for name, backend in _KERNELS.items() if _runs(backend, device)]
    text = f"sdpa on {device}: {', '.join(works) or 'none'}"
    if not works:
        yield Finding("problem", "attention", text)
    elif works == ["math"]:
        yield Finding("warning", "attention", f"{text} only, slow and with much memory")
    else:
        yield Finding("ok", "attention", text)


def find_xformers() -> Iterator[Finding]:
    """Yield whether `train.attention: xformers` would run; sdpa does without it."""
    import torch

    try:
        from xformers.ops import memory_efficient_attention
    except Exception as error:
        yield Finding("ok", "xformers", f"not usable ({first_line(error)}); sdpa is used")
        return
    if not torch.cuda.is_available():
        yield Finding("ok", "xformers", "needs CUDA; sdpa is used")
        return
    tensor = torch.randn(1, 64, 2, 32, device="cuda", dtype=torch.float16, requires_grad=True)
    try:  # (batch, tokens, heads, features)
        memory_efficient_attention(tensor, tensor, tensor).sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        text = f"fails here ({first_line(error)}); leave train.attention at sdpa"
        yield Finding("warning", "xformers", text)
        return
    yield Finding("ok", "xformers", "works")


def _runs(backend: str, device: str) -> bool:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    dtype = torch.float16 if device == "cuda" else torch.float32
    tensor = torch.randn(1, 2, 64, 32, device=device, dtype=dtype, requires_grad=True)
    try:  # (batch, heads, tokens, features)
        with sdpa_kernel(getattr(SDPBackend, backend)):
            scaled_dot_product_attention(tensor, tensor, tensor).sum().backward()
    except (RuntimeError, AttributeError):
        return False
    return True
