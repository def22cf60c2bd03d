"""Class images beside those of the dataset, and networks that are merged first."""

from __future__ import annotations

import pytest
import tiny
import torch
from safetensors.torch import load_file

from modules.config import load
from modules.errors import ConfigError
from modules.trainer import Trainer

LORA = {"module": "networks.lora.LoRA", "args": {"rank": 2}}


def assemble(path, *overrides) -> Trainer:
    return Trainer.from_config(load(path, *overrides))


@pytest.fixture(scope="module")
def class_directory(tmp_path_factory):
    """Five class images of another bucket."""
    directory = tmp_path_factory.mktemp("class") / "data"
    return tiny.save_dataset(directory, {(32, 48): 5}, captions=["a dog"], seed=9)


def test_class_images_add_their_weighted_loss_and_no_steps(write_config, class_directory):
    prior = {"args": {"path": str(class_directory)}, "loss_weight": 0.25}
    networks = {"lora": LORA}
    with_prior = assemble(write_config("a", networks=networks, prior=prior))
    without = assemble(write_config("b", networks=networks))
    assert with_prior.steps_per_epoch == without.steps_per_epoch
    group = next(with_prior.step_groups())
    assert [part.batch.captions[0] for part in group][-1] == "a dog"
    losses = []
    for part in group:
        torch.manual_seed(0)
        losses.append(with_prior.loss(part.batch).item())
    expected = losses[0] / group[0].images + 0.25 * losses[1] / group[1].images
    for trainer in (with_prior,):
        loss = trainer.loss

        def seeded(batch, loss=loss):
            torch.manual_seed(0)
            return loss(batch)

        trainer._loss.compute = seeded
        assert trainer.train_step(group)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_a_run_with_class_images_keeps_its_length(write_config, class_directory):
    prior = {"args": {"path": str(class_directory), "prompt": "a dog"}}
    section = {"max_train_epochs": 2, "batch_size": 2}
    path = write_config(networks={"lora": LORA}, prior=prior, train=section)
    trainer = assemble(path)
    trainer.train()
    assert trainer.step == 2 * 5  # 5 and 3 images, two in a batch


def test_faults_of_the_class_images_are_named(write_config, class_directory):
    with pytest.raises(ConfigError, match=r"prior\.args\.path.*not a directory"):
        load(write_config(networks={"lora": LORA}, prior={"args": {"path": "nowhere"}}))
    prior = {"args": {"path": str(class_directory), "prefx": "a"}}
    with pytest.raises(ConfigError, match=r"prior\.args\.prefx: .*did you mean 'prefix'"):
        assemble(write_config(networks={"lora": LORA}, prior=prior))
    prior = {"args": {"path": str(class_directory)}}
    controlnet = {"module": "networks.controlnet.ControlNet"}
    with pytest.raises(ConfigError, match="but the"):
        assemble(write_config(networks={"net": controlnet}, prior=prior))


def test_a_frozen_network_is_merged_first_or_kept_beside(write_config):
    both = {**LORA, "args": {"rank": 2, "targets": ["unet", "text_encoders"]}}
    first = assemble(write_config("first", networks={"a": both}, train={"max_train_steps": 3}))
    first.train()
    file = str(first.directory / "first.safetensors")
    frozen = {**both, "train": False, "resume": file}
    batch = next(first.step_groups())[0].batch
    losses, trainers = [], []
    for merge in (False, True):
        networks = {"a": {**frozen, "merge": merge}, "b": LORA}
        path = write_config(f"merge_{merge}".lower(), networks=networks)
        trainers.append(assemble(path, "model.trainable=[unet.up_blocks]"))
        torch.manual_seed(0)
        losses.append(trainers[-1].loss(batch).item())
    plain = assemble(write_config("plain", networks={"b": LORA}))
    torch.manual_seed(0)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(plain.loss(batch).item(), rel=1e-5)
    trainers[1].train()
    saved = trainers[1].directory / "merge_true"
    encoder = load_file(saved / "text_encoder" / "model.safetensors")
    merged = trainers[1].model.text_encoders[0].module.state_dict()
    original = plain.model.text_encoders[0].module.state_dict()
    key = "encoder.layers.0.self_attn.q_proj.weight"
    assert torch.equal(encoder[f"text_model.{key}"], merged[key])
    assert not torch.equal(merged[key], original[key])


@pytest.mark.parametrize("section", [{"train": True}, {"train": False}])
def test_merging_without_a_file_is_a_fault(write_config, section):
    with pytest.raises(ConfigError, match=r"networks\.a\.merge"):
        load(write_config(networks={"a": {**LORA, **section, "merge": True}, "b": LORA}))
