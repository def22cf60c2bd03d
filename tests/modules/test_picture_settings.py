"""The text in a picture's file, read back by the rules that AUTOMATIC1111 reads it by."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from modules.picture_settings import PictureSettings, parameters_text, save_png

SETTINGS = {
    "prompt": "a red cat, (on a mat:1.2)",
    "negative_prompt": "blurry, a dog",
    "width": 512,
    "height": 768,
    "seed": 7,
    "num_inference_steps": 25,
    "guidance_scale": 7.5,
    "sampler": "dpmsolver++_karras",
    "multiplier": 1.0,
}


def read_parameters(text: str) -> dict[str, str]:
    """What AUTOMATIC1111 makes of a picture's text: names and values of its last line, the rest.

    A value ends at a comma; one in quotes is JSON and may have commas, colons and line ends.
    """
    lines, _, last = text.strip().rpartition("\n")
    found: dict[str, str] = {}
    while last:
        name, _, last = last.partition(": ")
        if last.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(last)
            found[name], last = value, last[end:].removeprefix(", ")
        else:
            found[name], _, last = last.partition(", ")
    prompt, _, negative = lines.partition("\nNegative prompt: ")
    return {"prompt": prompt, "negative": negative, **found}


def settings(**changes) -> PictureSettings:
    return PictureSettings(**{**SETTINGS, **changes})


def test_settings_are_read_back():
    text = parameters_text(settings(), further={"Model": "tiny-sd", "Training step": 100})
    assert text == (
        "a red cat, (on a mat:1.2)\n"
        "Negative prompt: blurry, a dog\n"
        "Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, Size: 512x768, "
        "Model: tiny-sd, Training step: 100"
    )
    assert read_parameters(text) == {
        "prompt": "a red cat, (on a mat:1.2)",
        "negative": "blurry, a dog",
        "Steps": "25",
        "Sampler": "DPM++ 2M Karras",
        "CFG scale": "7.5",
        "Seed": "7",
        "Size": "512x768",
        "Model": "tiny-sd",
        "Training step": "100",
    }


@pytest.mark.parametrize(
    "name", ["my, model: 1", 'a "quoted", one', "two\nlines", "plain", "猫, 犬"]
)
def test_values_with_the_lists_own_characters_are_quoted(name):
    text = parameters_text(settings(negative_prompt="", multiplier=0.5), further={"Model": name})
    read = read_parameters(text)
    assert read["Model"] == name
    assert read["Multiplier"] == "0.5"
    assert read["negative"] == ""
    assert read["prompt"] == SETTINGS["prompt"]
    assert "\\u" not in text


def test_a_line_of_settings_is_told_by_its_names():
    """AUTOMATIC1111 takes the last line for settings if it has three names and values or more."""
    last = parameters_text(settings(), further={}).splitlines()[-1]
    assert len(re.findall(r"\w[\w -]+: [^,]+", last)) >= 3


@pytest.mark.parametrize("prompt", ["a red cat", "café", "畳の上の猫、夜明け"])
def test_the_text_is_in_the_file(tmp_path, prompt):
    text = parameters_text(settings(prompt=prompt), further={})
    path = tmp_path / "samples" / "00.png"
    save_png(Image.new("RGB", (8, 8), "red"), path, parameters=text)
    with Image.open(path) as image:
        assert image.text["parameters"] == text
        assert image.getpixel((3, 3)) == (255, 0, 0)
    kind = b"tEXtparameters" if prompt != "畳の上の猫、夜明け" else b"iTXtparameters"
    assert kind in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["00.png"]
