"""Class images: enough and no more, each with its seed and caption, whatever was there before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modules.config import load
from modules.drawing import draw_images
from modules.trainer import Trainer
from preprocess import class_images as script
from preprocess.class_images import class_images

SMALL = {"width": 32, "height": 24, "num_inference_steps": 2}


@pytest.fixture
def draw(model_directory, tmp_path):
    """Draw into one folder; returns what was done."""

    def call(count: int, **options):
        given = {"model": str(model_directory), "prompt": "a red dog", **SMALL, **options}
        return class_images(output=tmp_path / "class", count=count, **given)

    return call


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_images_and_captions_are_written(draw, tmp_path):
    counts = draw(3, batch_size=2)
    assert (counts.done, counts.skipped, counts.failed) == (3, 0, [])
    folder = tmp_path / "class"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"0000{n}.{kind}" for n in range(3) for kind in ("png", "txt")]
    assert (folder / "00001.txt").read_text(encoding="utf-8") == "a red dog\n"
    images = pixels(folder)
    assert all(image.shape == (24, 32, 3) for image in images.values())
    assert not np.array_equal(images["00000.png"], images["00001.png"])


def test_an_image_is_what_the_sampler_draws_with_its_seed(draw, tmp_path, model_directory):
    from modules.models import load as load_model

    draw(2, seed=5, guidance_scale=3.0, negative_prompt="a cat")
    expected = draw_images(
        load_model(str(model_directory)),
        [],
        prompts=["a red dog"],
        negative_prompt="a cat",
        seeds=[6],
        size=(32, 24),
        num_inference_steps=2,
        guidance_scale=3.0,
    )[0]
    found = pixels(tmp_path / "class")["00001.png"].astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 1


def test_a_second_run_draws_what_is_missing_as_one_run_would(draw, tmp_path):
    draw(4)
    at_once = pixels(tmp_path / "class")
    shutil.rmtree(tmp_path / "class")
    draw(2)
    before = pixels(tmp_path / "class")
    counts = draw(4)
    assert (counts.done, counts.skipped) == (2, 2)
    after = pixels(tmp_path / "class")
    assert all(np.array_equal(after[name], image) for name, image in before.items())
    assert all(np.abs(after[n].astype(int) - at_once[n]).max() <= 1 for n in at_once)
    assert len({image.tobytes() for image in after.values()}) == 4


def test_enough_images_need_no_model(draw, tmp_path):
    draw(2)
    counts = draw(2, model="no such model")
    assert (counts.done, counts.skipped) == (0, 2)
    assert draw(1, model="no such model").done == 0


def test_a_deleted_image_does_not_come_back(draw, tmp_path):
    draw(3)
    folder = tmp_path / "class"
    bad = (folder / "00001.png").read_bytes()
    (folder / "00001.png").unlink()
    draw(3)
    assert sorted(pixels(folder)) == ["00000.png", "00002.png", "00003.png"]
    assert (folder / "00003.png").read_bytes() != bad


def test_images_of_ones_own_count(draw, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "my dog.jpg")
    assert draw(2).done == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000.png",
        "00000.txt",
        "my dog.jpg",
    ]


def test_an_interrupted_run_goes_on(draw, tmp_path, monkeypatch):
    drawn = []

    def torn(model, networks, *, seeds, **settings):
        if drawn:
            raise KeyboardInterrupt
        drawn.extend(seeds)
        return draw_images(model, networks, seeds=seeds, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("modules.drawing.draw_images", torn)
        with pytest.raises(KeyboardInterrupt):
            draw(4, batch_size=2)
    assert sorted(pixels(tmp_path / "class")) == ["00000.png", "00001.png"]
    assert draw(4, batch_size=2).done == 2
    assert len({image.tobytes() for image in pixels(tmp_path / "class").values()}) == 4


def test_another_prompt_in_the_same_folder_is_warned_of(draw, caplog):
    draw(1)
    draw(1, prompt="a cat")
    assert "1 of 1 images there have another caption than this prompt" in caplog.text


def test_bfloat16_draws_nearly_the_same(draw, tmp_path):
    draw(1)
    exact = pixels(tmp_path / "class")["00000.png"].astype(int)
    (tmp_path / "class" / "00000.png").unlink()
    draw(1, dtype="bf16")
    rounded = pixels(tmp_path / "class")["00000.png"].astype(int)
    assert 0 < np.abs(exact - rounded).mean() < 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: 0 is less than 1"),
        ({"batch_size": 0}, "batch_size: 0 is less than 1"),
        ({"width": 36}, "width: 36 is no multiple of 8"),
        ({"height": 0}, "height: 0 is no multiple of 8"),
        ({"dtype": "fp8"}, "dtype: 'fp8' is not one of"),
        ({"device": "nowhere"}, "device: 'nowhere' can't be used"),
        ({"model": "/nowhere/model"}, "there is no such directory"),
    ],
)
def test_wrong_arguments_are_said(draw, options, message):
    with pytest.raises(ValueError, match=message):
        draw(**{"count": 1, **options})


def test_the_command(model_directory, tmp_path, capsys):
    words = ["-o", str(tmp_path / "dogs"), "-m", str(model_directory), "--prompt", "a dog"]
    sizes = ["--count", "2", "--width", "32", "--height", "32", "--steps", "1"]
    assert script.main([*words, *sizes]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'dogs'}: 2 drawn, 0 were there\n"
    assert script.main([*words, *sizes]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'dogs'}: 0 drawn, 2 were there\n"
    assert script.main([*words, "--count", "3", "--width", "30"]) == 2
    assert "width: 30 is no multiple of 8" in capsys.readouterr().err


def test_a_run_prepares_them(write_config, model_directory, tmp_path):
    step = {
        "module": "preprocess.class_images.class_images",
        "args": {
            "output": str(tmp_path / "class"),
            "model": "${model.path}",
            "prompt": "a dog",
            "count": 2,
            **SMALL,
        },
    }
    networks = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
    trainer = Trainer.from_config(load(write_config(prepare=[step], networks=networks)))
    assert trainer is not None
    assert len(pixels(tmp_path / "class")) == 2
