"""DeepFloyd IF, stage I: pixels instead of latents, a T5 text encoder, a learned variance.

DeepFloyd Lab 2023, github.com/deep-floyd/IF, after Imagen (Saharia et al. 2022, arXiv:2205.11487).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer
from transformers.models.t5.modeling_t5 import T5Attention

from modules.batch import DenoiserInputs
from modules.models.base import DiffusionModel
from modules.models.fit import check_text_width, check_tokenizer
from modules.models.text_encoder import TextEncoder

PROMPT_LENGTH = 77
"""Tokens of a prompt: T5 takes any number, the UNet was trained with these."""

VOCABULARY_MULTIPLE = 128
"""T5's embedding matrix is filled up to this: 32128 rows for 32100 tokens."""


class DeepFloydIF(DiffusionModel):
    """Stage I, which draws images of 64 pixels that stages II and III enlarge.

    The UNet predicts the noise and, in as many channels again, the variance of a step (Nichol &
    Dhariwal 2021, arXiv:2102.09672). Only the noise is trained: the variance wants the whole
    variational bound, and says little of images at the usual numbers of steps. What was trained of
    the UNet therefore no longer fits its variance, and a saved model is sampled with a fixed one.
    """

    pipeline = "IFPipeline"
    piece_classes: ClassVar = {
        "unet": UNet2DConditionModel,
        "text_encoder": T5EncoderModel,
        "tokenizer": T5Tokenizer,
    }
    absent: ClassVar = {
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "watermarker": [None, None],
        "requires_safety_checker": False,
    }
    adapter_targets: ClassVar = {
        "unet": ("Attention",),
        "text_encoders": ("T5Attention", "T5DenseActDense", "T5DenseGatedActDense"),
    }
    conv_targets: ClassVar = {"unet": ("ResnetBlock2D",)}  # which also scale down and up
    component_prefixes: ClassVar = {"unet": "lora_unet", "text_encoders.0": "lora_te"}

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        text_encoder: T5EncoderModel,
        tokenizer: T5Tokenizer,
        scheduler: DDPMScheduler,
        path: str = "",
    ):
        encoder = TextEncoder(text_encoder, tokenizer, length=PROMPT_LENGTH)
        super().__init__(
            denoiser=unet, text_encoders=[encoder], vae=None, scheduler=scheduler, path=path
        )
        if unet.config.in_channels != 3:
            raise ValueError(
                f"{path}: is a stage of DeepFloyd IF that enlarges images "
                f"({unet.config.in_channels} input channels), which cannot be trained; "
                "take a stage I, such as DeepFloyd/IF-I-M-v1.0"
            )
        _switch_off_dropout(text_encoder)
        check_tokenizer(self, encoder, multiple=VOCABULARY_MULTIPLE)
        check_text_width(self, text_encoder.config.d_model)

    def encode_text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """T5's states; padding is masked within T5, but not in the UNet, as it was trained."""
        encoder = self.text_encoders[0]
        cleaned = [caption.lower().strip() for caption in captions]
        return {"encoder_hidden_states": encoder.module(**encoder.inputs(cleaned))[0]}

    def denoise(self, inputs: DenoiserInputs) -> Tensor:
        """The predicted noise, (B, 3, H, W), without the variance."""
        return super().denoise(inputs)[:, : self.latent_channels]

    def check_dataset(self, dataset: Any) -> None:
        """Check also that buckets are of sizes that the UNet halves without a rest."""
        super().check_dataset(dataset)
        multiple = self.size_multiple
        for width, height in getattr(dataset, "bucket_sizes", ()):
            if width % multiple or height % multiple:
                raise ValueError(
                    f"{dataset.path}: the sides of bucket {width}x{height} are no multiples of "
                    f"{multiple}; run preprocess/bucketing.py with --step {multiple}"
                )

    def scheduler_config(self) -> dict[str, Any]:
        """The checkpoint's scheduler; a trained UNet's variance is not to be used."""
        fixed = {"variance_type": "fixed_small"} if self.is_changed("unet") else {}
        return {**super().scheduler_config(), **fixed}

    @property
    def text_width(self) -> int:
        """Numbers of a token of T5's; the UNet projects them to its own width."""
        return self.denoiser.config.encoder_hid_dim

    def base_version(self) -> dict[str, str]:
        return {"ss_base_model_version": "deepfloyd_if_i", "ss_v2": "False"}


def _switch_off_dropout(text_encoder: T5EncoderModel) -> None:
    """Let T5 give the same states in training mode: the UNet has never seen others."""
    for module in text_encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, T5Attention):
            module.dropout = 0.0
