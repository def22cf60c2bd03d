"""The train step and whole runs on a random tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modules.config import load
from modules.errors import ConfigError, RunError
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 4}}}
LORA_BOTH = {
    "lora": {
        "module": "networks.lora.LoRA",
        "args": {"rank": 4, "conv_rank": 2, "targets": ["unet", "text_encoders"]},
    }
}


def train(path: Path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    trainer.train()
    return trainer


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_lora_run_trains_the_lora_and_only_that(write_config):
    trainer = Trainer.from_config(load(write_config(networks=LORA_BOTH)))
    before = [snapshot(module) for module in trainer.model.components().values()]
    network = trainer.networks["lora"]
    start = snapshot(network)
    trainer.train()
    after = [snapshot(module) for module in trainer.model.components().values()]
    assert all(same(a, b) for a, b in zip(before, after, strict=True))
    moved = [k for k, v in snapshot(network).items() if not torch.equal(v, start[k])]
    assert len(moved) == len(list(network.parameters()))  # in two steps up and down both move
    assert trainer.step == 2


def test_a_network_with_train_false_leaves_everything_bit_identical(write_config):
    networks = {"frozen": {**LORA_BOTH["lora"], "train": False}, **LORA}
    first = train(write_config("first", networks=LORA_BOTH))
    file = first.directory / "first.safetensors"
    networks["frozen"]["resume"] = str(file)
    trainer = Trainer.from_config(load(write_config(networks=networks)))
    frozen = trainer.networks["frozen"]
    before = [snapshot(module) for module in (*trainer.model.components().values(), frozen)]
    plain = Trainer.from_config(load(write_config(networks=LORA))).model
    sample, time = torch.randn(1, 4, 8, 8), torch.tensor([5])
    states = torch.randn(1, 16, 32)
    trainer.train()
    with torch.no_grad():
        attached = trainer.model.denoiser(sample, time, states).sample
        trainer.networks["lora"].detach()
        applied = trainer.model.denoiser(sample, time, states).sample
        frozen.detach()
        bare = trainer.model.denoiser(sample, time, states).sample
        base = plain.denoiser(sample, time, states).sample
    assert not torch.equal(attached, applied)
    assert not torch.equal(applied, bare)
    assert torch.equal(bare, base)
    after = [snapshot(module) for module in (*trainer.model.components().values(), frozen)]
    assert all(same(a, b) for a, b in zip(before, after, strict=True))
    assert [path.name for path in trainer.directory.glob("*.safetensors")] == ["run.safetensors"]


@pytest.mark.parametrize(
    "trainable", [["unet"], ["text_encoders"], ["unet.up_blocks"], ["unet", "text_encoders"]]
)
def test_full_fine_tuning_moves_what_is_named(write_config, trainable):
    config = load(write_config(model={"trainable": trainable}))
    trainer = Trainer.from_config(config)
    named = {
        f"{name}.{key}": parameter
        for name, module in trainer.model.components().items()
        for key, parameter in module.named_parameters()
    }
    before = {key: parameter.detach().clone() for key, parameter in named.items()}
    trainer.train()
    moved = {key for key, parameter in named.items() if not torch.equal(parameter, before[key])}
    chosen = set(trainer.model.parameters_matching(trainable))
    assert moved <= chosen
    assert len(moved) > 0.9 * len(chosen)  # a few, as biases before a softmax, get no gradient
    saved = trainer.directory / "run"
    assert (saved / "model_index.json").is_file()
    tensors = load_file(saved / "unet" / "diffusion_pytorch_model.safetensors")
    assert same(tensors, trainer.model.denoiser.state_dict())


def test_loss_of_a_batch_is_the_sum_of_each_images_mean_error(write_config):
    trainer = Trainer.from_config(load(write_config(networks=LORA)))
    batch = next(iter(trainer.source.loader))
    torch.manual_seed(0)
    loss = trainer.loss(batch)
    torch.manual_seed(0)
    clean = batch.latents * trainer.model.vae.config.scaling_factor
    noise = torch.randn_like(clean)
    timesteps = torch.randint(0, 1000, (len(clean),))
    noisy = trainer.model.scheduler.add_noise(clean, noise, timesteps)
    states = trainer.model.encode_prompts(batch)["encoder_hidden_states"]
    prediction = trainer.model.denoiser(noisy, timesteps, states).sample
    assert torch.allclose(loss, (prediction - noise).square().mean((1, 2, 3)).sum(), atol=1e-5)


def gradients_of_one_step(path: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Gradients with which the first step was made, clipped; fixed noise for each image."""
    trainer = Trainer.from_config(load(path, *overrides))
    objective = trainer.objective

    def noise_of(clean):  # the same noise and timestep for an image in whatever batch it comes
        return torch.stack([latent.flip(-1) for latent in clean])

    def timesteps_of(size, device):
        return torch.full((size,), 400, device=device)

    objective.sample_noise, objective.sample_timesteps = noise_of, timesteps_of
    group = next(trainer.step_groups())
    seen: dict[str, torch.Tensor] = {}

    def keep(*_args, **_kwargs):
        named = trainer.networks["lora"].named_parameters()
        seen.update({key: p.grad.clone() for key, p in named if p.grad is not None})

    trainer.optimizer.optimizer.register_step_post_hook(keep)
    trainer.train_step(group)
    return seen


@pytest.mark.parametrize("batches", [3, 7], ids=["full_group", "short_group"])
def test_accumulation_equals_the_large_batch_also_with_a_short_rest(write_config, batches):
    """Five images of one bucket: one batch of 5, or batches of 2, 2 and 1 in one step."""
    import tiny

    path = write_config(networks=LORA, train={"max_grad_norm": 0.0})
    data = tiny.save_dataset(path.parent / "five", {(32, 32): 5})
    common = (f"dataset.args.path={data}", "train.max_grad_norm=0")
    large = gradients_of_one_step(path, *common, "train.batch_size=5")
    small = gradients_of_one_step(
        path, *common, "train.batch_size=2", f"train.gradient_accumulation_steps={batches}"
    )
    assert large
    assert large.keys() == small.keys()
    for key in large:
        assert torch.allclose(large[key], small[key], atol=1e-7), key
    assert max(gradient.abs().max() for gradient in large.values()) > 1e-4


def test_checkpointing_changes_no_gradient(write_config):
    path = write_config(networks=LORA_BOTH)
    plain = gradients_of_one_step(path)
    checkpointed = gradients_of_one_step(path, "train.gradient_checkpointing=true")
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[key], checkpointed[key], atol=1e-6) for key in plain)


def test_checkpointing_computes_blocks_again(write_config):
    trainer = Trainer.from_config(
        load(write_config(networks=LORA), "train.gradient_checkpointing=true")
    )
    calls = []
    block = trainer.model.denoiser.mid_block.attentions[0].transformer_blocks[0].attn1
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer.train_step(next(trainer.step_groups()))
    assert len(calls) == 2


@pytest.mark.parametrize("optimizer", ["fused", "foreach"])
def test_gradients_are_clipped(write_config, optimizer):
    path = write_config(networks=LORA, optimizer={"args": {optimizer: True}})
    free = gradients_of_one_step(path, "train.max_grad_norm=0")
    clipped = gradients_of_one_step(path, "train.max_grad_norm=1e-3")

    def norm(gradients):
        return torch.stack([g.norm() for g in gradients.values()]).norm().item()

    assert norm(free) > 1e-3
    assert norm(clipped) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("networks", [LORA, LORA_BOTH], ids=["unet", "both"])
def test_bf16_trains_in_float32_and_freezes_in_bf16(write_config, networks):
    trainer = train(write_config(networks=networks), "train.mixed_precision=bf16")
    assert {p.dtype for p in trainer.networks["lora"].parameters()} == {torch.float32}
    assert {p.dtype for p in trainer.model.denoiser.parameters()} == {torch.bfloat16}
    assert all(torch.isfinite(p).all() for p in trainer.networks["lora"].parameters())


def test_learning_rates_go_to_their_components(write_config):
    networks = {"lora": {**LORA_BOTH["lora"], "learning_rate": {"unet": 1e-3, "text_encoders": 0}}}
    trainer = Trainer.from_config(load(write_config(networks=networks)))
    rates = {group.name: group.learning_rate for group in trainer.groups}
    assert rates == {"lora.unet": 1e-3, "lora.text_encoders.0": 0.0}
    start = snapshot(trainer.networks["lora"])
    trainer.train()
    for key, value in snapshot(trainer.networks["lora"]).items():
        if key.endswith("lora_up.weight"):
            assert torch.equal(value, start[key]) == key.startswith("layers.lora_te"), key


def test_a_rate_for_what_is_not_trained_is_an_error(write_config):
    networks = {"lora": {**LORA["lora"], "learning_rate": {"unet": 1e-3, "text_encoders": 1e-4}}}
    with pytest.raises(
        ConfigError, match=r"lora\.learning_rate\.text_encoders: nothing of 'text_encoders' is"
    ):
        Trainer.from_config(load(write_config(networks=networks)))


def test_warm_up_rises_and_cosine_falls(write_config):
    path = write_config(
        networks=LORA,
        train={"max_train_steps": 8, "learning_rate": 1e-3, "log_every": 1, "batch_size": 2},
        lr_scheduler={"name": "cosine", "warmup_ratio": 0.25},
    )
    trainer = train(path)
    rates = [record["learning_rate/lora.unet"] for record in trainer.metrics.read()]
    assert rates[:3] == pytest.approx([0, 5e-4, 1e-3])  # the rate that each step was made with
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_running_the_resolved_config_repeats_the_run(write_config):
    first = train(write_config(networks=LORA_BOTH, train={"max_train_epochs": 1, "batch_size": 2}))
    second = train(first.directory / "config.yaml")
    assert second.directory == first.directory.with_name("run-2")
    a, b = (load_file(t.directory / "run.safetensors") for t in (first, second))
    assert same(a, b)
    different = train(first.directory / "config.yaml", "train.seed=1")
    assert not same(a, load_file(different.directory / "run.safetensors"))


STATE = ("weights.safetensors", "optimizer.pt", "progress.json", "manifest.json")


def test_samples_do_not_change_training(write_config):
    sample = {"prompts": ["a cat"], "width": 32, "height": 32, "num_inference_steps": 2}
    plain = train(write_config("plain", networks=LORA))
    sampled = train(write_config("sampled", networks=LORA, sample={**sample, "every_steps": 1}))
    a = load_file(plain.directory / "plain.safetensors")
    b = load_file(sampled.directory / "sampled.safetensors")
    assert same(a, b)


def test_a_run_writes_its_folder(write_config):
    sample = {"prompts": ["a cat", "a dog"], "width": 32, "height": 48, "num_inference_steps": 2}
    trainer = train(write_config(networks=LORA, sample=sample, train={"max_train_epochs": 2}))
    files = {str(p.relative_to(trainer.directory)) for p in trainer.directory.rglob("*.*")}
    steps = trainer.max_train_steps
    state = [Path(f"state-step{steps:08d}") / name for name in STATE]
    assert {
        "finished.json",
        *map(str, state),
        "config.yaml",
        "metrics.jsonl",
        "loss.png",
        "manifest.jsonl",
        "coverage.csv",
        "run.safetensors",
        "before_after.png",
        *(
            str(Path("samples") / f"step{step:08d}{ending}.png")
            for step in (0, steps)
            for ending in ("", "/00", "/01")
        ),
    } == files
    records = [
        json.loads(x) for x in (trainer.directory / "metrics.jsonl").read_text().splitlines()
    ]
    assert records[-1]["step"] == steps
    assert records[-1]["epoch"] == 2
    assert {"loss", "grad_norm", "learning_rate/lora.unet", "seconds_per_step"} <= set(records[-1])


def test_every_image_is_seen_once_an_epoch(write_config):
    trainer = Trainer.from_config(load(write_config(networks=LORA, train={"max_train_epochs": 3})))
    seen: list[str] = []
    loss = trainer.loss

    def spy(batch):
        seen.extend(batch.names)
        return loss(batch)

    trainer._loss.compute = spy
    trainer.train()
    assert sorted(seen) == sorted([f"image{n:03d}" for n in range(8)] * 3)


def test_the_plan_is_shown_and_nothing_is_trained(write_config, caplog, tmp_path):

    with caplog.at_level("INFO"):
        assert Trainer.from_config(load(write_config(networks=LORA_BOTH)), check=True) is None
    text = caplog.text
    assert "StableDiffusion, epsilon" in text
    assert "lora.unet: " in text
    assert "32x32: 5" in text
    assert f"{tmp_path / 'output' / 'run'}: run.safetensors" in text
    assert "5 batches of up to 2 an epoch -> 5 optimizer steps an epoch, 2 in all" in text
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"trainable": ["unet.upblocks"]}}, r"'unet.upblocks' matches no module; there:"),
        (
            {"networks": {"lora": {"module": "networks.lora.LoRA", "args": {"targets": ["vae"]}}}},
            r"networks.lora: the pattern 'vae' matches no module; there: text_encoders, unet",
        ),
        (
            {
                "networks": LORA,
                "sample": {"prompts": ["a"], "width": 33, "height": 32, "num_inference_steps": 2},
            },
            r"sample: width: 33 is no multiple of 8",
        ),
        (
            {"networks": LORA, "optimizer": {"module": "torch.optim.AdamW", "args": {"eps": -1.0}}},
            r"optimizer: Invalid epsilon value",
        ),
        (
            {"networks": {"mine": {"module": "plugged_in.NeedsControl"}}},
            r"needs 'control' in every batch, but the dataset provides",
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_error(write_config, sections, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Trainer.from_config(load(write_config(**sections)))
    assert not (tmp_path / "output").exists()


def test_a_shared_rate_by_component_serves_different_owners(write_config):
    text_lora = {"module": "networks.lora.LoRA", "args": {"targets": ["text_encoders"]}}
    rates = {"unet": 1e-3, "text_encoders": 1e-4}
    path = write_config(
        networks={**LORA, "text": text_lora},
        train={"learning_rate": rates, "max_train_steps": 1},
    )
    trainer = Trainer.from_config(load(path))
    found = {group.name: group.learning_rate for group in trainer.groups}
    assert found == {"lora.unet": 1e-3, "text.text_encoders.0": 1e-4}
    with pytest.raises(ConfigError, match=r"train\.learning_rate\.vae: nothing of"):
        Trainer.from_config(load(path, "train.learning_rate.vae=1"))


@pytest.mark.parametrize("name", ["my lora", "items", "forward", "training"])
def test_a_network_may_have_any_name(write_config, name):
    trainer = train(write_config(networks={name: LORA["lora"]}))
    assert (trainer.directory / "run.safetensors").is_file()


def test_a_loss_that_is_not_finite_stops_the_run(write_config):
    train = {"max_train_steps": 20, "learning_rate": 1e30, "max_nonfinite_steps": 3}
    trainer = Trainer.from_config(load(write_config(networks=LORA, train=train)))
    with pytest.raises(RunError, match=r"not finite in so many steps in a row"):
        trainer.train()
    assert trainer.step < 20
    assert trainer.metrics.read()[-1]["loss"] is None
    assert not (trainer.directory / "run.safetensors").exists()


def test_components_that_refuse_their_values_are_listed_together(write_config):
    networks = {"a": {"module": "networks.lora.LoRA", "args": {"rank": 0}}}
    networks["b"] = {"module": "networks.lora.LoRA", "args": {"targets": []}}
    with pytest.raises(ConfigError) as raised:
        Trainer.from_config(load(write_config(networks=networks)))
    assert "networks.a: rank: 0 is not a rank" in str(raised.value)
    assert "networks.b: targets: is empty" in str(raised.value)


def test_resuming_takes_the_files_rank_and_says_so(write_config, capfd):
    from safetensors import safe_open

    from modules.console import set_up_logging

    set_up_logging()
    first = train(write_config("first", networks=LORA))
    resumed = {"module": "networks.lora.LoRA", "args": {"rank": 9, "alpha": 3}}
    resumed["resume"] = str(first.directory / "first.safetensors")
    second = train(write_config("second", networks={"lora": resumed}))
    shown = capfd.readouterr().out
    assert "has rank 4, which is taken" in shown
    assert "has alpha 4, which is taken" in shown
    with safe_open(second.directory / "second.safetensors", framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"
        assert file.metadata()["ss_network_alpha"] == "4"


@pytest.mark.parametrize(
    ("path", "args"),
    [
        ("torch.optim.SGD", {"momentum": 0.9}),
        ("torch.optim.Adafactor", {}),
        ("prodigyopt.Prodigy", {"weight_decay": 0.01}),
        ("schedulefree.AdamWScheduleFree", {"warmup_steps": 1}),
    ],
)
def test_optimizers_of_any_package_train(write_config, path, args):
    sample = {"prompts": ["a cat"], "width": 32, "height": 32, "num_inference_steps": 1}
    config = load(
        write_config(
            networks=LORA,
            optimizer={"module": path, "args": args},
            train={"max_train_steps": 4, "learning_rate": 0.1},
            save={"every_steps": 2},
            sample={**sample, "every_steps": 2},
        )
    )
    trainer = Trainer.from_config(config)
    start = snapshot(trainer.networks["lora"])
    trainer.train()
    assert not same(start, snapshot(trainer.networks["lora"]))


def test_schedule_free_weights_are_saved_as_they_are_to_be_used(write_config):
    optimizer = {"module": "schedulefree.AdamWScheduleFree", "args": {}}
    path = write_config(networks=LORA, optimizer=optimizer, train={"max_train_steps": 4})
    trainer = train(path, "train.learning_rate=0.01")
    saved = load_file(trainer.directory / "run.safetensors")
    layers = trainer.networks["lora"].layers
    training = snapshot(layers)
    trainer.optimizer.eval()
    usable = snapshot(layers)
    assert max((usable[key] - training[key]).abs().max() for key in saved) > 1e-4
    assert all(torch.allclose(usable[key], saved[key], atol=1e-6) for key in saved)


def test_an_optimizer_that_wants_a_closure_is_refused(write_config):
    path = write_config(networks=LORA, optimizer={"module": "torch.optim.LBFGS", "args": {}})
    with pytest.raises(ConfigError, match=r"optimizer\.module: .*LBFGS"):
        Trainer.from_config(load(path))


def test_a_run_that_changes_the_schedule_saves_and_draws_so(write_config, caplog):
    import json

    objective = {
        "module": "modules.objectives.VPrediction",
        "args": {"zero_terminal_snr": True},
    }
    sample = {"prompts": ["a cat"], "width": 32, "height": 32, "num_inference_steps": 2}
    path = write_config(objective=objective, model={"trainable": ["unet.up_blocks"]}, sample=sample)
    trainer = train(path)
    saved = trainer.directory / "run" / "scheduler" / "scheduler_config.json"
    config = json.loads(saved.read_text(encoding="utf-8"))
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    assert trainer.model.scheduler.alphas_cumprod[-1] == 0
    again = Trainer.from_config(load(path, f"model.path={trainer.directory / 'run'}"))
    assert again.model.scheduler.alphas_cumprod[-1] == 0
    assert again.model.default_objective().prediction_type == "v_prediction"


def test_max_norm_bounds_every_layers_change(write_config):
    network = {"module": "networks.lora.LoRA", "args": {"rank": 2, "max_norm": 0.002}}
    free = {"module": "networks.lora.LoRA", "args": {"rank": 2}}
    norms = []
    for section in (network, free):
        trainer = train(write_config(networks={"lora": section}, train={"learning_rate": 0.01}))
        layers = trainer.networks["lora"].layers.values()
        norms.append(max(layer.delta_weight().norm().item() for layer in layers))
    assert norms[0] <= 0.002 * 1.01
    assert norms[1] > 0.004
