"""All families of models and all kinds of networks, small, for tests that run each with each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tiny
import tiny_if
import tiny_inpaint

IMAGES = "modules.dataset.ImageDataset"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family: how a random model is made, what it trains on, what it refuses."""

    make: Callable[..., Any]
    dataset: str = "modules.dataset.LatentDataset"
    refuses: Mapping[str, str] = field(default_factory=dict)  # network -> message
    learns_noise: bool = True
    """Whether a tiny one can learn four pictures of noise; 3,072 pixels each are too many."""


FAMILIES = {
    "sd1": Family(make=tiny.make_sd),
    "sd2": Family(make=partial(tiny.make_sd, prediction_type="v_prediction", sd2=True)),
    "sdxl": Family(make=tiny.make_sdxl),
    "sd1_inpainting": Family(make=tiny_inpaint.make_sd, dataset=IMAGES),
    "sdxl_inpainting": Family(make=tiny_inpaint.make_sdxl, dataset=IMAGES),
    "if": Family(
        make=tiny_if.make_if,
        dataset=IMAGES,
        refuses={"controlnet": "diffusers has no ControlNet for this model's UNet"},
        learns_noise=False,  # its own test has plain pictures
    ),
}

BOTH = ["unet", "text_encoders"]
NETWORKS: dict[str, dict] = {
    "lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "targets": BOTH}},
    "locon": {"module": "networks.lora.LoRA", "args": {"rank": 2, "conv_rank": 2}},
    "loha": {"module": "networks.loha.LoHa", "args": {"rank": 2, "conv_rank": 2, "targets": BOTH}},
    "lokr": {"module": "networks.lokr.LoKr", "args": {"rank": 2, "conv_rank": 2, "targets": BOTH}},
    "dora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "conv_rank": 2, "dora": "input"}},
    "controlnet": {"module": "networks.controlnet.ControlNet"},
    "pfg": {"module": "networks.pfg.PFG", "args": {"input_size": 12, "num_tokens": 2}},
    "textual_inversion": {
        "module": "networks.textual_inversion.TextualInversion",
        "args": {"tokens": {"<thing>": {"init": "cat", "vectors": 2}}},
    },
    "hypernetwork": {"module": "networks.hypernetwork.Hypernetwork"},
}
