"""Architectures for benchmarks that are tested: they train in no time."""

from __future__ import annotations

from dataclasses import replace

from bench.training_models import ARCHITECTURES, Architecture

SMALL_UNET = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "sample_size": 8,
}
SMALL_VAE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
}
SMALL_SDXL = Architecture(
    published="sdxl",
    latent_size=8,
    changes={
        "unet": {
            **SMALL_UNET,
            "cross_attention_dim": 64,
            "transformer_layers_per_block": 1,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 32,
        },
        "vae": SMALL_VAE,
        "text_encoder": SMALL_TEXT,
        "text_encoder_2": SMALL_TEXT,
    },
)
SMALL = replace(
    ARCHITECTURES["reduced"],
    latent_size=8,
    changes={"unet": {**SMALL_UNET, "cross_attention_dim": 64}},
)
