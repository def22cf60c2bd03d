"""Saves that are read again before they take their names, and what happens when one is damaged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modules.config import load
from modules.errors import RunError
from modules.trainer import Trainer
from modules.verified_files import VerifiedFiles, tell
from networks.conditioner import Conditioner
from networks.files import write_tensors

LORA = {"module": "networks.lora.LoRA", "args": {"rank": 2}}
TEXT = {"module": "networks.lora.LoRA", "args": {"rank": 2, "targets": ["text_encoders"]}}
FORM = re.compile(r"verified: (\d+)/(\d+) keys, max error (0|\de-\d+)")


def assemble(path: Path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


def contents(trainer: Trainer) -> dict[str, bytes]:
    files = [path for path in trainer.directory.rglob("*") if path.is_file()]
    return {str(p.relative_to(trainer.directory)): p.read_bytes() for p in files}


def damage(owner, method: str, file: Callable[[Path], Path] = lambda path: path) -> None:
    """Let `owner` write one number wrong from now on, as a failing disk would."""
    save = getattr(owner, method)

    def damaged(path, **options):
        save(path, **options)
        written = file(path)
        tensors = load_file(written)
        tensors[max(tensors)].view(-1)[0] += 1.0
        save_file(tensors, written)

    setattr(owner, method, damaged)


def test_a_save_says_how_exact_it_is(write_config, caplog):
    caplog.set_level("INFO")
    for dtype, limit in (("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 1e-2)):
        caplog.clear()
        trainer = assemble(write_config(networks={"lora": LORA}, save={"dtype": dtype}))
        trainer.train()
        lines = [record.getMessage() for record in caplog.records]
        place = lines.index(f"saved {trainer.directory / 'run.safetensors'}")
        found = FORM.fullmatch(lines[place + 1])
        assert found, lines[place + 1]
        keys = str(3 * len(trainer.networks["lora"].layers))
        assert (found[1], found[2]) == (keys, keys)
        assert float(found[3]) <= limit


def test_a_mismatch_stops_and_keeps_the_last_checkpoint_of_every_network(write_config):
    path = write_config(networks={"one": LORA, "two": TEXT})
    trainer = assemble(path, "save.keep_last=1", "save.every_steps=1", "train.max_train_steps=4")
    trainer.step = 1
    trainer.saver.save_if_due(trainer, last=False)
    before = contents(trainer)
    assert "run-one-step00000001.safetensors" in before
    damage(trainer.networks["two"], "save")
    trainer.step = 2
    with torch.no_grad():
        next(trainer.networks["one"].parameters()).add_(1)
    key = r"run-two-step00000002\.safetensors: lora_te_text_model_\w+\.lora_up\.weight"
    with pytest.raises(RunError, match=rf"{key}: is \S+ in the file where \S+ was trained"):
        trainer.saver.save_if_due(trainer, last=False)
    assert contents(trainer) == before
    with pytest.raises(RunError, match="what was saved before stays"):
        trainer.saver.save_if_due(trainer, last=True)
    assert contents(trainer) == before


@pytest.mark.parametrize(
    "sections",
    [
        {"ema": {"decay": 0.9}},
        {"ema": {"decay": 0.5, "save": "instead"}},
        {"optimizer": {"module": "schedulefree.AdamWScheduleFree"}},
    ],
    ids=["ema", "ema-replaces", "schedule-free"],
)
def test_what_is_saved_is_compared_with_the_weights_as_they_are_saved(
    write_config, sections, caplog
):
    caplog.set_level("INFO")
    trainer = assemble(write_config(networks={"lora": LORA}, **sections))
    trainer.train()
    verified = [r.getMessage() for r in caplog.records if FORM.fullmatch(r.getMessage())]
    assert len(verified) == len(trainer.versions())
    live = trainer.networks["lora"].layers
    file = load_file(trainer.directory / "run.safetensors")
    if "optimizer" in sections or sections.get("ema", {}).get("save"):  # others than trained
        name = next(iter(live))
        assert not torch.equal(live[name].lora_up.weight, file[f"{name}.lora_up.weight"])


def test_numbers_beyond_fp16_are_said_before_anything_is_written(write_config):
    trainer = assemble(write_config(networks={"lora": LORA}, save={"dtype": "fp16"}))
    before = contents(trainer)
    with torch.no_grad():
        next(trainer.networks["lora"].parameters())[0, 0] = 7e4
    message = r"beyond fp16's 65504, first lora\.layers\.\S+ with 70000; nothing .* bf16 or fp32"
    with pytest.raises(RunError, match=message):
        trainer.saver.save_if_due(trainer, last=True)
    assert contents(trainer) == before


BASES = {
    "unet": ("diffusers", "unet/diffusion_pytorch_model.safetensors", "unet: "),
    "text_encoders": ("diffusers", "text_encoder/model.safetensors", "text_encoder: text_model."),
    "unet.mid_block": ("single_file", "", "model.diffusion_model."),
}


@pytest.mark.parametrize("part", BASES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_trained_base_is_read_again(write_config, part, dtype, caplog):
    caplog.set_level("INFO")
    format, file, key = BASES[part]
    path = write_config(model={"trainable": [part]}, save={"format": format, "dtype": dtype})
    trainer = assemble(path)
    trainer.train()
    (found,) = [m for m in map(FORM.fullmatch, caplog.messages) if m]
    assert float(found[3]) <= (0 if dtype == "fp32" else 4e-3)
    before = contents(trainer)
    if format == "single_file":
        keys = len(load_file(trainer.directory / "run.safetensors"))
        damage(trainer.model, "save_single_file")
    else:
        keys = sum(len(load_file(f)) for f in trainer.directory.rglob("*.safetensors"))
        damage(trainer.model, "save_pretrained", lambda directory: directory / file)
    assert found[1] == str(keys)
    with pytest.raises(RunError, match=rf"run\S*: {key}\S+: is \S+ in the file where \S+ was trai"):
        trainer.saver.save_if_due(trainer, last=True)
    assert contents(trainer) == before


@pytest.mark.parametrize("format", ["diffusers", "single_file"])
def test_a_trained_vae_is_read_again(write_config, dataset_directory, format, caplog):
    caplog.set_level("INFO")
    dataset = {"module": "modules.dataset.ImageDataset", "args": {"path": str(dataset_directory)}}
    path = write_config(
        model={"trainable": ["vae.decoder"]},
        dataset=dataset,
        objective={"module": "modules.reconstruction.Reconstruction"},
        save={"format": format, "dtype": "fp16"},
    )
    trainer = assemble(path)
    trainer.train()
    (found,) = [m for m in map(FORM.fullmatch, caplog.messages) if m]
    assert int(found[1]) == len(trainer.model.vae.state_dict())
    before = contents(trainer)
    if format == "diffusers":
        weights = "diffusion_pytorch_model.safetensors"
        damage(trainer.model, "save_pretrained", lambda directory: directory / weights)
    else:
        damage(trainer.model, "save_single_file")
    with pytest.raises(RunError, match=r"is \S+ in the file where \S+ was trained"):
        trainer.saver.save_if_due(trainer, last=True)
    assert contents(trainer) == before


def test_pieces_that_were_not_trained_are_checked_by_name_shape_and_dtype(write_config, tmp_path):
    trainer = assemble(write_config(model={"trainable": ["unet.mid_block"]}))
    directory = tmp_path / "saved"
    trainer.model.save_pretrained(directory, dtype=torch.float16)
    trainer.model.verify_pretrained(directory, dtype=torch.float16)
    file = directory / "vae" / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    key = "decoder.conv_in.weight"
    for change, message in (
        (lambda t: t.flatten(1), "has shape"),
        (lambda t: t.float(), "is torch.float32 in the file, not torch.float16"),
        (lambda t: t * float("inf"), "is not finite in the file"),
    ):
        save_file({**whole, key: change(whole[key])}, file)
        with pytest.raises(ValueError, match=rf"^vae: {re.escape(key)}: {message}"):
            trainer.model.verify_pretrained(directory, dtype=torch.float16)
    del whole[key]
    save_file(whole, file)
    with pytest.raises(ValueError, match=rf"^vae: {re.escape(key)}: was to be written"):
        trainer.model.verify_pretrained(directory, dtype=torch.float16)


class Plain(Conditioner):
    """Writes a file as Conditioner does."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(3))


class OwnSave(Plain):
    """Writes a file in a way of its own."""

    def save(self, path, *, dtype, metadata):
        write_tensors(path, {"mine": self.offset * 2}, dtype=dtype, metadata=metadata)


class OwnBoth(OwnSave):
    def verify(self, path, *, dtype):
        return super().verify(path, dtype=dtype)


def test_a_save_of_ones_own_is_not_held_against_anothers_verify(tmp_path, caplog):
    caplog.set_level("INFO")
    with VerifiedFiles(torch.float16) as files:
        for network in (Plain(), OwnSave()):
            path = tmp_path / f"{type(network).__name__}.safetensors"
            files.write(path, network, is_directory=False, metadata={})
    for path, verified in files.written.items():
        tell(path, verified)
    assert caplog.messages == [
        "verified: 1/1 keys, max error 0",
        "unverified: its class has no verify beside its save",
    ]

    def write_both() -> None:
        with VerifiedFiles(torch.float16) as files:
            files.write(tmp_path / "a.safetensors", Plain(), is_directory=False, metadata={})
            files.write(tmp_path / "b.safetensors", OwnBoth(), is_directory=False, metadata={})

    with pytest.raises(RunError, match=r"b\.safetensors: offset: was to be written, and is"):
        write_both()
    names = {"Plain.safetensors", "OwnSave.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_loss_by_rounding_is_said(tmp_path, caplog):
    network = Plain()
    with torch.no_grad():
        network.offset.fill_(2e-8)
    with VerifiedFiles(torch.float16) as files:
        files.write(tmp_path / "a.safetensors", network, is_directory=False, metadata={})
    for path, verified in files.written.items():
        tell(path, verified)
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message.endswith(
        "a.safetensors: rounding changes up to 100 % of a layer; save.dtype: fp32 keeps all"
    )
