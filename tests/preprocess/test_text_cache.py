"""Captions encoded once: what is written, what a second run does, what fails."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny
import torch

from modules import models
from modules.dataset import LatentDataset
from modules.text_cache import EMPTY
from preprocess.latent import main
from preprocess.text_cache import TEXT_PIECES, cache_text


@pytest.fixture
def dataset(tmp_path):
    directory = tiny.save_dataset(tmp_path / "data", {(32, 32): 3, (48, 32): 1})
    shutil.rmtree(directory / "latents")
    return directory


def counts(result):
    return result.done, result.skipped, len(result.failed)


def encoded(dataset, name):
    with np.load(dataset / "text" / f"{name}.npz") as arrays:
        return arrays["encoder_hidden_states"]


def entries(dataset):
    lines = (dataset / "text" / "index.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def write_caption(dataset, name, text):
    (dataset / "captions" / f"{name}.caption").write_text(text, encoding="utf-8")


def test_files_hold_what_the_text_encoder_gives(dataset, model_directory):
    options = {"directory": dataset, "model": str(model_directory), "prefix": "photo of "}
    assert counts(cache_text(**options, batch_size=2)) == (4, 0, 0)
    model = models.load(str(model_directory))
    for name, caption in (
        ("image000", "photo of a red cat"),
        ("image003", "photo of a blue dog"),
        (EMPTY, ""),
    ):
        with torch.no_grad():
            expected = model.encode_text([caption])["encoder_hidden_states"][0].numpy()
        found = encoded(dataset, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert entries(dataset)[name] == {
            "name": name,
            "caption": caption,
            "text": model.text_fingerprint(),
            "dtype": "fp32",
        }


def test_a_second_run_encodes_what_is_new_or_changed(dataset, model_directory, monkeypatch):
    options = {"directory": dataset, "model": str(model_directory)}
    cache_text(**options)
    assert counts(cache_text(**options)) == (0, 4, 0)
    before = encoded(dataset, "image000")
    write_caption(dataset, "image000", "a dog on the mat")
    (dataset / "text" / "image001.npz").unlink()
    assert counts(cache_text(**options)) == (2, 2, 0)
    assert not np.allclose(encoded(dataset, "image000"), before)
    assert counts(cache_text(**options, prompt="a cat")) == (4, 0, 0)
    assert np.array_equal(encoded(dataset, "image000"), encoded(dataset, "image001"))


def test_other_encoders_or_precision_encode_again_and_say_so(
    dataset, model_directory, tmp_path, caplog
):
    caplog.set_level("INFO")
    cache_text(directory=dataset, model=str(model_directory))
    before = encoded(dataset, "image000")
    other = str(tiny.save_sd(tmp_path / "other", seed=1))
    assert counts(cache_text(directory=dataset, model=other)) == (4, 0, 0)
    assert "5 captions were encoded by other text encoders" in caplog.text
    assert not np.allclose(encoded(dataset, "image000"), before)
    assert counts(cache_text(directory=dataset, model=other, dtype="bf16")) == (4, 0, 0)
    assert encoded(dataset, "image000").dtype == np.float32


def test_only_the_text_encoder_is_loaded(model_directory):
    model = models.load(str(model_directory), weights=TEXT_PIECES)
    assert {p.device.type for p in model.text_encoders[0].module.parameters()} == {"cpu"}
    for module in (model.denoiser, model.vae):
        assert {p.device.type for p in module.parameters()} == {"meta"}
    assert model.text_fingerprint() == models.load(str(model_directory)).text_fingerprint()


def test_the_fingerprint_sees_weights_tokenizer_and_length():
    def fingerprint(change=lambda model: None):
        model = tiny.make_sd()
        change(model)
        return model.text_fingerprint()

    def change_weight(model):
        with torch.no_grad():
            next(model.text_encoders[0].module.parameters())[0, 0] += 1e-3

    def change_length(model):
        model.text_encoders[0].tokenizer.model_max_length = 12

    def change_words(model):
        model.text_encoders[0].tokenizer.add_tokens(["new"])

    changes = (change_weight, change_length, change_words)
    assert len({fingerprint(), *map(fingerprint, changes)}) == 4
    assert fingerprint(lambda model: model.encode_text(["a", "red cat"])) == fingerprint()


def test_a_stopped_run_is_continued(dataset, model_directory, monkeypatch):
    options = {"directory": dataset, "model": str(model_directory), "batch_size": 1}
    for number, name in enumerate(("image000", "image001", "image002", "image003")):
        write_caption(dataset, name, f"cat{'s' * number}")
    encode, calls = models.stable_diffusion.StableDiffusion.encode_text, []

    def stop(self, captions):
        calls.append(captions)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, captions)

    monkeypatch.setattr(models.stable_diffusion.StableDiffusion, "encode_text", stop)
    with pytest.raises(KeyboardInterrupt):
        cache_text(**options)
    monkeypatch.undo()
    assert counts(cache_text(**options)) == (2, 2, 0)


def test_faults_are_named(dataset, model_directory, capsys, monkeypatch):
    model = ["-d", str(dataset), "-m", str(model_directory)]
    assert main([*model, "--text", "--prefix", "photo of "]) == 0
    assert capsys.readouterr().out == (
        f"{dataset}: text: 4 encoded, 0 kept, 0 failed\n"
        f"{dataset}: latents: 4 encoded, 0 kept, 0 failed\n"
    )
    (dataset / "captions" / "image001.caption").write_bytes(b"\xff\xfe\xfa")
    (dataset / "captions" / "image002.caption").unlink()
    assert main([*model, "--text", "--prefix", "photo of "]) == 1
    output = capsys.readouterr()
    assert "text: 1 encoded, 2 kept, 1 failed" in output.out
    assert "image001.caption: is not UTF-8" in output.err
    assert not (dataset / "text" / "image001.npz").exists()
    assert entries(dataset)["image002"]["caption"] == "photo of "

    def spoil(self, captions):
        return {"encoder_hidden_states": torch.full((len(captions), 2, 2), torch.inf)}

    family = models.stable_diffusion.StableDiffusion
    monkeypatch.setattr(family, "encode_text", spoil)
    write_caption(dataset, "image001", "a cat")
    result = cache_text(directory=dataset, model=str(model_directory), prefix="photo of ")
    assert result.failed == ["image001: its encoded caption is not finite; try --dtype fp32"]

    def fail(self, captions):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(family, "encode_text", fail)
    with pytest.raises(ValueError, match="one caption doesn't fit into memory; use --dtype"):
        cache_text(directory=dataset, model=str(model_directory), prefix="photo of ")


def test_wrong_arguments(dataset, model_directory, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["-d", str(dataset), "-m", str(model_directory), "--prefix", "x"])
    assert stop.value.code == 2
    assert "--prefix: has no effect without --text" in capsys.readouterr().err
    for options, message in (
        ({"batch_size": 0}, "batch_size: 0 is less than 1"),
        ({"dtype": "fp16"}, "dtype: 'fp16' is not one of fp32, bf16"),
        ({"model": str(model_directory / "vae")}, "it has no model_index.json"),
    ):
        with pytest.raises(ValueError, match=message):
            cache_text(**{"directory": dataset, "model": str(model_directory), **options})


def test_images_take_the_words_of_their_folder(tmp_path, model_directory):
    directory = tiny.save_dataset(tmp_path / "data", {(32, 32): 2})
    for folder, suffix in (("latents", "npy"), ("captions", "caption")):
        for number in range(2):
            file = directory / folder / f"image{number:03d}.{suffix}"
            target = directory / folder / "3_red cat" / f"{number}.{suffix}"
            target.parent.mkdir(exist_ok=True)
            file.rename(target)
    (directory / "buckets.json").write_text('{"(32, 32)": ["3_red cat/0", "3_red cat/1"]}')
    (directory / "captions" / "3_red cat" / "0.caption").unlink()
    cache_text(directory=directory, model=str(model_directory), folder_words=True)
    assert entries(directory)["3_red cat/0"]["caption"] == "red cat"
    dataset = LatentDataset(str(directory), repeats="folders", text_cache=True)
    assert all(dataset[index].text for index in range(6))
