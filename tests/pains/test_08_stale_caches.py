"""PAINS 8: an edited image, another VAE or another crop never meets what was made before."""

from __future__ import annotations

import os
import shutil

import numpy as np
import photos
import pytest
import tiny
from PIL import Image

from main import main
from modules.dataset import LatentDataset
from modules.file_hashes import FileHashes
from preprocess.create_mask import create_mask
from preprocess.latent import latent
from preprocess.pack import pack
from preprocess.text_cache import cache_text


@pytest.fixture
def source(tmp_path):
    return photos.take(tmp_path / "photos")


@pytest.fixture
def data(source, tmp_path, model_directory):
    return photos.prepare(source, tmp_path / "data", model_directory)


@pytest.fixture
def config(data, tmp_path, model_directory):
    return photos.write_yaml(tmp_path / "run.yaml", data=data, model=model_directory)


def refuses(capsys, *argv):
    """Run, be refused before anything is written, and return what was said."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    return capsys.readouterr().err


def edit(path, seed=99):
    photos.draw(path, seed=seed, size=Image.open(path).size)


def test_what_fits_is_trained_on_without_a_word(config, capsys):
    assert main([config]) == 0
    out = capsys.readouterr().out
    assert "warning" not in out
    assert "edited" not in out


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_an_edited_image_does_not_meet_its_old_latents(
    config, data, model_directory, check, capsys
):
    edit(data / "images" / "photo1.png")
    told = refuses(capsys, config, *check)
    assert "latents: 1 of 4 are of images that were edited since: photo1; run " in told
    assert f"preprocess/latent.py -d {data} again" in told
    assert latent(directory=data, model=str(model_directory)).done == 1
    assert main([config, *check]) == 0


def test_an_edit_that_keeps_the_size_of_the_file_is_seen(config, data, capsys):
    path = data / "images" / "photo2.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert "edited since: photo2" in refuses(capsys, config)


def test_an_edited_source_asks_for_all_scripts_in_turn(
    config, data, source, model_directory, capsys
):
    edit(source / "photo0.png")
    told = refuses(capsys, config)
    assert "images: 1 of 4 are of sources that were edited since: photo0" in told
    assert "run preprocess/bucketing.py again" in told
    photos.sort(source, data)
    assert "latents: 1 of 4 missing: photo0" in refuses(capsys, config)
    assert latent(directory=data, model=str(model_directory)).done == 1
    assert main([config]) == 0


def test_a_dataset_far_from_its_sources_trains(config, source):
    shutil.rmtree(source)
    assert main([config, "--check"]) == 0


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_another_vae_does_not_meet_these_latents(config, data, tmp_path, check, capsys):
    other = tiny.save_sd(tmp_path / "other", seed=7)
    told = refuses(capsys, config, f"model.vae={other / 'vae'}", *check)
    assert f"latents: 4 of 4 are of another VAE than that of {other / 'vae'}: photo0" in told
    assert "run preprocess/latent.py -d" in told
    latent(directory=data, model=str(other))
    assert main([config, f"model.vae={other / 'vae'}", *check]) == 0
    assert "are of another VAE" in refuses(capsys, config, *check)


def test_another_crop_does_not_meet_these_latents(config, data, source, model_directory, capsys):
    photos.sort(source, data, resolution=96)
    assert "latents: 4 of 4 missing" in refuses(capsys, config)
    latent(directory=data, model=str(model_directory))
    assert main([config]) == 0


def test_packed_latents_are_held_to_the_same(config, data, capsys):
    pack(directory=data, remove=True)
    assert main([config]) == 0
    edit(data / "images" / "photo3.png")
    assert "latents: 1 of 4 are of images that were edited since: photo3" in refuses(capsys, config)


def test_mirrored_latents_are_held_to_the_same(config, data, model_directory, capsys):
    latent(directory=data, model=str(model_directory), flip=True)
    flip = "dataset.args.flip=0.5"
    assert main([config, flip]) == 0
    edit(data / "images" / "photo3.png")
    latent(directory=data, model=str(model_directory))  # and forgets the mirrored ones
    assert "latents_flipped: 1 of 4 are of" in refuses(capsys, config, flip)


def test_masks_and_features_of_edited_images_are_stale_too(config, data, model_directory, capsys):
    drawn = data.parent / "masks"
    drawn.mkdir()
    for file in (data / "images").iterdir():
        Image.new("L", Image.open(file).size, 255).save(drawn / file.name)
    masks = {"directory": data, "origin": "images", "masks": drawn}
    assert create_mask(**masks).done == 4
    assert main([config, "dataset.args.mask=true"]) == 0
    edit(data / "images" / "photo1.png")
    latent(directory=data, model=str(model_directory))
    assert "mask: 1 of 4 are of images" in refuses(capsys, config, "dataset.args.mask=true")
    again = create_mask(**masks)
    assert (again.done, again.skipped) == (1, 3)
    assert main([config, "dataset.args.mask=true"]) == 0


def test_cached_text_is_of_its_captions_and_encoders(config, data, model_directory, capsys):
    cache_text(directory=data, model=str(model_directory))
    cached = "dataset.args.text_cache=true"
    assert main([config, cached]) == 0
    assert "outputs are read from" in capsys.readouterr().out
    for check in ([], ["--check"]):
        told = refuses(capsys, config, cached, "model.clip_skip=2", *check)
        assert "is of other text encoders" in told
    (data / "captions" / "photo1.txt").write_text("a blue dog", encoding="utf-8")
    assert main([config, cached]) == 0
    told = capsys.readouterr().out
    assert "text: is not used" in told
    assert "1 of 4 captions are not the cached ones: photo1" in told


def test_a_copy_with_new_dates_is_the_same_dataset(data, tmp_path, model_directory, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy, copy_function=shutil.copyfile)
    for file in (copy / "images").iterdir():
        os.utime(file, ns=(10**18, 10**18))
    config = photos.write_yaml(tmp_path / "copy.yaml", data=copy, model=model_directory)
    assert main([config, "--check"]) == 0
    # A second look knows what it has read.
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("an image is read again"))
    LatentDataset(str(copy))
    monkeypatch.undo()
    assert latent(directory=copy, model=str(model_directory)).done == 0


def test_no_image_is_read_where_sizes_and_dates_are_as_noted(data, monkeypatch):
    monkeypatch.setattr(FileHashes, "sha256", lambda *_: pytest.fail("an image is read"))
    LatentDataset(str(data))


def test_a_directory_without_notes_trains_with_one_warning(config, data, capsys):
    for file in ("latents/index.jsonl", "images.jsonl", "sources.json"):
        (data / file).unlink()
    edit(data / "images" / "photo1.png")  # nobody can know
    capsys.readouterr()
    assert main([config]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "of 4 of 4 it isn't known which image and which VAE made them" in warnings[0]


def test_a_person_may_insist(config, data, capsys):
    edit(data / "images" / "photo1.png")
    assert "allow_stale: true" in refuses(capsys, config)
    assert main([config, "dataset.args.allow_stale=true"]) == 0
    assert "edited since: photo1" in capsys.readouterr().out


def test_what_is_encoded_again_is_what_a_fresh_dataset_would_hold(
    data, source, tmp_path, model_directory
):
    edit(source / "photo0.png")
    photos.prepare(source, data, model_directory)
    fresh = photos.prepare(source, tmp_path / "fresh", model_directory)
    for number in range(4):
        file = f"latents/photo{number}.npy"
        assert np.allclose(np.load(data / file), np.load(fresh / file), atol=1e-4)
