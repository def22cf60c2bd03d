"""The kinds of adapters, with settings that make all their shapes on a tiny model."""

from __future__ import annotations

import tiny

from networks.base import Adapter
from networks.loha import LoHa
from networks.lokr import LoKr
from networks.lora import LoRA

EVERYTHING = ("unet", "text_encoders")
PLAIN = {
    "lora": (LoRA, {}),
    "lora-rs": (LoRA, {"rank_stabilized": True}),
    "loha": (LoHa, {}),
    "loha-rs": (LoHa, {"rank_stabilized": True}),
    "lokr": (LoKr, {"factor": 4}),
    "lokr-whole": (LoKr, {"factor": 4, "rank": 100, "conv_rank": 100}),
    "lokr-both": (LoKr, {"factor": 8, "rank": 2, "conv_rank": 1, "decompose_both": True}),
}
DECOMPOSED = {
    f"{name}-{axis}": (PLAIN[name][0], {**PLAIN[name][1], "dora": axis})
    for name in ("lora", "loha", "lokr")
    for axis in ("input", "output")
}
VARIANTS = {**PLAIN, **DECOMPOSED}


def make(variant: str, **options) -> Adapter:
    algorithm, own = VARIANTS[variant]
    common = {"rank": 3, "alpha": 2, "conv_rank": 2, "targets": EVERYTHING}
    return algorithm(**{**common, **own, **options})


def attached(variant: str, **options):
    model = tiny.make_sd()
    network = make(variant, **options)
    network.attach(model)
    return model, network
