"""A random DeepFloyd IF of the real architecture, under a million parameters."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from tiny import WORDS
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from modules.models.deepfloyd_if import DeepFloydIF


def make_t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer in which each of WORDS is one token."""
    letters = [chr(code) for code in range(33, 127)]
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in special]
    pieces += [(token, -6.0) for token in ("▁", *letters)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS if word != "a"] + [("▁a", -2.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def make_if(*, seed: int = 0, **unet_options) -> DeepFloydIF:
    """Stage I's shape with random weights."""
    torch.manual_seed(seed)
    tokenizer = make_t5_tokenizer()
    width = 24
    options = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "norm_num_groups": 4,
        "cross_attention_dim": 32,
        "cross_attention_norm": "group_norm",
        "attention_head_dim": 8,
        "act_fn": "gelu",
        "time_embedding_act_fn": "gelu",
        "resnet_time_scale_shift": "scale_shift",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "encoder_hid_dim": width,
        "encoder_hid_dim_type": "text_proj",
    }
    unet = UNet2DConditionModel(**{**options, **unet_options}).requires_grad_(False)
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=128,
            d_model=width,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=3,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
        )
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    return DeepFloydIF(
        unet=unet.eval(), text_encoder=encoder.eval(), tokenizer=tokenizer, scheduler=scheduler
    )
