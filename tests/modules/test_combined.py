"""Several networks in one run: a LoRA, ControlNets and a PFG, alone, frozen, resumed, sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import ControlNetModel
from PIL import Image

from modules.batch import Batch
from modules.config import load
from modules.errors import ConfigError, RunError
from modules.guides import stack
from modules.trainer import Trainer

LORA = {"module": "networks.lora.LoRA", "args": {"rank": 2}}
CONTROLNET = {"module": "networks.controlnet.ControlNet"}
PFG = {"module": "networks.pfg.PFG", "args": {"input_size": 12, "num_tokens": 3}}
ALL = {"lora": LORA, "pfg": PFG, "controlnet": CONTROLNET}
EXTRAS = {"control": "image", "pfg": "npz"}
SAMPLE = {"prompts": ["a red cat"], "width": 32, "height": 32, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def guided_directory(tmp_path_factory) -> Path:
    """A dataset of two buckets with guides, masks and features."""
    directory = tmp_path_factory.mktemp("guided") / "data"
    return tiny.save_dataset(directory, {(32, 32): 3, (48, 32): 3}, side_inputs=True)


@pytest.fixture
def write_guided(write_config, guided_directory):
    def write(name: str = "run", **sections) -> Path:
        args = {"path": str(guided_directory), "extras": EXTRAS}
        return write_config(name, dataset={"args": args}, **sections)

    return write


def assemble(path: Path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


def train(path: Path, *overrides: str) -> Trainer:
    trainer = assemble(path, *overrides)
    trainer.train()
    return trainer


def snapshot(module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def test_lora_controlnet_and_pfg_train_together_with_a_rate_each(write_guided, tmp_path):
    rates = {"lora": 1e-3, "pfg": 2e-3, "controlnet": 3e-3}
    networks = {name: {**ALL[name], "learning_rate": rate} for name, rate in rates.items()}
    trainer = assemble(write_guided(networks=networks, sample={**SAMPLE, "every_steps": 1}))
    found = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert found == {f"{name}.unet": rate for name, rate in rates.items()}
    before = {name: snapshot(network) for name, network in trainer.networks.items()}
    base = snapshot(trainer.model.denoiser)
    trainer.train()
    for name, network in trainer.networks.items():
        after = snapshot(network)
        assert any(not torch.equal(after[key], before[name][key]) for key in after), name
    assert all(torch.equal(v, base[k]) for k, v in snapshot(trainer.model.denoiser).items())
    saved = {path.name for path in trainer.directory.iterdir()}
    assert {"run-lora.safetensors", "run-pfg.safetensors", "run-pfg.pt", "run-controlnet"} <= saved
    net = ControlNetModel.from_pretrained(trainer.directory / "run-controlnet", dtype=torch.float32)
    own = trainer.networks["controlnet"].net.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in net.state_dict().items())


def test_each_resumes_from_its_file(write_guided):
    first = train(write_guided("first", networks=ALL))
    suffixes = {"lora": ".safetensors", "pfg": ".pt", "controlnet": ""}
    networks = {
        name: {**ALL[name], "resume": str(first.directory / f"first-{name}{suffix}")}
        for name, suffix in suffixes.items()
    }
    second = assemble(write_guided(networks=networks))
    for name, network in second.networks.items():
        expected = first.networks[name].state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_a_frozen_lora_under_a_trained_controlnet(write_guided):
    first = train(write_guided("first", networks={"lora": LORA}))
    file = first.directory / "first.safetensors"
    frozen = {**LORA, "train": False, "resume": str(file)}
    trainer = assemble(write_guided(networks={"lora": frozen, "controlnet": CONTROLNET}))
    before = snapshot(trainer.networks["lora"])
    assert any(value.any() for key, value in before.items() if "lora_up" in key)
    trainer.train()
    after = snapshot(trainer.networks["lora"])
    assert all(torch.equal(after[key], before[key]) for key in after)
    learnt = trainer.networks["controlnet"].net.controlnet_mid_block.parameters()
    assert any(parameter.any() for parameter in learnt)
    assert not (trainer.directory / "run-lora.safetensors").exists()
    assert (trainer.directory / "run").is_dir()  # the only one that is trained has the run's name


def test_two_controlnets_with_guides_of_their_own(write_config, guided_directory):
    args = {"path": str(guided_directory), "extras": {"control": "image", "pfg": "npz"}}
    networks = {"a": CONTROLNET, "b": {**CONTROLNET, "train": False}, "c": CONTROLNET}
    trainer = train(write_config(dataset={"args": args}, networks=networks))
    saved = {path.name for path in trainer.directory.glob("run-*") if path.is_dir()}
    assert saved == {"run-a", "run-c"}


def test_only_the_up_blocks_of_base_and_adapter(write_guided):
    lora = {**LORA, "args": {"rank": 2, "targets": ["unet.up_blocks"]}}
    trainer = assemble(
        write_guided(networks={"lora": lora, "controlnet": CONTROLNET}),
        "model.trainable=[unet.up_blocks]",
    )
    before = snapshot(trainer.model.denoiser)
    trainer.train()
    after = snapshot(trainer.model.denoiser)
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved
    assert all(key.startswith("up_blocks") for key in moved)
    assert all("up_blocks" in name for name in trainer.networks["lora"].layers)


@pytest.mark.parametrize("options", [(), ("train.gradient_checkpointing=true",)])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision_and_checkpointing_go_with_all_of_them(write_guided, options, precision):
    path = write_guided(networks=ALL, train={"mixed_precision": precision})
    trainer = train(path, "train.max_train_steps=1", *options)
    for name, network in trainer.networks.items():
        assert all(p.dtype == torch.float32 for p in network.parameters()), name
    record = (trainer.directory / "metrics.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in record


def test_checkpointing_leaves_a_controlnets_gradients_as_they_are(write_guided):
    gradients = []
    for checkpointing in ("false", "true"):
        path = write_guided(networks={"controlnet": CONTROLNET})
        trainer = assemble(path, f"train.gradient_checkpointing={checkpointing}")
        network = trainer.networks["controlnet"]
        assert network.net.is_gradient_checkpointing == (checkpointing == "true")
        with torch.no_grad():
            network.net.controlnet_mid_block.weight.fill_(0.1)
        batch = next(trainer.step_groups())[0].batch
        torch.manual_seed(0)
        trainer.loss(batch).backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters()})
    assert gradients[0]["net.conv_in.weight"].any()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-7), name


def test_a_controlnets_blocks_can_be_named_for_checkpointing(write_guided):
    path = write_guided(networks={"controlnet": CONTROLNET})
    options = "train.gradient_checkpointing=[networks.controlnet.net.down_blocks]"
    trainer = assemble(path, options)
    blocks = trainer.networks["controlnet"].net.down_blocks
    assert all(block.gradient_checkpointing for block in blocks)
    assert not any(block.gradient_checkpointing for block in trainer.model.denoiser.down_blocks)


def test_captions_are_not_needed_with_one_prompt(write_config, guided_directory, tmp_path):
    directory = tmp_path / "bare"
    tiny.save_dataset(directory, side_inputs=True)
    for caption in (directory / "captions").iterdir():
        caption.unlink()
    args = {"path": str(directory), "extras": {"pfg": "npz"}, "prompt": "a photo"}
    trainer = train(write_config(dataset={"args": args}, networks={"pfg": PFG}))
    assert trainer.step == 2


def test_features_of_another_size_stop_before_training(write_guided):
    networks = {"pfg": {**PFG, "args": {"input_size": 768}}}
    with pytest.raises(ConfigError, match=r"networks\.pfg: .* has 12 numbers, input_size is 768"):
        assemble(write_guided(networks=networks))


def test_what_is_missing_in_the_dataset_is_named(write_config, guided_directory):
    path = write_config(
        dataset={"args": {"path": str(guided_directory), "extras": {"control": "image"}}},
        networks={"pfg": PFG},
    )
    with pytest.raises(ConfigError, match=r"needs 'pfg' .* provides control; add `pfg: npz`"):
        assemble(path)


def test_grids_show_the_guides_of_the_dataset(write_guided, guided_directory):
    sample = {**SAMPLE, "prompts": None, "num_images": 3}
    trainer = train(write_guided(networks=ALL, sample=sample))
    assert [picture.prompt for picture in trainer.sampler.pictures] == ["a red cat"] * 3
    with Image.open(trainer.directory / "samples" / "step00000002.png") as sheet:
        assert sheet.width >= 2 * 2 * 192  # two cells in a row, each with guide and picture


def test_grids_take_a_persons_own_guides(write_guided, guided_directory, tmp_path):
    Image.new("RGB", (100, 60), "red").save(tmp_path / "guide.png")
    features = guided_directory / "pfg" / "image004.npz"
    extras = {"control": [str(tmp_path / "guide.png")], "pfg": [str(features)]}
    sample = {**SAMPLE, "prompts": ["a cat", "a dog"], "extras": extras}
    trainer = train(write_guided(networks=ALL, sample=sample))
    guides = stack(trainer.sampler._guides)
    assert guides["control"].shape == (2, 3, 32, 32)
    assert torch.allclose(guides["control"][:, 0], torch.ones(()))
    assert not guides["control"][:, 1:].any()
    assert guides["pfg"].shape == (2, 12)


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"depth": ["{guide}"]}, "no network asks for 'depth'"),
        ({"control": ["{guide}"] * 3}, "3 files for 2 prompts"),
    ],
)
def test_guides_that_do_not_fit_are_refused(write_guided, tmp_path, extras, message):
    Image.new("RGB", (32, 32)).save(tmp_path / "guide.png")
    extras = {k: [f.format(guide=tmp_path / "guide.png") for f in v] for k, v in extras.items()}
    sample = {**SAMPLE, "prompts": ["a", "b"], "extras": extras}
    with pytest.raises(ConfigError, match=message):
        assemble(write_guided(networks=ALL, sample=sample))


class Kept:
    """Keeps the prediction of the latest denoiser call, with its gradient."""

    def __init__(self, trainer: Trainer):
        self._denoise = trainer.model.denoise
        trainer.model.denoise = self

    def __call__(self, inputs):
        self.inputs = inputs
        self.prediction = self._denoise(inputs)
        self.prediction.retain_grad()
        return self.prediction


def masked_dataset(directory: Path) -> Path:
    """Two images of one bucket; the first has a mask of zeros but for a box, the second none."""
    tiny.save_dataset(directory, {(32, 32): 2})
    mask = np.zeros((8, 8), dtype=np.float32)
    mask[2:5, 3:6] = 1
    (directory / "mask").mkdir()
    np.savez(directory / "mask" / "image000.npz", mask)
    return directory


def loss_of_masked(write_config, directory: Path, **args):
    dataset = {"args": {"path": str(directory), "mask": True, **args}, "shuffle": False}
    trainer = assemble(write_config(networks={"lora": LORA}, dataset=dataset))
    kept = Kept(trainer)
    batch = next(trainer.step_groups())[0].batch
    torch.manual_seed(0)
    loss = trainer.loss(batch)
    loss.backward()
    return kept.prediction.grad, loss, batch


def test_no_gradient_comes_from_outside_of_a_mask(write_config, tmp_path):
    gradient, _, batch = loss_of_masked(write_config, masked_dataset(tmp_path / "data"))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:5, 3:6] = True
    assert batch.names == ["image000", "image001"]
    assert gradient[0][:, inside].all()
    assert not gradient[0][:, ~inside].any()
    assert gradient[1].all()  # an image without a mask counts fully beside one that has one


def test_a_normalized_mask_counts_as_much_as_a_whole_image(write_config, tmp_path):
    directory = masked_dataset(tmp_path / "data")
    plain, _, _ = loss_of_masked(write_config, directory)
    normalized, _, batch = loss_of_masked(write_config, directory, normalize_mask=True)
    assert batch.mask[0].mean().item() == pytest.approx(1.0)
    assert torch.allclose(normalized[0], plain[0] * 64 / 9, rtol=1e-4)
    assert torch.allclose(normalized[1], plain[1])


def test_repeats_share_latents_and_differ_in_noise_and_timestep(write_config, dataset_directory):
    path = write_config(networks={"lora": LORA}, train={"batch_size": 6, "minibatch_repeat": 3})
    trainer = assemble(path)
    kept = Kept(trainer)
    clean, noises = [], []
    add_noise = trainer.objective.add_noise

    def keep(latents, noise, timesteps):
        clean.append(latents)
        noises.append(noise)
        return add_noise(latents, noise, timesteps)

    trainer.objective.add_noise = keep
    group = next(group for group in trainer.step_groups() if group[0].images == 6)
    assert len(group[0].batch.captions) == 2  # read once, encoded once
    metrics = trainer.train_step(group)
    assert metrics["images"] == 6
    latents, noise = clean[0].view(2, 3, -1), noises[0].view(2, 3, -1)
    assert (latents == latents[:, :1]).all()
    assert not torch.equal(latents[0], latents[1])
    assert not torch.equal(noise[0, 0], noise[0, 1])
    assert len(set(kept.inputs.timestep.tolist())) > 2
    states = kept.inputs.encoder_hidden_states.view(2, 3, -1)
    assert (states == states[:, :1]).all()
    assert trainer.steps_per_epoch == 5  # 5 and 3 images, two in a batch


def test_the_loss_of_repeats_is_their_mean(write_config):
    losses = []
    for repeats in (1, 4):
        train_section = {"batch_size": 2 * repeats, "minibatch_repeat": repeats}
        trainer = assemble(write_config(networks={"lora": LORA}, train=train_section))
        timestep = torch.tensor([300])
        trainer.objective.sample_timesteps = lambda size, device, t=timestep: t.repeat(size)
        trainer.objective.sample_noise = torch.zeros_like
        losses.append(trainer.train_step(next(trainer.step_groups()))["loss"])
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)


def test_a_batch_that_the_repeats_do_not_divide_is_refused(write_config):
    path = write_config(networks={"lora": LORA}, train={"batch_size": 4, "minibatch_repeat": 3})
    with pytest.raises(ConfigError, match=r"train\.batch_size.*4 is no multiple of minibatch_rep"):
        load(path)


def test_pixels_of_repeats_are_encoded_once(write_config):
    trainer = assemble(write_config(networks={"lora": LORA}, train={"minibatch_repeat": 2}))
    seen = []
    encode = trainer.model.vae.encode

    def counted(pixels):
        seen.append(len(pixels))
        return encode(pixels)

    trainer.model.vae.encode = counted
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    loss = trainer.loss(Batch(captions=["a cat"] * 3, pixel_values=pixels))
    assert seen == [3]
    assert torch.isfinite(loss)


def test_files_of_the_wrong_kind_are_refused_before_training(write_guided, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for extras, message in (
        ({"pfg": [str(tmp_path / "a.png")]}, r"sample: 'pfg' has 3072 numbers"),
        ({"control": [str(tmp_path / "a.npy")]}, r"sample: 'control' has shape \(12,\)"),
    ):
        np.save(tmp_path / "a.npy", np.zeros(12, dtype=np.float32))
        sample = {**SAMPLE, "extras": extras, "at_start": False}
        with pytest.raises(ConfigError, match=message):
            assemble(write_guided(networks=ALL, sample=sample))


def test_odd_and_broken_features_are_named_before_training(write_guided, tmp_path):
    directory = tiny.save_dataset(tmp_path / "data", side_inputs=True)
    np.savez(directory / "pfg" / "image002.npz", controll=np.zeros(7, dtype=np.float32))
    override = f"dataset.args.path={directory}"
    with pytest.raises(ConfigError, match=r"pfg/image002\.npz: shape \(7,\) is not pfg/image000"):
        assemble(write_guided(networks=ALL), override)
    (directory / "pfg" / "image002.npz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"image002\.npz"):
        assemble(write_guided(networks=ALL), override)


def test_a_file_that_breaks_during_a_run_is_one_line(write_guided, tmp_path):
    directory = tiny.save_dataset(tmp_path / "data", side_inputs=True)
    trainer = assemble(write_guided(networks=ALL), f"dataset.args.path={directory}")
    for file in (directory / "control").iterdir():
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(RunError, match=r"^dataset: .*control/image00.\.png"):
        trainer.train()


def test_weights_of_a_mask_go_from_0_to_1(write_config, tmp_path):
    directory = masked_dataset(tmp_path / "data")
    np.savez(directory / "mask" / "image000.npz", np.full((8, 8), 255, dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"^dataset: mask/image000\.npz: has weights from 255 to"):
        loss_of_masked(write_config, directory)


def test_a_frozen_controlnet_takes_the_compute_dtype(write_guided, tmp_path):
    networks = {"lora": LORA, "net": {**CONTROLNET, "train": False}}
    path = write_guided(networks=networks, train={"mixed_precision": "bf16"})
    trainer = assemble(path)
    assert next(trainer.networks["net"].parameters()).dtype == torch.bfloat16
    trainer.train()
