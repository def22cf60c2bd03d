"""Checks that the pieces of a model are of one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modules.models.text_encoder import TextEncoder

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel


def check_latents(model: DiffusionModel) -> None:
    """Check that the UNet takes what the VAE gives.

    Raises:
        ValueError: their channels differ.
    """
    assert model.vae is not None
    channels, latent = model.latent_channels, model.vae.config.latent_channels
    if channels != latent:
        raise ValueError(
            f"{model.path}: the UNet takes {channels} channels, the VAE gives {latent}; "
            "check model.vae"
        )


def check_tokenizer(model: DiffusionModel, encoder: TextEncoder, *, multiple: int = 1) -> None:
    """Check that a tokenizer and its text encoder have the same vocabulary.

    The encoder's may have been filled up to a `multiple`.

    Raises:
        ValueError: their sizes differ.
    """
    words, tokens = encoder.module.config.vocab_size, len(encoder.tokenizer)
    if -(-tokens // multiple) * multiple != words:
        raise ValueError(
            f"{model.path}: the tokenizer has {tokens} tokens, the text encoder {words}; "
            "the tokenizer's files are not this model's"
        )


def check_text_width(model: DiffusionModel, width: int) -> None:
    """Check that the UNet takes tokens of `width`.

    Raises:
        ValueError: it wants others.
    """
    wanted = model.text_width
    if width != wanted:
        raise ValueError(
            f"{model.path}: the text encoder's width is {width}, the UNet wants {wanted}"
        )


def check_image_size(size: tuple[int, int], multiple: int) -> None:
    """Check width and height of images to draw.

    Raises:
        ValueError: a side is no multiple of `multiple`.
    """
    for name, side in zip(("width", "height"), size, strict=True):
        if side < 1 or side % multiple:
            raise ValueError(
                f"{name}: {side} is no multiple of {multiple}, which this model's images must be"
            )
