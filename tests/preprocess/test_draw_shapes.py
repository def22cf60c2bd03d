import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess import draw_shapes, scenes
from preprocess.draw_shapes import draw_dataset
from preprocess.scenes import BASE_SHAPES, SHAPES, SIZES, draw_scene

ROOT = Path(__file__).resolve().parents[2]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("0*"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_dataset_holds_pictures_and_captions(tmp_path):
    assert draw_dataset(output=str(tmp_path / "set"), count=12, seed=3)
    pictures = sorted((tmp_path / "set").glob("*.png"))
    assert [picture.name for picture in pictures] == [f"{i:04d}.png" for i in range(12)]
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.mode == "RGB"
            assert image.size in SIZES
        words = picture.with_suffix(".txt").read_text(encoding="utf-8").split()
        assert words[0] in ("a", "an")
        assert words[2] in BASE_SHAPES
        assert words[-1] == "background"


def test_style_comes_first_and_plain_last(tmp_path):
    draw_dataset(output=str(tmp_path / "set"), count=3, plain_count=2, style="polaroid")
    captions = [file.read_text() for file in sorted((tmp_path / "set").glob("*.txt"))]
    assert [", polaroid" in caption for caption in captions] == [True] * 3 + [False] * 2


def test_sizes_may_be_chosen(tmp_path):
    draw_dataset(output=str(tmp_path / "set"), count=9, sizes=["80x48"])
    for picture in (tmp_path / "set").glob("*.png"):
        with Image.open(picture) as image:
            assert image.size == (80, 48)


def test_same_arguments_give_same_files(tmp_path):
    for name in ("one", "two"):
        draw_dataset(output=str(tmp_path / name), count=6, seed=1)
    draw_dataset(output=str(tmp_path / "other"), count=6, seed=2)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


def test_more_pictures_keep_the_first_ones(tmp_path):
    draw_dataset(output=str(tmp_path / "few"), count=3)
    draw_dataset(output=str(tmp_path / "many"), count=6)
    assert digest(tmp_path / "few").items() <= digest(tmp_path / "many").items()


def test_second_run_does_nothing(tmp_path):
    arguments = {"output": str(tmp_path / "set"), "count": 4, "seed": 1}
    assert draw_dataset(**arguments) is True
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "set").iterdir()}
    assert draw_dataset(**arguments) is False
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "set").iterdir()}


def test_missing_picture_is_drawn_again(tmp_path):
    arguments = {"output": str(tmp_path / "set"), "count": 4, "seed": 1}
    draw_dataset(**arguments)
    before = digest(tmp_path / "set")
    (tmp_path / "set" / "0002.png").unlink()
    assert draw_dataset(**arguments) is True
    assert digest(tmp_path / "set") == before


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds other files"):
        draw_dataset(output=str(tmp_path), count=2)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]


def test_pictures_of_other_arguments_are_left_alone(tmp_path):
    draw_dataset(output=str(tmp_path / "set"), count=2)
    with pytest.raises(ValueError, match="other arguments"):
        draw_dataset(output=str(tmp_path / "set"), count=3)


def test_interrupted_run_leaves_no_folder(tmp_path, monkeypatch):
    def fail(scene):
        raise KeyboardInterrupt

    monkeypatch.setattr(draw_shapes, "draw_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(output=str(tmp_path / "set"), count=2)
    assert not (tmp_path / "set").exists()
    monkeypatch.undo()
    assert draw_dataset(output=str(tmp_path / "set"), count=2)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "draw no pictures"),
        ({"count": 2, "style": "fresco"}, "fresco"),
        ({"count": 2, "shapes": ["hexagon"]}, "hexagon"),
        ({"count": 2, "shapes": []}, "shapes"),
        ({"count": 2, "sizes": ["9x9"]}, "9x9"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_dataset(output=str(tmp_path / "set"), **arguments)


def test_polaroid_has_a_white_frame_wider_below():
    scene = scenes.sample_scene(np.random.default_rng(0), style="polaroid", size=(64, 64))
    pixels = np.asarray(draw_scene(scene)).astype(int)
    is_white = np.abs(pixels - scenes.WHITE).max(axis=-1) == 0
    assert is_white[:8].all()
    assert is_white[-16:].all()
    assert is_white[:, :8].all()
    assert is_white[:, -8:].all()
    assert not is_white[8:48, 8:56].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_lies_inside_its_radius(shape):
    mask = np.asarray(scenes.draw_mask(shape, (64, 64), (32, 32), 20))
    rows, columns = np.nonzero(mask > 127)
    assert min(rows.min(), columns.min()) >= 11
    assert max(rows.max(), columns.max()) <= 53
    assert 0.1 < (mask > 127).sum() / 40**2 < 0.9


def test_commands(tmp_path):
    path = str(ROOT / "preprocess" / "draw_shapes.py")
    options = ["-o", str(tmp_path / "set"), "--count", "2"]
    first = subprocess.run([sys.executable, path, *options], cwd=tmp_path, check=True)
    assert first.returncode == 0
    module = [sys.executable, "-m", "preprocess.draw_shapes", "-o", str(tmp_path / "set")]
    again = subprocess.run([*module, "--count", "3"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2
    assert "other arguments" in again.stderr
    assert "Traceback" not in again.stderr
