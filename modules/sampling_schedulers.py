"""Samplers: diffusers' schedulers over a model's own schedule of noise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers

from modules.sampler_names import SamplerName


@dataclass(frozen=True)
class Solver:
    """A scheduler's class in diffusers, and what it is made with besides the schedule."""

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def accepts(self, option: str) -> bool:
        """Whether the scheduler has this setting."""
        return option in inspect.signature(getattr(diffusers, self.class_name).__init__).parameters


def _multistep(algorithm: str, *, karras: bool = False) -> Solver:
    # A denoiser here gives no variance, whatever the checkpoint's did.
    options = {"algorithm_type": algorithm, "use_karras_sigmas": karras, "variance_type": None}
    return Solver("DPMSolverMultistepScheduler", options)


SOLVERS: dict[SamplerName, Solver] = {
    "ddim": Solver("DDIMScheduler"),
    "ddpm": Solver("DDPMScheduler", {"variance_type": "fixed_small"}),
    "pndm": Solver("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": Solver("EulerDiscreteScheduler"),
    "euler_a": Solver("EulerAncestralDiscreteScheduler"),
    "heun": Solver("HeunDiscreteScheduler"),
    "dpm_2": Solver("KDPM2DiscreteScheduler"),
    "dpm_2_a": Solver("KDPM2AncestralDiscreteScheduler"),
    "dpmsolver++": _multistep("dpmsolver++"),
    "dpmsolver++_karras": _multistep("dpmsolver++", karras=True),
    "dpmsolver++_sde": _multistep("sde-dpmsolver++"),
    "dpmsolver++_sde_karras": _multistep("sde-dpmsolver++", karras=True),
    "dpmsingle": Solver(
        "DPMSolverSinglestepScheduler", {"lower_order_final": True, "variance_type": None}
    ),
    "unipc": Solver("UniPCMultistepScheduler"),
}
"""DDIM: Song et al. 2020, arXiv:2010.02502. DDPM: Ho et al. 2020, arXiv:2006.11239. PNDM: Liu et
al. 2022, arXiv:2202.09778. Euler, Heun, DPM2: Karras et al. 2022, arXiv:2206.00364, and
crowsonkb/k-diffusion. DPM-Solver++: Lu et al. 2022, arXiv:2211.01095.
UniPC: Zhao et al. 2023, arXiv:2302.04867."""


def check_sampler(scheduler: Any, sampler: SamplerName) -> None:
    """Check that a sampler can do what a model's schedule asks for.

    Raises:
        ValueError: it can't; names those that can.
    """
    lacking = _lacking(scheduler.config, sampler)
    if lacking:
        able = [name for name in SOLVERS if not _lacking(scheduler.config, name)]
        raise ValueError(f"sampler: {sampler} {lacking}; take one of {', '.join(able)}")


def make_sampling_scheduler(scheduler: Any, sampler: SamplerName = "ddim") -> Any:
    """A sampler over a model's schedule; one that ends in noise alone is sampled from its very end.

    Raises:
        ValueError: the sampler can't do what the schedule asks for.
    """
    check_sampler(scheduler, sampler)
    solver, config = SOLVERS[sampler], scheduler.config
    changes = {"timestep_spacing": "trailing"} if config.get("rescale_betas_zero_snr") else {}
    made = getattr(diffusers, solver.class_name)
    return made.from_config(config, **changes, **solver.options)


def step_arguments(scheduler: Any, generators: list[Any]) -> dict[str, Any]:
    """What a scheduler's `step` takes besides the prediction, for images with these generators."""
    given = {
        "generator": generators,
        # Where the image of a step is clipped, the noise has to be the one that leads to it
        # (Dhariwal & Nichol 2021, arXiv:2105.05233, do so too); SD's is not clipped.
        "use_clipped_model_output": any(
            scheduler.config.get(key) for key in ("thresholding", "clip_sample")
        ),
    }
    taken = inspect.signature(scheduler.step).parameters
    return {key: value for key, value in given.items() if key in taken}


def _lacking(config: Mapping[str, Any], sampler: SamplerName) -> str:
    """What the sampler can't do of what a schedule asks for, or nothing."""
    solver = SOLVERS[sampler]
    if config.get("rescale_betas_zero_snr") and not solver.accepts("rescale_betas_zero_snr"):
        return "can't draw from a schedule that ends in noise alone (zero-terminal SNR)"
    clipping = next((key for key in ("thresholding", "clip_sample") if config.get(key)), None)
    if clipping and not solver.accepts(clipping):
        return f"can't keep images within their range, as this model's schedule asks ({clipping})"
    return ""
