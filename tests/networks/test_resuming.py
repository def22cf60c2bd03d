"""What becomes of the layers of a file that are other ones than the targets."""

from __future__ import annotations

import pytest
import tiny
import torch
from foreign_adapters import layers_of, twin, with_peft, write_lycoris
from peft import LoraConfig
from probes import outputs, perturb
from safetensors.torch import load_file, save_file

from modules.component import resolve
from modules.config import load
from modules.savers import is_trained
from modules.trainer import Trainer
from networks.lora import LoRA


@pytest.fixture
def full_file(tmp_path):
    """A LoCon of LyCORIS' full preset on both components."""
    return write_lycoris(tiny.make_sd(), tmp_path / "full.safetensors", "locon")


def resumed(model, path, **options) -> LoRA:
    network = LoRA(**options)
    network.attach(model)
    network.load(path)
    return network


def test_layers_beside_the_targets_are_applied_and_saved_but_not_trained(
    full_file, tmp_path, caplog
):
    model = tiny.make_sd()
    with caplog.at_level("INFO"):
        network = resumed(model, full_file, dropout=0.5, module_dropout=0.5)
    count, targets = len([*layers_of(model)]), len(network._paths)
    assert f"{count - targets} of its {count} layers are beside the targets, first " in caplog.text
    assert "begin as new ones" not in caplog.text
    for _ in range(2):  # as loaded, and when the trainer has said what is trained
        trained = {name for name, p in network.named_parameters() if p.requires_grad}
        assert {name.split(".")[1] for name in trained} == set(network._paths)
        network.requires_grad_(True)
    groups = network.parameter_groups()
    assert sum(len(group) for group in groups.values()) == len([*network.parameters()]) == 2 * count
    assert any(path.startswith("text_encoders.0.") for path in groups)
    network.requires_grad_(False)
    assert not is_trained(network)
    network.train()  # with dropout of those only that are trained
    assert {
        layer.dropouts.dropout for name, layer in network.layers.items() if name in network._beside
    } == {0.0}
    network.eval()
    network.save(tmp_path / "again.safetensors", dtype=torch.float32, metadata={})
    assert load_file(tmp_path / "again.safetensors").keys() == load_file(full_file).keys()
    expected = outputs(model)
    network.detach()
    again = twin(tiny.make_sd())
    network.attach(again)
    assert all(torch.equal(a, b) for a, b in zip(outputs(again), expected, strict=True))


def test_targets_without_a_layer_begin_as_new_ones(tmp_path, caplog):
    model = tiny.make_sd()
    path = write_lycoris(twin(model), tmp_path / "a.safetensors", "locon", without="up_blocks")
    expected = outputs(resumed_model(path))
    with caplog.at_level("INFO"):
        network = resumed(model, path, targets=("unet", "text_encoders"))
    fresh = [name for name in network._paths if "up_blocks" in name]
    assert f"has no layers for {len(fresh)} of {len(network._paths)} targets, first {fresh[0]}" in (
        caplog.text
    )
    assert not any(network.layers[name].lora_up.weight.any() for name in fresh)
    assert all(p.requires_grad for n in fresh for p in network.layers[n].parameters())
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), expected, strict=True))


def resumed_model(path):
    model = tiny.make_sd()
    resumed(model, path)
    return model


def test_layers_without_effect_are_left_out(tmp_path, caplog):
    """SDXL reads the last state but one of its first text encoder."""
    model = tiny.make_sdxl()
    prefixes = {"unet": "lora_unet", "text_encoders.0": "lora_te1", "text_encoders.1": "lora_te2"}
    path = write_lycoris(twin(model), tmp_path / "a.safetensors", "locon", prefixes=prefixes)
    with caplog.at_level("INFO"):
        network = resumed(model, path)
    assert (
        "6 of its layers have no effect in this model and are left out, first "
        "text_encoders.0.encoder.layers.1." in caplog.text
    )
    assert not any("te1_text_model_encoder_layers_1" in name for name in network.layers)
    assert any("te2_text_model_encoder_layers_1" in name for name in network.layers)


def test_an_error_leaves_the_network_as_it_was(full_file, tmp_path):
    model = tiny.make_sd()
    network = LoRA()
    network.attach(model)
    perturb(network)
    before = outputs(model)
    tensors = load_file(full_file)
    last = max(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[last] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=f"{last.split('.')[0]} is no LoRA of this layer"):
        network.load(tmp_path / "wrong.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))


@pytest.mark.parametrize("mode", [True, False])
def test_layers_of_a_file_are_in_the_networks_mode(full_file, mode):
    """Those that only draw would else drop layers."""
    network = LoRA(module_dropout=0.5)
    network.attach(tiny.make_sd())
    network.train(mode)
    network.load(full_file)
    assert {module.training for module in network.modules()} == {mode}


def test_a_second_file_replaces_the_first(full_file, tmp_path):
    model = tiny.make_sd()
    network = resumed(model, full_file, targets=("unet.mid_block",))
    other = write_lycoris(tiny.make_sd(), tmp_path / "b.safetensors", "locon", without="blocks")
    network.load(other)
    assert not any("down_blocks" in name for name in network.layers)
    assert "lora_unet_conv_in" in network.layers


RUNS = {
    "lycoris-locon": ("networks.lora.LoRA", "locon", {"use_tucker": True}),
    "lycoris-loha": ("networks.loha.LoHa", "loha", {"use_tucker": True}),
    "lycoris-lokr": ("networks.lokr.LoKr", "lokr", {"weight_decompose": True}),
    "peft-lora": ("networks.lora.LoRA", None, {"use_rslora": True}),
}


@pytest.mark.parametrize("name", RUNS)
def test_training_goes_on_from_the_file(name, write_config, model_directory, tmp_path):
    from modules import models

    module, algorithm, options = RUNS[name]
    base = models.load(str(model_directory))
    if algorithm:
        path = write_lycoris(base, tmp_path / "a.safetensors", algorithm, **options)
    else:
        path = tmp_path / "peft"
        for piece, wrapped in with_peft(base, LoraConfig, **options).items():
            wrapped.save_pretrained(path / piece)
    section = {"module": module, "args": {"rank": 2, "targets": ["unet"]}, "resume": str(path)}
    trainer = Trainer.from_config(load(write_config(networks={"a": section})))
    network = trainer.networks["a"]
    assert {g["name"].split(".")[1] for g in trainer.optimizer.param_groups} == {"unet"}
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    assert all(
        torch.allclose(a, b, atol=1e-5, rtol=1e-5)
        for a, b in zip(outputs(trainer.model), outputs(base), strict=True)
    )
    trainer.train()
    moved = {
        n.split(".")[1] for n, p in network.named_parameters() if not torch.equal(p, before[n])
    }
    assert moved == set(network._paths)
    file = trainer.directory / "run.safetensors"
    again = models.load(str(model_directory))
    network.eval()
    second = resolve(module)()
    second.attach(again)
    second.load(file)
    assert set(second.layers) == set(network.layers)
    assert all(
        torch.allclose(a, b, atol=1e-5, rtol=1e-5)
        for a, b in zip(outputs(again), outputs(trainer.model), strict=True)
    )


def test_a_frozen_file_is_applied_whole_and_merged_whole(
    full_file, write_config, model_directory, tmp_path
):
    from modules import models

    model = models.load(str(model_directory))
    resumed(model, full_file)
    expected = outputs(model)
    lora = {"module": "networks.lora.LoRA", "args": {"rank": 2}}
    for options in ({}, {"merge": True}):
        frozen = {**lora, "train": False, "resume": str(full_file), **options}
        config = write_config(f"run{len(options)}", networks={"frozen": frozen, "new": lora})
        trainer = Trainer.from_config(load(config))
        found = outputs(trainer.model)
        assert all(
            torch.allclose(a, b, atol=2e-5, rtol=1e-4) for a, b in zip(found, expected, strict=True)
        )
        assert not is_trained(trainer.networks["frozen"])
        assert trainer.model.changed == ({"unet", "text_encoders.0"} if options else frozenset())
