"""What each prompt's picture is drawn with, once the model and the networks are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from modules.picture_batches import has_strength
from modules.picture_settings import PictureSettings
from modules.prompt_options import SamplePrompt
from modules.sampler_names import SamplerName
from modules.sampling_schedulers import check_sampler

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """What prompts without settings of their own are drawn with."""

    negative_prompt: str
    width: int | None  # None: the model's own
    height: int | None
    seed: int  # of the first prompt; the next has one more
    num_inference_steps: int
    guidance_scale: float
    sampler: SamplerName


def plan_pictures(
    prompts: Sequence[SamplePrompt],
    shared: SharedSettings,
    *,
    model: Any,
    networks: Mapping[str, Any],
) -> list[PictureSettings]:
    """The settings of each prompt's picture.

    Raises:
        ValueError: the model can't draw some of them so, or networks can't be applied so; lists
            all such.
    """
    faults: dict[str, None] = {}  # ordered; what is said of all prompts is said once
    pictures = []
    for number, prompt in enumerate(prompts):
        width, height = _own(prompt.width, shared.width), _own(prompt.height, shared.height)
        sampler = _either(prompt.sampler, shared.sampler)
        where = "" if (width, height) == (shared.width, shared.height) else f"{prompt.where}: "
        try:
            width, height = model.image_size(width, height)
        except ValueError as error:
            faults[f"{where}{error}"] = None
            continue
        try:
            check_sampler(model.scheduler, sampler)
        except ValueError as error:
            faults[f"{prompt.where}: {error}" if prompt.sampler else str(error)] = None
        if prompt.multiplier is not None and not any(map(has_strength, networks.values())):
            faults[f"{prompt.where}: multiplier: there is no network that has a strength"] = None
        pictures.append(
            PictureSettings(
                prompt=prompt.prompt,
                negative_prompt=_either(prompt.negative_prompt, shared.negative_prompt),
                width=width,
                height=height,
                seed=_either(prompt.seed, shared.seed + number),
                num_inference_steps=_either(prompt.num_inference_steps, shared.num_inference_steps),
                guidance_scale=_either(prompt.guidance_scale, shared.guidance_scale),
                sampler=sampler,
                multiplier=_either(prompt.multiplier, 1.0),
            )
        )
    if faults:
        raise ValueError("\n    ".join(faults))
    return pictures


def control_files(
    prompts: Sequence[SamplePrompt], networks: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Each prompt's own control image, by the key of the network that asks for it.

    Raises:
        ValueError: no network asks for one, or it isn't clear which.
    """
    asked = [key for network in networks.values() for key in getattr(network, "requires", ())]
    given = [prompt.where for prompt in prompts if prompt.control_image is not None]
    key = "control" if "control" in asked else asked[0] if len(asked) == 1 else None
    if given and key is None:
        what = f"they ask for {', '.join(asked)}" if asked else "no network asks for one"
        raise ValueError(
            f"{given[0]}: control image: {what}; "
            + ("name the files in sample.extras" if asked else "add a ControlNet, or leave it out")
        )
    return [
        {} if prompt.control_image is None else {str(key): prompt.control_image}
        for prompt in prompts
    ]


def _own(value: int | None, default: int | None) -> int | None:
    return default if value is None else value


def _either(value: Value | None, default: Value) -> Value:
    return default if value is None else value
