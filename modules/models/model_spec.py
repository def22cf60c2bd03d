"""ModelSpec 1.0.1, https://github.com/Stability-AI/ModelSpec: what programs show of a file."""

from __future__ import annotations

from typing import Any

from modules.models.layouts import file_layout

_STABILITY = "https://github.com/Stability-AI/generative-models"
_DIFFUSERS = "diffusers"
_IMPLEMENTATIONS = {
    "lora": _DIFFUSERS,
    "controlnet": _DIFFUSERS,
    "pfg": "https://github.com/laksjdjf/pfg-webui",
}
"""Whose tensor names a file has, by its kind; whole models and embeddings have Stability's."""


def model_spec(model: Any, *, title: str, kind: str = "") -> dict[str, str]:
    """Describe a file of `model`, or one made for it: of a LoRA `kind` is "lora".

    Nothing for models whose family the specification has no name for.
    """
    architecture = _architecture(model)
    if architecture is None:
        return {}
    width, height = model.image_size(None, None)
    velocity = model.scheduler.config.prediction_type == "v_prediction"
    implementation = _IMPLEMENTATIONS.get(kind, _STABILITY)
    if kind == "lora" and "-xl-" in architecture:  # its names in files are Stability's
        implementation = _STABILITY
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": implementation,
        "modelspec.title": title,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
    }


def _architecture(model: Any) -> str | None:
    if getattr(model, "denoiser", None) is None:
        return None  # a VAE alone doesn't know its family
    try:
        layout = file_layout(model)
    except ValueError:
        return None
    if layout.name == "sd2" and model.scheduler.config.prediction_type == "v_prediction":
        return "stable-diffusion-v2-768-v"
    return layout.architecture
