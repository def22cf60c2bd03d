"""A ControlNet as one file: diffusers reads it back, with the names of the published ones."""

from __future__ import annotations

import pytest
import tiny
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from probes import perturb
from safetensors import safe_open

from modules.models.compvis import compvis_name
from modules.safetensors_header import hash_tensors, read_header
from networks.controlnet import ControlNet
from tools.controlnet_files import single_file_names
from tools.convert_controlnet import main

SD1 = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}


@pytest.fixture
def directory(tmp_path):
    """A ControlNet for latents an eighth of the image's size, as all published ones are."""
    unet = tiny.make_sd().denoiser
    net = ControlNetModel.from_unet(unet)
    perturb(net, scale=0.1)
    net.save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def test_diffusers_reads_the_single_file(directory, tmp_path, capsys):
    assert main([str(directory), "-o", str(tmp_path / "net.safetensors"), "--dtype", "fp32"]) == 0
    assert "tensors" in capsys.readouterr().out
    read = ControlNetModel.from_single_file(
        str(tmp_path / "net.safetensors"), config=str(directory), local_files_only=True
    )
    ours = ControlNetModel.from_pretrained(directory).state_dict()
    theirs = read.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_the_real_size_has_the_published_names():
    with torch.device("meta"):
        net = ControlNetModel.from_unet(UNet2DConditionModel(**SD1), load_weights_from_unet=False)
    names = set(single_file_names(net).values())
    assert len(names) == 340
    places = {name.rsplit(".", 1)[0] for name in names}
    assert {f"zero_convs.{n}.0" for n in range(12)} <= places
    assert {f"input_hint_block.{n}" for n in range(0, 15, 2)} <= places
    assert "middle_block_out.0" in places
    assert {"input_blocks.3.0.op", "input_blocks.11.0.in_layers.2", "time_embed.2"} <= places
    assert "input_blocks.8.1.transformer_blocks.0.attn2.to_out.0" in places
    assert "middle_block.1.proj_in" in places
    assert "input_blocks.4.0.skip_connection" in places


def test_names_of_the_whole_unet():
    assert compvis_name("up_blocks.1.resnets.2.conv1.weight", layers_per_block=2) == (
        "output_blocks.5.0.in_layers.2.weight"
    )
    assert compvis_name("up_blocks.1.upsamplers.0.conv.bias", layers_per_block=2) == (
        "output_blocks.5.2.conv.bias"
    )
    first = compvis_name("up_blocks.0.upsamplers.0.conv", layers_per_block=2, has_attention=False)
    assert first == "output_blocks.2.1.conv"
    assert compvis_name("conv_norm_out.weight", layers_per_block=2) == "out.0.weight"
    with pytest.raises(ValueError, match="no name in the original layout"):
        compvis_name("strange.weight", layers_per_block=2)


def test_a_file_becomes_a_directory_again(tmp_path, model_directory):
    model = tiny.make_sd()
    network = ControlNet()
    network.attach(model)
    perturb(network, scale=0.1)
    told = {"ss_steps": "3", "modelspec.sai_model_spec": "1.0.1"}
    told |= {"modelspec.implementation": "diffusers", "sd_trainer.config": "model: cat"}
    network.save(tmp_path / "net", dtype=torch.float32, metadata=told)
    file, back = tmp_path / "net.safetensors", tmp_path / "back"
    assert main([str(tmp_path / "net"), "-o", str(file), "--dtype", "fp32"]) == 0
    status = main([str(file), "-o", str(back), "-m", str(model_directory), "--dtype", "fp32"])
    assert status == 0
    again = ControlNet()
    again.attach(model)
    again.load(back)
    expected = network.net.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in again.net.state_dict().items())
    original = read_header(file).metadata
    assert original["modelspec.implementation"] == "https://github.com/lllyasviel/ControlNet"
    assert original["sd_trainer.config"] == "model: cat"
    weights = "diffusion_pytorch_model.safetensors"
    first, last = (read_header(folder / weights) for folder in (tmp_path / "net", back))
    assert last.metadata == first.metadata
    for each in (file, back / weights):
        assert read_header(each).metadata["sshs_model_hash"] == hash_tensors(each)
    assert original["sshs_model_hash"] != first.metadata["sshs_model_hash"]


def test_precision_of_the_file(directory, tmp_path):
    main([str(directory), "-o", str(tmp_path / "a.safetensors")])
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


def test_what_is_no_controlnet_is_said(tmp_path, model_directory, capsys):
    assert main([str(tmp_path), "-o", str(tmp_path / "a.safetensors")]) == 2
    assert "no config.json" in capsys.readouterr().err
    torch.save({"other": torch.zeros(1)}, tmp_path / "b.pth")
    arguments = [str(tmp_path / "b.pth"), "-o", str(tmp_path / "b"), "-m", str(model_directory)]
    assert main(arguments) == 2
    assert "is no ControlNet for" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "b.pth"), "-o", str(tmp_path / "b")])
