"""LoRA and LoCon: algebra, side-car, files, and what diffusers computes from them."""

from __future__ import annotations

import pytest
import tiny
import torch
from probes import outputs, perturb
from safetensors import safe_open
from torch import nn

from networks.lora import LoRA, LoRALayer

EVERYTHING = ("unet", "text_encoders")


def test_the_base_keeps_its_state_dict_and_detach_restores_it():
    model = tiny.make_sd()
    before, keys = outputs(model), list(model.denoiser.state_dict())
    network = LoRA(rank=4, targets=EVERYTHING)
    network.attach(model)
    perturb(network)
    assert list(model.denoiser.state_dict()) == keys
    assert not torch.equal(outputs(model)[1], before[1])
    network.detach()
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(model), strict=True))


def test_the_change_of_the_weight_is_up_times_down():
    layer = LoRALayer(nn.Conv2d(6, 10, 3), rank=3, alpha=1.5)
    perturb(layer)
    down, up = layer.lora_down.weight, layer.lora_up.weight
    closed_form = 1.5 / 3 * (up.flatten(1) @ down.flatten(1)).view(10, 6, 3, 3)
    assert torch.allclose(layer.delta_weight(), closed_form)


def test_sd1_has_the_fields_192_modules(tmp_path):
    from diffusers import UNet2DConditionModel

    model = tiny.make_sd()
    with torch.device("meta"):
        model.denoiser = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    network = LoRA(rank=4)
    network.attach(model)
    assert len(network.layers) == 192
    locon = LoRA(rank=4, conv_rank=4)
    locon.attach(model)
    assert len(locon.layers) == 278
    names = set(locon.layers)
    assert "lora_unet_down_blocks_0_resnets_0_time_emb_proj" in names
    assert "lora_unet_up_blocks_0_upsamplers_0_conv" in names
    assert not {"lora_unet_conv_in", "lora_unet_conv_out", "lora_unet_time_embedding_linear_1"} & (
        names
    )


def test_targets_choose_layers():
    model = tiny.make_sd()
    network = LoRA(rank=2, targets=("unet.up_blocks",))
    network.attach(model)
    assert network.layers
    assert all(name.startswith("lora_unet_up_blocks_") for name in network.layers)
    single = LoRA(rank=2, targets=("unet.conv_in",))  # named in full, though no default target
    single.attach(model)
    assert list(single.layers) == ["lora_unet_conv_in"]
    with pytest.raises(ValueError, match=r"'unet.middle' matches no module; there: "):
        LoRA(rank=2, targets=("unet", "unet.middle")).attach(model)


def test_parameters_are_named_by_the_bases_layer():
    model = tiny.make_sd()
    network = LoRA(rank=2, targets=EVERYTHING)
    network.attach(model)
    groups = network.parameter_groups()
    own = "unet.mid_block.attentions.0.proj_in"
    found = {path for path in groups if path.startswith(f"{own}.")}
    assert found == {f"{own}.lora_down.weight", f"{own}.lora_up.weight"}
    assert {path.split(".")[0] for path in groups} == {"unet", "text_encoders"}
    assert sum(len(group) for group in groups.values()) == len(list(network.parameters()))


def test_a_file_has_kohyas_keys_and_metadata(tmp_path):
    model = tiny.make_sd()
    network = LoRA(rank=4, alpha=2, conv_rank=3, targets=EVERYTHING)
    network.attach(model)
    path = tmp_path / "lora.safetensors"
    network.save(path, dtype=torch.float16, metadata=network.describe(model))
    with safe_open(path, framework="pt") as file:
        keys, metadata = set(file.keys()), file.metadata()
        alpha = file.get_tensor("lora_unet_mid_block_attentions_0_proj_in.alpha")
        assert file.get_slice(next(iter(keys))).get_dtype() == "F16"
    assert alpha.shape == ()
    assert alpha == 2
    suffixes = {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {key.partition(".")[2] for key in keys} == suffixes
    te = "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"
    assert te in keys
    assert len(keys) == 3 * len(network.layers)
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_network_alpha"] == "2"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_v2"] == "False"


def test_a_file_that_is_none_is_refused(tmp_path):
    network = LoRA(rank=4)
    network.attach(tiny.make_sd())
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match=r"cannot be read as \.safetensors"):
        network.load(path)


def test_two_adapters_on_one_layer_add_up():
    model = tiny.make_sd()
    first, second = LoRA(rank=2), LoRA(rank=3)
    for network in (first, second):
        network.attach(model)
        perturb(network)
    both = outputs(model)
    first.merge()
    second.merge()
    assert torch.allclose(both[1], outputs(model)[1], atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("conv_rank", -1)])
def test_an_impossible_rank_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: {value} is not a rank"):
        LoRA(**{name: value})
