"""What is learned of more than pictures and captions: features, guides, masks."""

from __future__ import annotations

from bench.quality_side_inputs import FEATURE_COUNT
from bench.quality_tasks import FEATURES, GUIDES, MARKED, MASKED
from bench.recipes.recipe import Recipe, locon

SIDE_INPUTS = {
    "pfg": Recipe(
        title="PFG with a UNet LoRA, empty captions",
        task=FEATURES,
        steps=800,
        batch_size=16,
        networks={
            "pfg": {
                "module": "networks.pfg.PFG",
                "args": {"input_size": FEATURE_COUNT, "num_tokens": 4, "dropout": 0.1},
            },
            "lora": locon(targets=["unet"]),
        },
        dataset={"prompt": "", "extras": {"pfg": "npz"}},
    ),
    "controlnet": Recipe(
        title="ControlNet",
        task=GUIDES,
        steps=800,
        learning_rate=1e-3,
        batch_size=16,
        networks={"controlnet": {"module": "networks.controlnet.ControlNet", "args": {}}},
        dataset={"caption_dropout": 0.1, "extras": {"control": "image"}},
    ),
    "masked": Recipe(
        title="LoCon, mark masked out",
        task=MASKED,
        networks={"locon": locon()},
        dataset={"caption_dropout": 0.1, "mask": True},
    ),
    "unmasked": Recipe(title="LoCon, mark not masked", task=MARKED, networks={"locon": locon()}),
}
