"""ModelSpec's fields of models and of what is made for them."""

from __future__ import annotations

import pytest
import tiny
import tiny_if

from modules.models.autoencoder import Autoencoder
from modules.models.model_spec import model_spec

STABILITY = "https://github.com/Stability-AI/generative-models"
SD1, SDXL = "stable-diffusion-v1", "stable-diffusion-xl-v1-base"


@pytest.mark.parametrize(
    ("make", "options", "kind", "architecture", "implementation"),
    [
        (tiny.make_sd, {}, "", SD1, STABILITY),
        (tiny.make_sd, {}, "lora", f"{SD1}/lora", "diffusers"),
        (tiny.make_sd, {}, "textual-inversion", f"{SD1}/textual-inversion", STABILITY),
        (tiny.make_sd, {}, "controlnet", f"{SD1}/controlnet", "diffusers"),
        (tiny.make_sd, {"sd2": True}, "lora", "stable-diffusion-v2-512/lora", "diffusers"),
        (tiny.make_sdxl, {}, "", SDXL, STABILITY),
        (tiny.make_sdxl, {}, "lora", f"{SDXL}/lora", STABILITY),
        (tiny.make_sdxl, {}, "controlnet", f"{SDXL}/controlnet", "diffusers"),
    ],
)
def test_families_and_kinds(make, options, kind, architecture, implementation):
    found = model_spec(make(**options), title="A cat", kind=kind)
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert found["modelspec.architecture"] == architecture
    assert found["modelspec.implementation"] == implementation
    assert found["modelspec.title"] == "A cat"
    assert found["modelspec.prediction_type"] == "epsilon"
    assert found["modelspec.resolution"] == "32x32"


def test_velocity_is_told_and_is_another_sd2():
    model = tiny.make_sd(prediction_type="v_prediction", sd2=True)
    found = model_spec(model, title="a", kind="lora")
    assert found["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert found["modelspec.prediction_type"] == "v"


def test_what_has_no_name_there_is_not_described():
    assert model_spec(tiny_if.make_if(), title="a") == {}
    assert model_spec(Autoencoder(tiny.make_sd().vae), title="a") == {}
