"""Kinds of single files: where the pieces of a model stand in one, and how its tensors tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"
"""The published configs of each kind's pieces, as far as they differ from the classes' defaults."""

UNET = "model.diffusion_model."
VAE = "first_stage_model."

V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Names of empty tensors that say what a model was trained with."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One kind of single file."""

    name: str  # folder of its configs
    pipeline: str  # its class in diffusers
    inpainting: str  # that of a UNet which takes mask and masked image too
    prefixes: Mapping[str, str]  # piece -> what its tensors' names begin with
    open_clip: frozenset[str] = frozenset()  # text encoders under OpenCLIP's names
    switches: Mapping[str, bool] = field(default_factory=dict)  # of the pipeline
    architecture: str  # in the metadata, https://github.com/Stability-AI/ModelSpec


SD1 = Layout(
    name="sd1",
    pipeline="StableDiffusionPipeline",
    inpainting="StableDiffusionInpaintPipeline",
    prefixes={"unet": UNET, "text_encoder": "cond_stage_model.transformer.", "vae": VAE},
    architecture="stable-diffusion-v1",
)
SD2 = Layout(
    name="sd2",
    pipeline="StableDiffusionPipeline",
    inpainting="StableDiffusionInpaintPipeline",
    prefixes={"unet": UNET, "text_encoder": "cond_stage_model.model.", "vae": VAE},
    open_clip=frozenset({"text_encoder"}),
    architecture="stable-diffusion-v2-512",
)
SDXL = Layout(
    name="sdxl",
    pipeline="StableDiffusionXLPipeline",
    inpainting="StableDiffusionXLInpaintPipeline",
    prefixes={
        "unet": UNET,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
        "vae": VAE,
    },
    open_clip=frozenset({"text_encoder_2"}),
    switches={"force_zeros_for_empty_prompt": True},
    architecture="stable-diffusion-xl-v1-base",
)

LAYOUTS = {layout.name: layout for layout in (SDXL, SD2, SD1)}

_OTHERS = {
    "conditioner.embedders.0.model.": "the refiner of SDXL, which is not a base model; take the "
    "base",
    "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3, which is not supported",
    "joint_blocks.": "a Stable Diffusion 3, which is not supported",
    "model.diffusion_model.double_blocks.": "a Flux, which is not supported",
    "double_blocks.": "a Flux, which is not supported",
    "lora_": "a LoRA, not a base model; it belongs into networks, as resume or with merge",
    "unet.": "a LoRA or other network in diffusers' format, not a base model",
    "control_model.": "a ControlNet, not a base model",
    "controlnet_cond_embedding.": "a ControlNet, not a base model",
    "down_blocks.": "a UNet alone in diffusers' format; take the whole diffusers directory",
    "encoder.": "a VAE alone; it belongs into model.vae",
    "decoder.": "a VAE alone; it belongs into model.vae",
    VAE: "a VAE alone; it belongs into model.vae",
    "text_model.": "a text encoder alone, not a base model",
    "emb_params": "a textual inversion, not a base model",
    "string_to_param": "a textual inversion, not a base model",
}
"""How a tensor's name begins -> what the file seems to be."""


def find_layout(shapes: Shapes, path: str) -> Layout:
    """The kind of a single file, by the names and shapes of its tensors.

    Raises:
        ValueError: it is no base model of a known kind; says what it seems to be.
    """
    if not any(name.startswith(UNET) for name in shapes):
        if any(name.startswith("model_ema.") for name in shapes):
            raise ValueError(
                f"{path}: has averaged weights (model_ema) only, and they are not read; take a "
                "file with the weights themselves"
            )
        raise ValueError(f"{path}: {_seems(shapes)}")
    if any(name.startswith("edm_") for name in shapes):
        raise ValueError(f"{path}: predicts by EDM's schedule, which is not supported")
    for layout in LAYOUTS.values():
        last = [p for piece, p in layout.prefixes.items() if piece.startswith("text_encoder")][-1]
        if any(name.startswith(last) for name in shapes):
            return layout
    raise ValueError(f"{path}: {_seems(shapes, has_unet=True)}")


def published_config(layout: Layout, piece: str) -> dict[str, Any]:
    """The published config of a piece; empty if there is none."""
    file = CONFIGS / layout.name / f"{piece}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def layout_of(pipeline: str, *, linear_projection: bool) -> Layout:
    """The kind of file that a model of diffusers' class `pipeline` is written as.

    SD2 differs from SD1 in that its transformers' projections are linear layers.

    Raises:
        ValueError: there is none.
    """
    if pipeline in (SDXL.pipeline, SDXL.inpainting):
        return SDXL
    if pipeline in (SD1.pipeline, SD1.inpainting):
        return SD2 if linear_projection else SD1
    raise ValueError(f"models of {pipeline} can't be written as one file; use format: diffusers")


def file_layout(model: Any) -> Layout:
    """The kind of file that a model is written as.

    Raises:
        ValueError: there is none for its family.
    """
    config = getattr(model.denoiser, "config", None)
    linear = getattr(config, "use_linear_projection", False)
    return layout_of(model.pipeline, linear_projection=linear)


def _seems(shapes: Shapes, *, has_unet: bool = False) -> str:
    for start, what in _OTHERS.items():
        if has_unet and not start.startswith((UNET, "conditioner.")):
            continue
        if any(name.startswith(start) for name in shapes):
            return f"seems to be {what}"
    if has_unet:
        return "has a UNet but no text encoder of Stable Diffusion 1, 2 or XL; take the full model"
    first = next(iter(shapes), None)
    return "is no base model: it has no UNet" + (f", but {first}" if first else " and no tensors")
