"""PAINS 9: caching says what it reuses, does only what is new, survives a stop and a small card."""

from __future__ import annotations

import numpy as np
import photos
import pytest
import torch
from diffusers import AutoencoderKL

from modules.models.stable_diffusion import StableDiffusion
from preprocess.latent import latent, main
from preprocess.text_cache import cache_text


@pytest.fixture
def data(tmp_path):
    """Six images of one bucket."""
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(6):
        photos.draw(source / f"photo{number}.png", seed=number, size=(80, 80))
        (source / f"photo{number}.txt").write_text(f"a red cat {number}", encoding="utf-8")
    return photos.sort(source, tmp_path / "data")


def files(folder, suffix=".npy"):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob(f"*{suffix}")}


def test_it_says_what_is_reused_and_how_fast_it_goes(data, model_directory, capsys, caplog):
    caplog.set_level("INFO")
    command = ["-d", str(data), "-m", str(model_directory), "--text"]
    assert main(command) == 0
    first = capsys.readouterr()
    assert "latents: 6 encoded, 0 kept" in first.out
    assert " images/s]" in first.err
    before = files(data / "latents")
    (data / "latents" / "photo3.npy").unlink()
    photos.draw(data / "images" / "photo4.png", seed=50, size=(64, 64))
    (data / "captions" / "photo5.txt").write_text("a blue dog", encoding="utf-8")
    caplog.clear()
    assert main(command) == 0
    assert "latents: 4 reused, 2 new" in caplog.messages
    assert "text: 6 reused, 1 new" in caplog.messages  # the empty caption is one of them
    after = files(data / "latents")
    assert {name for name in after if after[name] != before.get(name)} == {
        "photo3.npy",
        "photo4.npy",
    }


class SmallCard:
    """Stands before an encoder: batches beyond a size don't fit, as torch says it."""

    def __init__(self, encode, most):
        self.encode, self.most, self.sizes = encode, most, []

    def __call__(self, model, batch, *args):
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.encode(model, batch, *args)

    def __get__(self, model, owner):
        return lambda batch, *args: self(model, batch, *args)


def test_a_batch_that_does_not_fit_is_halved(data, model_directory, monkeypatch, tmp_path, caplog):
    latent(directory=data, model=str(model_directory), output=tmp_path / "fitting")
    card = SmallCard(AutoencoderKL.encode, most=2)
    monkeypatch.setattr(AutoencoderKL, "encode", card)
    made = latent(directory=data, model=str(model_directory), batch_size=6)
    assert (made.done, made.failed) == (6, [])
    assert card.sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "out of memory: batches of 1 from here on" in caplog.messages
    for number in range(6):
        file = f"photo{number}.npy"
        whole, halved = (
            np.load(folder / file) for folder in (tmp_path / "fitting", data / "latents")
        )
        assert np.allclose(whole, halved, atol=1e-4)


def test_captions_that_do_not_fit_are_halved(data, model_directory, monkeypatch, tmp_path):
    cache_text(directory=data, model=str(model_directory), output=tmp_path / "fitting")
    card = SmallCard(StableDiffusion.encode_text, most=2)
    monkeypatch.setattr(StableDiffusion, "encode_text", card)
    made = cache_text(directory=data, model=str(model_directory))
    assert (made.done, made.failed) == (6, [])
    assert max(card.sizes) == 7
    for file in (tmp_path / "fitting").glob("*.npz"):
        with np.load(file) as whole, np.load(data / "text" / file.name) as halved:
            key = "encoder_hidden_states"
            assert np.allclose(whole[key], halved[key], atol=1e-5)


def test_a_stop_loses_only_what_was_under_way(data, model_directory, monkeypatch):
    calls = []

    def stop(vae, pixels, *args):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(vae, pixels, *args)

    encode = AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        latent(directory=data, model=str(model_directory), batch_size=1)
    finished = files(data / "latents")
    assert 1 <= len(finished) <= 2
    monkeypatch.undo()
    made = latent(directory=data, model=str(model_directory), batch_size=1)
    assert (made.done, made.skipped) == (6 - len(finished), len(finished))
    assert finished.items() <= files(data / "latents").items()
