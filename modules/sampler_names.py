"""Names of the ways to draw an image: ours, which are the field's, and those of other programs."""

from __future__ import annotations

from typing import Literal, get_args

SamplerName = Literal[
    "ddim",
    "ddpm",
    "pndm",
    "euler",
    "euler_a",
    "heun",
    "dpm_2",
    "dpm_2_a",
    "dpmsolver++",
    "dpmsolver++_karras",
    "dpmsolver++_sde",
    "dpmsolver++_sde_karras",
    "dpmsingle",
    "unipc",
]

SAMPLER_NAMES: tuple[SamplerName, ...] = get_args(SamplerName)

SHOWN_NAMES: dict[SamplerName, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "dpmsolver++": "DPM++ 2M",
    "dpmsolver++_karras": "DPM++ 2M Karras",
    "dpmsolver++_sde": "DPM++ 2M SDE",
    "dpmsolver++_sde_karras": "DPM++ 2M SDE Karras",
    "dpmsingle": "DPM++ 2S",
    "unipc": "UniPC",
}
"""As AUTOMATIC1111 calls them in a picture's text."""


def find_sampler(text: str) -> SamplerName | None:
    """The sampler that a name means, ours, AUTOMATIC1111's or with k-diffusion's `k_`, if any."""
    wanted = text.strip().lower()
    for name in SAMPLER_NAMES:
        if wanted in (name, f"k_{name}", SHOWN_NAMES[name].lower()):
            return name
    return None
