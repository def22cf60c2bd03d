"""The validation loss of an image: a closed form, the same each time, for every family."""

from __future__ import annotations

import pytest
import tiny
import torch
from families import FAMILIES, NETWORKS
from probes import perturb

from modules.config import load
from modules.dataset import LatentDataset
from modules.held_out import hold_out
from modules.objectives import Epsilon
from modules.randomness import drawn_apart
from modules.trainer import Trainer
from modules.validation_losses import spread_timesteps

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "dropout": 0.3}}}
VALIDATION = {"split": 0.4, "num_timesteps": 3}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A dataset with guides, masks and features."""
    directory = tmp_path_factory.mktemp("everything") / "data"
    captions = ("a red <thing>", "a blue dog")
    return tiny.save_dataset(directory, {(32, 32): 6}, side_inputs=True, captions=captions)


def assemble(path, *overrides) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_is_the_mean_error_at_fixed_noise_and_timesteps(
    write_config, tmp_path, dataset_directory, prediction
):
    model = tiny.save_sd(tmp_path / "model", prediction_type=prediction)
    path = write_config(model={"path": str(model)}, networks=LORA, validation=VALIDATION)
    trainer = assemble(path, "objective.args.min_snr_gamma=5", "validation.seed=3")
    perturb(trainer.networks["lora"], scale=0.05)
    found = trainer.validation.measure(trainer)
    split = hold_out(LatentDataset(str(dataset_directory)), 0.4)
    assert found.shape == (len(split.measured), 3)
    row = 1
    sample = split.dataset[split.measured[row]]
    clean = sample.latents[None] * 0.5  # the VAE's scaling factor
    alphas_cumprod = trainer.model.scheduler.alphas_cumprod
    encoder = trainer.model.text_encoders[0]
    trainer.networks["lora"].eval()
    tokens = encoder.tokenizer(
        sample.caption, padding="max_length", max_length=16, return_tensors="pt"
    )
    for column, timestep in enumerate([167, 500, 833]):
        with drawn_apart("noise", 3, split.hashes[row], column):
            noise = torch.randn(clean.shape)
        signal, sigma = alphas_cumprod[timestep].sqrt(), (1 - alphas_cumprod[timestep]).sqrt()
        target = noise if prediction == "epsilon" else signal * noise - sigma * clean
        with torch.no_grad():
            states = encoder.module(tokens.input_ids).last_hidden_state
            noised = signal * clean + sigma * noise
            output = trainer.model.denoiser(noised, timestep, encoder_hidden_states=states).sample
        expected = (output - target).square().mean().item()
        assert found[row, column].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("network", ["lora", "controlnet"])
def test_every_family_is_measured_the_same_twice(
    write_config, everything, tmp_path, family, network
):
    kind = FAMILIES[family]
    if network in kind.refuses:
        pytest.skip(kind.refuses[network])
    model = tiny.save_sd(tmp_path / "model", make=kind.make)
    dataset = {
        "module": kind.dataset,
        "args": {"path": str(everything), "extras": {"control": "image"}, "mask": family != "if"},
    }
    networks = {network: NETWORKS[network]}
    sections = {"model": {"path": str(model)}, "dataset": dataset, "networks": networks}
    trainer = assemble(write_config(validation=VALIDATION, **sections))
    first = trainer.validation.measure(trainer)
    torch.manual_seed(77)
    assert torch.equal(trainer.validation.measure(trainer), first)
    assert torch.isfinite(first).all()
    assert len({round(value, 6) for value in first.flatten().tolist()}) == first.numel()
    trainer.train()
    assert not torch.equal(trainer.validation.measure(trainer), first)


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "lora"])
def test_every_network_is_measured(write_config, everything, network):
    args = {"path": str(everything), "extras": {"control": "image", "pfg": "npz"}}
    networks = {network: NETWORKS[network]}
    path = write_config(dataset={"args": args}, networks=networks, validation=VALIDATION)
    trainer = assemble(path)
    first = trainer.validation.measure(trainer)
    perturb(trainer.networks[network], scale=0.05)
    second = trainer.validation.measure(trainer)
    assert torch.isfinite(second).all()
    assert not torch.equal(first, second)


def test_what_training_weights_or_draws_has_no_say(write_config, everything):
    """Neither weights, dropout, repeats, batch size nor what is done to captions and images."""
    args = {"path": str(everything)}
    plain = assemble(write_config(dataset={"args": args}, networks=LORA, validation=VALIDATION))
    wanted = plain.validation.measure(plain)
    args |= {"caption_dropout": 0.5, "tag_dropout": 0.5, "shuffle_caption": True}
    other = write_config(
        dataset={"args": args},
        networks=LORA,
        validation=VALIDATION,
        objective={"args": {"min_snr_gamma": 5}},
        train={"batch_size": 4, "minibatch_repeat": 2, "seed": 9},
    )
    trainer = assemble(other)
    for source, target in zip(
        plain.networks["lora"].parameters(), trainer.networks["lora"].parameters(), strict=True
    ):
        target.data.copy_(source.data)
    assert torch.allclose(trainer.validation.measure(trainer), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"mixed_precision": "bf16"},
        {"gradient_checkpointing": True},
        {"tome_ratio": 0.5},
        {"stop_text_encoders_after": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_it_is_measured_as_it_is_trained(write_config, everything, options):
    networks = {"lora": NETWORKS["lora"]}
    args = {"path": str(everything)}
    path = write_config(
        dataset={"args": args}, networks=networks, train=options, validation=VALIDATION
    )
    trainer = assemble(path)
    plain = assemble(
        write_config("plain", dataset={"args": args}, networks=networks, validation=VALIDATION)
    )
    first = trainer.validation.measure(trainer)
    assert torch.equal(trainer.validation.measure(trainer), first)
    assert torch.allclose(first, plain.validation.measure(plain), rtol=0.02)
    trainer.train()
    trained = trainer.validation.measure(trainer)
    assert torch.isfinite(trained).all()
    assert not torch.equal(trained, first)


def test_a_mask_counts(write_config, everything):
    args = {"path": str(everything)}
    paths = [
        write_config(name, dataset={"args": each}, networks=LORA, validation=VALIDATION)
        for name, each in {"plain": args, "masked": {**args, "mask": True}}.items()
    ]
    plain, masked = (trainer.validation.measure(trainer) for trainer in map(assemble, paths))
    assert (masked < plain).all()


def test_no_more_rows_at_a_time_than_in_training(write_config, everything):
    path = write_config(
        dataset={"args": {"path": str(everything)}},
        networks=LORA,
        validation={"split": 0.4, "num_timesteps": 5},
    )
    trainer = assemble(path)
    rows = []
    trainer.model.denoiser.register_forward_pre_hook(
        lambda _module, args: rows.append(len(args[0]))
    )
    trainer.validation.measure(trainer)
    assert rows == [2, 2, 1] * len(trainer.validation.held_out.measured)


class Bell(Epsilon):
    """Draws timesteps in the middle more often."""

    def sample_timesteps(self, batch_size, device):
        places = torch.randn(batch_size, device=device).sigmoid()
        return (places * 1000).long()


class Continuous(Epsilon):
    """Draws timesteps between 0 and 1."""

    def sample_timesteps(self, batch_size, device):
        return torch.rand(batch_size, device=device)


@pytest.mark.parametrize(
    ("count", "timestep_range", "expected"),
    [
        (1, (0.0, 1.0), [500]),
        (4, (0.0, 1.0), [125, 375, 625, 875]),
        (2, (0.2, 0.6), [300, 500]),
        (4, (0.5, 0.502), [500, 501]),
    ],
)
def test_timesteps_are_the_middles_of_equal_parts(count, timestep_range, expected):
    objective = Epsilon(tiny.make_sd().scheduler, timestep_range=timestep_range)
    assert spread_timesteps(objective, count).tolist() == expected


def test_timesteps_of_other_distributions():
    scheduler = tiny.make_sd().scheduler
    bell = spread_timesteps(Bell(scheduler), 4).tolist()
    assert bell == pytest.approx([227, 422, 578, 773], abs=8)
    assert bell[1] - bell[0] > bell[2] - bell[1]
    found = spread_timesteps(Continuous(scheduler), 2)
    assert found.tolist() == pytest.approx([0.25, 0.75], abs=2e-3)
