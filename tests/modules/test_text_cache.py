"""Training on cached outputs of the text encoder."""

from __future__ import annotations

import shutil

import pytest
import tiny
import torch

from modules import models
from modules.batch import collate
from modules.config import load
from modules.dataset import LatentDataset
from modules.errors import ConfigError
from modules.text_cache import EMPTY
from modules.trainer import Trainer
from preprocess.text_cache import cache_text

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}


@pytest.fixture(scope="module")
def cached_directory(tmp_path_factory, model_directory):
    """A dataset of four images with cached text; tests don't write to it."""
    directory = tiny.save_dataset(tmp_path_factory.mktemp("cached") / "data", {(32, 32): 4})
    cache_text(directory=directory, model=str(model_directory), prefix="photo of ")
    return directory


@pytest.fixture
def cached(cached_directory, tmp_path):
    """A copy of it, to be written to."""
    return shutil.copytree(cached_directory, tmp_path / "cached")


@pytest.fixture
def make_trainer(write_config):
    def make(directory, **sections):
        args = {"path": str(directory), "prefix": "photo of ", **sections.pop("args", {})}
        config = write_config(dataset={"args": args}, **{"networks": LORA, **sections})
        return Trainer.from_config(load(config))

    return make


def test_the_loss_is_that_of_live_encoding(cached_directory, make_trainer):
    losses = []
    for text_cache in (True, False):
        trainer = make_trainer(cached_directory, args={"text_cache": text_cache})
        batch = next(iter(trainer.source.loader))
        assert set(batch.text) == ({"encoder_hidden_states"} if text_cache else set())
        with torch.no_grad():
            live = trainer.model.encode_text(batch.captions)["encoder_hidden_states"]
            used = trainer.model.encode_prompts(batch)["encoder_hidden_states"]
            torch.testing.assert_close(used, live, rtol=0, atol=1e-6)
        torch.manual_seed(0)
        losses.append(trainer.loss(batch))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)


def test_a_step_with_cached_text_runs_no_text_encoder(cached_directory, make_trainer):
    trainer = make_trainer(cached_directory, args={"text_cache": True})

    def refuse(*_):
        raise AssertionError("the text encoder runs")

    trainer.model.text_encoders[0].module.register_forward_pre_hook(refuse)
    trainer.train()
    assert trainer.step == 2


def test_a_dropped_caption_takes_the_empty_ones_outputs(cached_directory, model_directory):
    dataset = LatentDataset(
        str(cached_directory), prefix="photo of ", text_cache=True, caption_dropout=0.5
    )
    expected = {name: dataset.text.read(name, "x") for name in (*dataset.names, EMPTY)}
    seen = set()
    for epoch in range(10):
        dataset.set_epoch(epoch)
        for sample in (dataset[i] for i in range(len(dataset))):
            name = sample.name if sample.caption else EMPTY
            seen.add(name == EMPTY)
            for key, value in expected[name].items():
                assert torch.equal(sample.text[key], value)
    assert seen == {True, False}
    model = models.load(str(model_directory))
    with torch.no_grad():
        empty = model.encode_text([""])["encoder_hidden_states"][0]
    torch.testing.assert_close(expected[EMPTY]["encoder_hidden_states"], empty, rtol=0, atol=1e-6)


def test_captions_that_are_not_the_cached_ones_are_encoded_live(cached, caplog):
    def text(**options):
        caplog.clear()
        options = {"prefix": "photo of ", "text_cache": True, **options}
        return collate([LatentDataset(str(cached), **options)[0]]).text

    assert set(text()) == {"encoder_hidden_states"}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert text(prefix="") == {}
    assert "4 of 4 captions are not the cached ones: image000, image001," in caplog.text
    assert "run preprocess/latent.py --text, with the prefix and prompt of the run" in caplog.text
    assert set(text(shuffle_caption=True)) == {"encoder_hidden_states"}  # all have one tag
    (cached / "captions" / "image001.caption").write_text("a, b\nc", encoding="utf-8")
    assert text(shuffle_caption=True) == {}
    assert (
        "has no effect, all captions are encoded while training, since several cap" in caplog.text
    )
    assert "several captions and shuffle_caption makes them differ" in caplog.text
    (cached / "captions" / "image001.caption").write_text("a blue dog", encoding="utf-8")
    (cached / "captions" / "image002.caption").write_text("edited", encoding="utf-8")
    assert text() == {}
    assert "1 of 4 captions are not the cached ones: image002; run" in caplog.text
    (cached / "text" / "image000.npz").unlink()
    assert text() == {}
    assert "since 1 of 4 captions are missing: image000; 1 of 4 captions are not" in caplog.text


def test_a_missing_or_damaged_cache_is_named(cached, dataset_directory):
    with pytest.raises(ValueError, match=r"text: holds no cached text; run preprocess/latent\.py"):
        LatentDataset(str(dataset_directory), text_cache=True)
    dataset = LatentDataset(str(cached), prefix="photo of ", text_cache=True)
    (cached / "text" / "image000.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"image000\.npz: can't be read"):
        dataset[0]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"trainable": ["text_encoders"]}}, r"text_encoders\.0 is trained, its outputs"),
        (
            {"networks": {"lora": {**LORA["lora"], "args": {"targets": ["text_encoders"]}}}},
            r"networks\.lora changes text_encoders\.0, its outputs can't be cached; set text_cache",
        ),
        (
            {
                "networks": {
                    **LORA,
                    "frozen": {
                        **LORA["lora"],
                        "train": False,
                        "args": {"targets": ["unet", "text_encoders"]},
                    },
                }
            },
            r"networks\.frozen changes text_encoders\.0",
        ),
    ],
)
def test_a_changing_text_encoder_is_refused(cached_directory, make_trainer, sections, message):
    with pytest.raises(ConfigError, match=r"^dataset: text_cache: .*" + message):
        make_trainer(cached_directory, args={"text_cache": True}, **sections)


def test_another_model_is_refused(cached_directory, make_trainer, tmp_path):
    other = tiny.save_sd(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"is of other text encoders than those of .*other; run"):
        make_trainer(cached_directory, args={"text_cache": True}, model={"path": str(other)})


def test_check_without_weights(cached_directory, write_config):
    args = {"path": str(cached_directory), "prefix": "photo of ", "text_cache": True}
    config = load(write_config(dataset={"args": args}, networks=LORA))
    assert Trainer.from_config(config, check=True) is None
