"""Kinds and options of adapters, each alone."""

from __future__ import annotations

from bench.quality_tasks import POLAROIDS_AMONG_PLAIN
from bench.recipes.recipe import Recipe, locon, lora

ADAPTERS = {
    "lora": Recipe(title="LoRA", networks={"lora": lora()}),
    "locon": Recipe(title="LoCon", networks={"locon": locon()}),
    "loha": Recipe(
        title="LoHa",
        learning_rate=1e-3,
        networks={"loha": locon(kind="loha.LoHa", rank=8, conv_rank=8)},
    ),
    "lokr": Recipe(
        title="LoKr",
        networks={"lokr": locon(kind="lokr.LoKr", factor=4, rank=8, conv_rank=8)},
    ),
    "dora_input": Recipe(
        title="DoRA, input axis", networks={"dora": locon(rank=8, conv_rank=8, dora="input")}
    ),
    "dora_output": Recipe(
        title="DoRA, output axis", networks={"dora": locon(rank=8, conv_rank=8, dora="output")}
    ),
    "rslora": Recipe(
        title="rsLoRA",
        networks={"lora": lora(rank=64, alpha=8, rank_stabilized=True)},
    ),
    "lora_plus": Recipe(
        title="LoRA+", learning_rate=5e-4, networks={"locon": locon(lora_plus_ratio=8)}
    ),
    "dropout": Recipe(
        title="LoCon with dropout of values, ranks and layers",
        networks={"locon": locon(dropout=0.1, rank_dropout=0.1, module_dropout=0.05)},
    ),
    "max_norm": Recipe(title="LoCon, max-norm", networks={"locon": locon(max_norm=1.0)}),
    "blocks": Recipe(
        title="LoCon, ranks and learning rates by block",
        networks={
            "locon": {
                **locon(rank=4, conv_rank=4, blocks={"unet.up_blocks": {"rank": 16}}),
                "learning_rate": {"unet": 1e-3, "unet.up_blocks": 2e-3, "text_encoders": 2e-3},
            }
        },
    ),
    "lora_up_blocks": Recipe(
        title="LoRA on up_blocks only",
        task=POLAROIDS_AMONG_PLAIN,
        steps=1000,
        networks={"lora": locon(targets=["unet.up_blocks"])},
    ),
    "hypernetwork": Recipe(
        title="hypernetwork",
        task=POLAROIDS_AMONG_PLAIN,
        steps=1200,  # it reaches keys and values alone, and takes longer
        learning_rate=1e-3,
        networks={"style": {"module": "networks.hypernetwork.Hypernetwork", "args": {}}},
    ),
}
