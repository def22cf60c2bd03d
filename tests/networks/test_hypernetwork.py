"""Hypernetworks: keys and values of x + perceptron(x), files in AUTOMATIC1111's form."""

from __future__ import annotations

import pytest
import tiny
import torch
import torch.nn.functional as F
from probes import outputs, perturb
from torch import nn

from modules.config import load
from modules.errors import ConfigError
from modules.trainer import Trainer
from networks.hypernetwork import Hypernetwork
from networks.lora import LoRA
from networks.perceptron import Perceptron, Structure

SGD = {"module": "torch.optim.SGD"}
PATH = "networks.hypernetwork.Hypernetwork"
SAMPLE = {"prompts": ["a red cat"], "width": 32, "height": 32, "num_inference_steps": 2}
OPTIONS = [
    {},
    {"layer_structure": (1, 2, 2, 1), "activation_func": "leakyrelu"},
    {"activation_func": "tanh", "activate_output": True, "layer_norm": True},
    {"activation_func": "linear", "layer_norm": True, "layer_structure": (1, 0.5, 1)},
    {"layer_structure": (1, 1.5, 2, 1), "activation_func": "swish", "dropout": 0.3},
]


def attached(model=None, **options):
    model = model or tiny.make_sd()
    network = Hypernetwork(**options)
    network.attach(model)
    return model, network


def snapshot(module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def reference(tensors, content) -> nn.Sequential:
    """The layers of a file, put together as the programs that read it do."""
    activations = {"relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "tanh": nn.Tanh}
    activations |= {"swish": nn.Hardswish}
    structure, name = content["layer_structure"], content["activation_func"]
    size = tensors["linear.0.weight"].shape[1]
    layers: list[nn.Module] = []
    for number in range(len(structure) - 1):
        inputs, outputs = int(size * structure[number]), int(size * structure[number + 1])
        layers.append(nn.Linear(inputs, outputs))
        is_last = number == len(structure) - 2
        if name != "linear" and (not is_last or content["activate_output"]):
            layers.append(activations[name]())
        if content["is_layer_norm"]:
            layers.append(nn.LayerNorm(outputs))
        if content["dropout_structure"][number + 1] > 0:
            layers.append(nn.Dropout(content["dropout_structure"][number + 1]))
    whole = nn.Sequential(*layers)
    whole.load_state_dict({key.removeprefix("linear."): value for key, value in tensors.items()})
    return whole.eval()


# -- the mathematics ----------------------------------------------------------------------------


def test_a_perceptron_is_its_closed_form():
    structure = Structure(
        layer_structure=(1, 2, 1), activation_func="relu", layer_norm=False, activate_output=False
    )
    perceptron = Perceptron(6, structure, dropout=0.0)
    perturb(perceptron)
    weights = perceptron.state_dict()
    assert list(weights) == ["linear.0.weight", "linear.0.bias", "linear.2.weight", "linear.2.bias"]
    x = torch.randn(2, 5, 6)
    hidden = (x @ weights["linear.0.weight"].T + weights["linear.0.bias"]).clamp(min=0)
    expected = hidden @ weights["linear.2.weight"].T + weights["linear.2.bias"]
    assert torch.allclose(perceptron(x), expected, atol=1e-6)


def test_keys_and_values_are_made_of_x_plus_the_perceptron():
    model, network = attached(multiplier=0.5)
    perturb(network)
    seen = 0
    for path, layer in model.denoiser.named_modules():
        if not path.endswith(("to_k", "to_v", "to_q")):
            continue
        x = torch.randn(1, 7, layer.in_features)
        expected = x
        if not path.endswith("to_q"):
            pair = network.pairs[str(layer.in_features)]
            expected = x + 0.5 * pair[0 if path.endswith("to_k") else 1](x)
            seen += 1
        assert torch.allclose(layer(x), F.linear(expected, layer.weight), atol=1e-5), path
    assert seen == 4 * len([p for p, _ in model.denoiser.named_modules() if p.endswith("attn1")])


def test_sd1_has_automatic1111s_four_sizes():
    from diffusers import UNet2DConditionModel

    model = tiny.make_sd()
    with torch.device("meta"):
        model.denoiser = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    _, network = attached(model)
    assert list(network.pairs) == ["320", "640", "768", "1280"]
    assert len(network._hooks) == 64  # to_k and to_v of two attentions in 16 blocks


def test_the_base_keeps_its_state_dict_and_detach_restores_it():
    model = tiny.make_sd()
    before, keys = outputs(model), list(model.denoiser.state_dict())
    _, network = attached(model)
    perturb(network)
    assert list(model.denoiser.state_dict()) == keys
    changed = outputs(model)
    assert torch.equal(changed[0], before[0])
    assert (changed[1] - before[1]).abs().max() > 1e-3
    network.detach()
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model), strict=True))
    network.attach(model)
    assert torch.equal(outputs(model)[1], changed[1])


def test_the_first_effect_is_small_and_with_zero_none():
    before = outputs(tiny.make_sd())[1]
    torch.manual_seed(0)
    change = (outputs(attached()[0])[1] - before).norm() / before.norm()
    assert 0 < change < 1e-2
    model, network = attached(weight_init="Zero")
    assert torch.equal(outputs(model)[1], before)
    assert all(p.any() for name, p in network.named_parameters() if name.endswith("0.weight"))


@pytest.mark.parametrize(
    "kind", ["Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal"]
)
def test_weights_begin_with_the_spread_of_their_kind(kind):
    torch.manual_seed(0)
    structure = Structure(
        layer_structure=(1, 2, 1), activation_func="relu", layer_norm=True, activate_output=False
    )
    perceptron = Perceptron(200, structure, dropout=0.0)
    perceptron.initialise(kind, "relu")
    first, _, norm = perceptron.linear[:3]
    expected = {"Norm": 0.01, "Kaim": (2 / 200) ** 0.5, "Xavi": (2 / 600) ** 0.5}[kind[:4]]
    assert first.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert norm.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert not first.bias.any()
    assert not norm.bias.any()


def test_dropout_acts_on_hidden_layers_in_training_only():
    structure = Structure(
        layer_structure=(1, 2, 1), activation_func="linear", layer_norm=False, activate_output=False
    )
    perceptron = Perceptron(64, structure, dropout=0.5)
    with torch.no_grad():
        for layer in perceptron.linear:
            layer.weight.zero_()
            layer.bias.fill_(1.0)
        perceptron.linear[1].weight.fill_(1.0)
    x = torch.zeros(1, 64)
    torch.manual_seed(0)
    dropped = perceptron(x)  # 1 + 2 for each of the hidden ones that is left
    assert (dropped == dropped[0, 0]).all()
    assert 129 - 60 < dropped[0, 0] < 129 + 60
    assert dropped[0, 0] != 129
    assert (perceptron.eval()(x) == 129).all()


def test_a_lora_works_on_what_it_has_changed():
    model = tiny.make_sd()
    lora = LoRA(rank=2)
    lora.attach(model)
    perturb(lora)
    _, network = attached(model)
    perturb(network)
    both = outputs(model)[1]
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    layer = model.denoiser.get_submodule(path)
    x = torch.randn(1, 7, 32)
    changed = x + network.pairs["32"][0](x)
    part = lora.layers[f"lora_unet_{path.replace('.', '_')}"]
    expected = F.linear(changed, layer.weight) + part(changed)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    lora.merge()  # the order in which they were attached does not matter
    assert torch.allclose(outputs(model)[1], both, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_structure": (1, 2)}, r"layer_structure: \[1, 2\] doesn't begin and end with 1"),
        ({"layer_structure": (1,)}, "doesn't begin and end with 1"),
        ({"layer_structure": (1, 0, 1)}, "has a width of 0 or less"),
        ({"activation_func": "gelu"}, "activation_func: 'gelu' is not one of linear, relu"),
        ({"dropout": 1.0}, "dropout: 1.0 is not a probability below 1"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hypernetwork(**options)


def test_sizes_choose_layers():
    model, network = attached(sizes=[16])
    assert list(network.pairs) == ["16"]
    layers = {path: each for path, each in model.denoiser.named_modules() if "attn" in path}
    hooked = {path for path, each in layers.items() if each._forward_pre_hooks}
    assert hooked
    assert all("attn1" in path for path in hooked)  # of 16 channels; cross-attention has 32
    with pytest.raises(ValueError, match=r"sizes: \[768\] are not in this model, which has \[16, "):
        attached(sizes=[16, 768])


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_a_file_is_what_its_readers_put_together(tmp_path, options):
    _, network = attached(**options)
    perturb(network)
    network.save(tmp_path / "a.pt", dtype=torch.float32, metadata={"ss_output_name": "a"})
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    sizes = [key for key in content if isinstance(key, int)]
    assert sizes == [16, 32]
    network.eval()
    for size in sizes:
        for tensors, own in zip(content[size], network.pairs[str(size)], strict=True):
            x = torch.randn(2, 5, size)
            assert torch.allclose(reference(tensors, content)(x), own(x), atol=1e-6)


def test_a_file_has_automatic1111s_entries(tmp_path):
    _, network = attached()
    metadata = {"ss_steps": "7", "ss_output_name": "style", "ss_sd_model_name": "base"}
    network.save(tmp_path / "a.pt", dtype=torch.float16, metadata=metadata)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content.pop(16)[0]["linear.0.weight"].dtype == torch.float16
    assert [sorted(each) for each in content.pop(32)] == 2 * [
        ["linear.0.bias", "linear.0.weight", "linear.2.bias", "linear.2.weight"]
    ]
    assert content == {
        "layer_structure": [1, 2, 1],
        "activation_func": "relu",
        "is_layer_norm": False,
        "weight_initialization": "Normal",
        "activate_output": False,
        "use_dropout": False,
        "dropout_structure": [0, 0, 0],
        "last_layer_dropout": False,
        "name": "style",
        "step": 7,
        "sd_checkpoint": None,
        "sd_checkpoint_name": "base",
        "optional_info": None,
        "metadata": metadata,
    }


@pytest.mark.parametrize("options", OPTIONS)
def test_a_file_is_read_back_with_its_structure(tmp_path, options, caplog):
    model, network = attached(**options)
    perturb(network)
    network.eval()
    network.save(tmp_path / "a.pt", dtype=torch.float32, metadata={})
    other_model, other = attached(activation_func="mish")
    other.load(tmp_path / "a.pt")
    other.eval()
    assert torch.equal(outputs(other_model)[1], outputs(model)[1])
    assert "has activation_func" in caplog.text
    assert other.structure == network.structure
    other.detach()
    assert torch.equal(outputs(other_model)[1], outputs(tiny.make_sd())[1])


def test_files_that_count_dropout_and_the_oldest_are_read(tmp_path):
    weights = [torch.randn(32, 16), torch.randn(32), torch.randn(16, 32), torch.randn(16)]
    names = ["weight", "bias"] * 2
    numbered = zip((0, 0, 3, 3), names, weights, strict=True)  # 1 is relu, 2 dropout
    dropout = {f"linear.{n}.{name}": value for n, name, value in numbered}
    oldest = zip(("linear1", "linear1", "linear2", "linear2"), names, weights, strict=True)
    plain = {f"{n}.{name}": value for n, name, value in oldest}
    x = torch.randn(3, 16)
    hidden = F.linear(x, weights[0], weights[1])
    for tensors, entries, activated in (
        (dropout, {"activation_func": "relu", "use_dropout": True}, hidden.relu()),
        (plain, {}, hidden),
    ):
        content = {16: (tensors, tensors), "activate_output": False, **entries}
        torch.save(content, tmp_path / "a.pt")
        _, network = attached()
        network.load(tmp_path / "a.pt")
        assert list(network.pairs) == ["16"]
        expected = F.linear(activated, weights[2], weights[3])
        assert torch.allclose(network.pairs["16"][0](x), expected, atol=1e-5)


def test_wrong_files_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    good = {"linear.0.weight": torch.zeros(16, 16), "linear.0.bias": torch.zeros(16)}
    for content, message in (
        ({"other": torch.zeros(1)}, "is no hypernetwork"),
        ({768: (good, good)}, r"is for another kind of model: it changes widths \[768\]"),
        ({16: (good, good)}, "its layers are others than those that it names"),
        ({16: (good,), "layer_structure": [1, 1]}, "can't be taken over"),
        ({16: ({"x": good},) * 2, "layer_structure": [1, 1]}, "x belongs to no layer"),
        ({16: (good, good), "activation_func": "gelu"}, "'gelu' is not one of"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            attached()[1].load(path)


# -- in a run -----------------------------------------------------------------------------------


def assemble(path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_beside_a_lora(write_config, precision, checkpointing):
    args = {"layer_norm": True, "dropout": 0.1, "activate_output": True}
    networks = {
        "hyper": {"module": PATH, "args": args, "learning_rate": 1e-4},
        "lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}},
    }
    section = {"mixed_precision": precision, "gradient_checkpointing": checkpointing}
    trainer = assemble(write_config(networks=networks, train=section, sample=SAMPLE))
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"hyper.unet": 1e-4, "lora.unet": 1e-3}
    base = snapshot(trainer.model.denoiser)
    before = {name: snapshot(network) for name, network in trainer.networks.items()}
    trainer.train()
    after = snapshot(trainer.model.denoiser)
    assert all(torch.equal(after[key], base[key]) for key in base)
    for name, network in trainer.networks.items():
        found = snapshot(network)
        moved = {key for key in found if not torch.equal(found[key], before[name][key])}
        assert moved == {key for key in found if not key.endswith("alpha")}, name
    names = {path.name for path in trainer.directory.iterdir()}
    assert {"run-hyper.pt", "run-lora.safetensors", "before_after.png"} <= names


def test_checkpointing_changes_no_gradient(write_config):
    gradients = []
    for checkpointing in (False, True):
        networks = {"hyper": {"module": PATH, "args": {"dropout": 0.2}}}
        section = {"gradient_checkpointing": checkpointing, "max_train_steps": 1}
        trainer = assemble(write_config(networks=networks, train=section, optimizer=SGD))
        before = snapshot(trainer.networks["hyper"])
        trainer.train()
        after = snapshot(trainer.networks["hyper"])
        gradients.append({key: after[key] - before[key] for key in after})
    for key, gradient in gradients[0].items():
        assert gradient.any(), key
        assert torch.allclose(gradient, gradients[1][key], rtol=1e-3, atol=1e-8), key


def test_a_run_goes_on_from_its_file(write_config):
    network = {"module": PATH, "args": {"layer_structure": [1, 1.5, 1]}}
    first = assemble(write_config("first", networks={"style": network}))
    first.train()
    resumed = {"module": PATH, "resume": str(first.directory / "first.pt")}
    second = assemble(write_config(networks={"style": resumed}))
    expected = snapshot(first.networks["style"])
    found = snapshot(second.networks["style"])
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    owned = {id(p) for group in second.groups for p in group.parameters}
    assert owned == {id(p) for p in second.networks["style"].parameters()}


def test_faults_are_said_before_anything_is_loaded(write_config):
    for args, message in (
        ({"activation_func": "rellu"}, r"activation_func: 'rellu' is not one of .*'relu'"),
        ({"layer_structure": [1, 2]}, r"networks\.style: layer_structure: \[1, 2\] doesn't begin"),
        ({"sizes": [768]}, r"networks\.style: sizes: \[768\] are not in this model"),
    ):
        path = write_config(networks={"style": {"module": PATH, "args": args}})
        with pytest.raises(ConfigError, match=message):
            assemble(path)


def test_a_trial_needs_no_weights(write_config):
    path = write_config(networks={"style": {"module": PATH}})
    assert Trainer.from_config(load(path), check=True) is None
