"""The difference of two models as a LoRA: exact where it is one, measured elsewhere."""

from __future__ import annotations

import re

import pytest
import tiny
import tiny_inpaint
import torch
from adapter_files import changes, close, save
from diffusers import StableDiffusionPipeline
from probes import outputs
from safetensors import safe_open
from safetensors.torch import load_file
from variants import EVERYTHING

from modules import models
from networks.lora import LoRA
from tools.adapter_sums import Source, merge_into_base
from tools.extract import main
from tools.low_rank import Limits, decompose
from tools.model_difference import extract

FAMILIES = {"sd1": tiny.make_sd, "sdxl": tiny.make_sdxl}


def tune(folder, output, edit) -> str:
    """Write a copy of a model whose parameters `edit(path, parameter)` has changed."""
    model = models.load(str(folder))
    with torch.no_grad():
        for component, module in model.components().items():
            for name, parameter in module.named_parameters():
                edit(f"{component}.{name}", parameter)
    model.mark_changed(list(model.components()))
    output.mkdir()
    model.save_pretrained(output, dtype=torch.float32)
    return str(output)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_a_merged_lora_comes_back(tmp_path, name, ending):
    make = FAMILIES[name]
    folder = tiny.save_sd(tmp_path / "base", make=make)
    network = LoRA(rank=3, conv_rank=2, alpha=1.5, targets=EVERYTHING)
    expected = save(tmp_path / "a.safetensors", network, make())
    tuned = tmp_path / f"tuned{ending}"
    merge_into_base([Source(tmp_path / "a.safetensors")], tuned, base=str(folder), dtype="fp32")
    output = tmp_path / "b.safetensors"
    told = extract(str(folder), str(tuned), output, rank=3, conv_rank=2, dtype="fp32")
    close(changes(output, make), expected, 1e-5)
    assert float(re.search(r"relative error (\S+);", told)[1]) < 1e-5
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3")
    assert metadata["ss_base_model_version"] == make().base_version()["ss_base_model_version"]
    assert metadata["ss_sd_model_name"] == "base"
    assert metadata["sd_trainer.note"].startswith(f"extracted by sd-trainer: {tuned.name} without ")
    assert metadata["modelspec.title"] == "b"
    assert metadata["modelspec.architecture"].endswith("/lora")
    assert str(tmp_path) not in str(metadata)


def test_the_file_works_as_the_tuned_model_does_in_diffusers(tmp_path, model_directory):
    save(tmp_path / "a.safetensors", LoRA(rank=3, conv_rank=2, targets=EVERYTHING))
    tuned, output = tmp_path / "tuned", tmp_path / "b.safetensors"
    base = str(model_directory)
    merge_into_base([Source(tmp_path / "a.safetensors")], tuned, base=base, dtype="fp32")
    extract(base, str(tuned), output, rank=4, conv_rank=4, dtype="fp32")
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline.load_lora_weights(output)
    model = models.load(base)
    plain = outputs(model)
    model.denoiser, model.text_encoders[0].module = pipeline.unet, pipeline.text_encoder
    expected = outputs(models.load(str(tuned)))
    for mine, theirs, before in zip(outputs(model), expected, plain, strict=True):
        assert (theirs - before).abs().max() > 1e-2
        assert torch.allclose(mine, theirs, atol=1e-4)


def noise(scale: float):
    generator = torch.Generator().manual_seed(0)

    def edit(path, parameter):
        if parameter.dim() >= 2:
            parameter += scale * torch.randn(parameter.shape, generator=generator)

    return edit


def test_what_is_lost_is_measured(tmp_path, model_directory):
    tuned = tune(model_directory, tmp_path / "tuned", noise(0.05))
    output = tmp_path / "b.safetensors"
    told = extract(str(model_directory), tuned, output, rank=2, conv_rank=3, dtype="fp32")
    before, after = models.load(str(model_directory)), models.load(tuned)
    layers = before.adapter_layers(EVERYTHING, conv=True)
    theirs = after.adapter_layers(EVERYTHING, conv=True)
    found, lost, whole = changes(output), 0.0, 0.0
    assert found.keys() == layers.keys()
    for path, layer in layers.items():
        change = (theirs[path].weight - layer.weight).detach()
        kept = 3 if change.dim() == 4 and change.shape[2] > 1 else 2
        values = torch.linalg.svdvals(change.flatten(1))
        squares = float((change - found[path]).square().sum())
        assert squares == pytest.approx(float(values[kept:].square().sum()), rel=1e-3)
        lost, whole = lost + squares, whole + float(change.square().sum())
    assert float(re.search(r"relative error (\S+);", told)[1]) == pytest.approx(
        (lost / whole) ** 0.5, rel=1e-2
    )


def test_energy_gives_each_layer_its_own_rank(tmp_path, model_directory):
    tuned = tune(model_directory, tmp_path / "tuned", noise(0.05))
    output = tmp_path / "b.safetensors"
    told = extract(str(model_directory), tuned, output, rank=64, energy=0.8, dtype="fp32")
    assert float(re.search(r"relative error (\S+);", told)[1]) <= 0.2**0.5
    tensors = load_file(output)
    assert len({len(t) for key, t in tensors.items() if "lora_down" in key}) > 2
    assert {float(t) for key, t in tensors.items() if key.endswith("alpha")} == {64.0}


def test_what_a_lora_has_no_place_for_is_told(tmp_path, model_directory, caplog):
    def edit(path, parameter):
        if path.endswith("attn1.to_q.weight"):
            parameter.add_(0.1)
        if path.endswith((".bias", "norm1.weight", "token_embedding.weight", "conv1.weight")):
            parameter.add_(0.01)

    tuned = tune(model_directory, tmp_path / "tuned", edit)
    extract(str(model_directory), tuned, tmp_path / "b.safetensors", rank=1)
    warned = {" ".join(message.split()[1:3]) for message in caplog.messages}
    assert warned >= {"biases differ", "normalisations differ", "embeddings differ"}
    (of_convolutions,) = [m for m in caplog.messages if "weights of convolutions" in m]
    assert of_convolutions.endswith("give --conv_rank")
    assert all("te_text" not in key for key in load_file(tmp_path / "b.safetensors"))
    caplog.clear()
    extract(str(model_directory), tuned, tmp_path / "c.safetensors", rank=1, conv_rank=1)
    assert not any("weights of convolutions" in message for message in caplog.messages)


def test_rounding_is_no_difference(tmp_path, model_directory):
    def edit(path, parameter):
        parameter.copy_(parameter.half().float())
        if path.endswith("attn2.to_k.weight"):
            parameter.add_(0.1)

    tuned = tune(model_directory, tmp_path / "tuned", edit)
    told = extract(str(model_directory), tuned, tmp_path / "b.safetensors", rank=1, dtype="fp32")
    keys = {key.partition(".")[0] for key in load_file(tmp_path / "b.safetensors")}
    assert keys
    assert all(key.endswith("attn2_to_k") for key in keys)
    assert told.startswith(f"{tmp_path / 'b.safetensors'}: {len(keys)} layers")


@pytest.mark.parametrize("exact", [False, True])
def test_large_layers_are_decomposed_by_projections(exact):
    """Of a matrix like a trained one's, whose singular values fall off."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(700, 600, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(640, 600, generator=generator))
    values = torch.arange(1, 601).float() ** -0.7
    matrix = left * values @ right.T
    state = torch.get_rng_state()
    factors, lost = decompose(matrix, Limits(rank=16), exact=exact)
    assert torch.equal(torch.get_rng_state(), state)
    assert factors.rank == 16
    best = float(values[16:].square().sum())
    assert best * (1 - 1e-4) < lost < best * (1.0001 if exact else 1.01)
    whole, rest = decompose(left[:, :8] * values[:8] @ right[:, :8].T, Limits(rank=8), exact=exact)
    assert whole.rank == 8
    assert rest < 1e-9


def test_what_is_wrong_is_told(tmp_path, model_directory, capsys):
    base, out = str(model_directory), str(tmp_path / "b.safetensors")
    xl = str(tiny.save_sd(tmp_path / "xl", make=tiny.make_sdxl))
    inpainting = str(tiny.save_sd(tmp_path / "inpainting", make=tiny_inpaint.make_sd))
    for tuned, options, message in [
        (base, [], "no layer that a LoRA can change differs from"),
        (xl, [], f"{xl}: is no model made of {base}: it is a StableDiffusionXL, and that a Stable"),
        (inpainting, [], "unet.conv_in.weight is (16, 9, 3, 3) here and (16, 4, 3, 3) there"),
        (base, ["--rank", "0"], "rank: 0 is not a rank"),
        (base, ["--energy", "2"], "energy: 2.0 is no part of a whole"),
        ("no/where", [], "no/where"),
    ]:
        assert main(["--base", base, "--tuned", tuned, "-o", out, *options]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
    tuned = tune(model_directory, tmp_path / "tuned", noise(0.05))
    command = ["--base", base, "--tuned", tuned, "-o", out, "--rank", "2"]
    assert main(command) == 0
    assert "b.safetensors: " in capsys.readouterr().out
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
