"""Merging adapters: the sum of weight * change, in a base model and as one LoRA."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from adapter_files import changes, close, save
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from probes import outputs
from safetensors import safe_open
from safetensors.torch import load_file
from variants import EVERYTHING

from modules import models
from modules.safetensors_header import read_header
from networks.loha import LoHa
from networks.lokr import LoKr
from networks.lora import LoRA
from tools.adapter_sums import Source, merge_adapters, merge_into_base
from tools.merge import main, parse_source

FAMILIES = {"sd1": tiny.make_sd, "sdxl": tiny.make_sdxl}
PIPELINES = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


def lora(**options) -> LoRA:
    return LoRA(**{"rank": 3, "conv_rank": 2, "alpha": 2.0, "targets": EVERYTHING, **options})


def weights(model) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": parameter.detach()
        for component, module in model.components().items()
        for name, parameter in module.named_parameters()
    }


def weight_of(path: str, unet: float, text: float) -> float:
    return unet if path.startswith("unet") else text


@pytest.fixture(params=["sd1", "sdxl"], scope="module")
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return request.param, tiny.save_sd(folder, make=FAMILIES[request.param])


@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_a_base_gets_the_weighted_sum_of_all_changes(family, tmp_path, ending):
    name, folder = family
    make = FAMILIES[name]
    networks = [lora(), LoHa(rank=2, conv_rank=2), LoKr(rank=2, factor=4), lora(dora="output")]
    strengths = [(0.8, 0.4), (1.5, 1.5), (-0.5, -0.5), (0.7, 0.0)]
    sources, expected = [], dict(weights(make()))
    for number, (network, strength) in enumerate(zip(networks, strengths, strict=True)):
        file = tmp_path / f"{number}.safetensors"
        for path, change in save(file, network, make(), seed=number).items():
            key = f"{path}.weight"
            expected[key] = expected[key] + weight_of(path, *strength) * change
        sources.append(Source(file, *strength))
    output = tmp_path / f"merged{ending}"
    told = merge_into_base(sources, output, base=str(folder), dtype="fp32")
    assert "0.safetensors:0.8:0.4, 1.safetensors:1.5, 2.safetensors:-0.5, 3.sa" in told
    found, plain = weights(models.load(str(output))), weights(make())
    changed = 0
    for path, tensor in expected.items():
        assert torch.allclose(found[path], tensor, atol=1e-6), path
        changed += not torch.equal(found[path], plain[path])
    assert changed > 40
    beside = output / "sd_trainer.json"
    metadata = read_header(output).metadata if ending else json.loads(beside.read_text("utf-8"))
    start = f"merged by sd-trainer: {folder.name} with 0.safetensors:0.8:0.4, 1.safetensors:1.5, "
    assert metadata["sd_trainer.note"].startswith(start)
    assert metadata["modelspec.title"] == "merged"
    assert sorted(p.name for p in tmp_path.iterdir() if "merged" in p.name) == [output.name]


def test_what_is_merged_draws_as_what_is_attached(family, tmp_path):
    name, folder = family
    file = tmp_path / "a.safetensors"
    save(file, lora(), FAMILIES[name]())
    merge_into_base([Source(file, 0.5, 0.5)], tmp_path / "m", base=str(folder), dtype="fp32")
    model = models.load(str(folder))
    network = lora(multiplier=0.5)
    network.attach(model)
    network.load(file)
    for mine, theirs in zip(outputs(model), outputs(models.load(str(tmp_path / "m"))), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_loras_become_one_exactly(family, tmp_path):
    name, folder = family
    make = FAMILIES[name]
    given = [
        (lora(), 0.8, 0.4),
        (lora(rank=5, conv_rank=4, alpha=7.0, targets=["unet"]), -1.5, 1.0),
        (LoRA(rank=2, targets=["text_encoders"]), 1.0, 2.0),
    ]
    sources, expected = [], {}
    for number, (network, *strength) in enumerate(given):
        file = tmp_path / f"{number}.safetensors"
        for path, change in save(file, network, make(), seed=number).items():
            expected[path] = expected.get(path, 0) + weight_of(path, *strength) * change
        sources.append(Source(file, *strength))
    output = tmp_path / "one.safetensors"
    told = merge_adapters(sources, output, dtype="fp32")
    assert "ranks 5..8, exact: ranks add up" in told
    close(changes(output, make), expected)
    tensors = load_file(output)
    alphas = {}
    for key in [key for key in tensors if key.endswith(".alpha")]:
        alphas.setdefault(key.split("_", 2)[1], set()).add(float(tensors[key]))
    assert all(len(values) == 1 for values in alphas.values()), "one alpha for each component"
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "Dynamic"
    assert metadata["ss_base_model_version"] == make().base_version()["ss_base_model_version"]
    assert "0.safetensors:0.8:0.4, " in metadata["sd_trainer.note"]
    check_with_diffusers(name, folder, output, make)


def check_with_diffusers(name, folder, file, make) -> None:
    """Check that diffusers computes with a file what our network does."""
    model = models.load(str(folder))
    plain = outputs(model)
    network = lora()
    network.attach(model)
    network.load(file)
    ours = outputs(model)
    network.detach()
    pipeline = PIPELINES[name].from_pretrained(folder, local_files_only=True)
    pipeline.load_lora_weights(file)
    model.denoiser = pipeline.unet
    for number, encoder in enumerate(model.text_encoders):
        encoder.module = getattr(pipeline, f"text_encoder{'_2' * number}")
    for mine, theirs, base in zip(ours, outputs(model), plain, strict=True):
        assert (mine - base).abs().max() > 1e-2
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_a_rank_cuts_the_sum(tmp_path):
    sources, expected = [], {}
    for number in range(2):
        file = tmp_path / f"{number}.safetensors"
        for path, change in save(file, lora(), seed=number).items():
            expected[path] = expected.get(path, 0) + change
        sources.append(Source(file))
    merge_adapters(sources, tmp_path / "6.safetensors", rank=6, dtype="fp32")
    close(changes(tmp_path / "6.safetensors"), expected)
    told = merge_adapters(sources, tmp_path / "2.safetensors", rank=2, dtype="fp32")
    best, lost, whole = {}, 0.0, 0.0
    for path, change in expected.items():
        u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
        best[path] = ((u[:, :2] * s[:2]) @ v[:2]).view_as(change)
        lost, whole = lost + float(s[2:].square().sum()), whole + float(s.square().sum())
    close(changes(tmp_path / "2.safetensors"), best, 1e-4)
    assert f"relative error {(lost / whole) ** 0.5:.2e}; the worst layer has " in told


def test_other_kinds_become_a_lora_with_their_base(tmp_path, model_directory):
    networks = [LoHa(rank=2, conv_rank=2), LoKr(rank=2, factor=4), lora(dora="input"), lora()]
    sources, expected = [], {}
    for number, network in enumerate(networks):
        file = tmp_path / f"{number}.safetensors"
        for path, change in save(file, network, seed=number).items():
            expected[path] = expected.get(path, 0) + 0.5 * change
        sources.append(Source(file, 0.5, 0.5))
    output = tmp_path / "one.safetensors"
    told = merge_adapters(sources, output, rank=1000, model=str(model_directory), dtype="fp32")
    close(changes(output), expected, 1e-5)
    assert "; the worst layer has " in told
    for kind, what in ((0, "LoHa"), (1, "LoKr"), (2, r"DoRA \(LoRA\)")):
        need = "weights" if kind == 2 else "shapes"
        message = rf"{kind}.safetensors: is a {what}, of which .* with the {need} of its base"
        with pytest.raises(ValueError, match=message):
            merge_adapters([sources[kind], sources[3]], tmp_path / "no.safetensors", rank=4)
    loha = tmp_path / "loha.safetensors"
    merge_adapters(sources[:1], loha, rank=4, model=str(model_directory))  # shapes are enough
    assert loha.exists()


def test_files_of_other_programs_are_merged(tmp_path, model_directory):
    """PEFT's names and kohya's are one layer where the model is known."""
    file = tmp_path / "kohya.safetensors"
    expected = save(file, LoRA(rank=2, alpha=2))
    from safetensors.torch import save_file

    model = tiny.make_sd()
    network = LoRA(rank=2, alpha=2)
    network.attach(model)
    network.load(file)
    peft = {}
    for name, layer in network.layers.items():
        path = network._paths[name]
        peft[f"{path}.lora_A.weight"] = layer.lora_down.weight.detach()
        peft[f"{path}.lora_B.weight"] = layer.lora_up.weight.detach()
    save_file(peft, tmp_path / "peft.safetensors")
    folder = tmp_path / "peft"
    folder.mkdir()
    own = {key.replace("unet.", "base_model.model."): tensor for key, tensor in peft.items()}
    save_file(own, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    output = tmp_path / "one.safetensors"
    weights = {file: 0.25, tmp_path / "peft.safetensors": 0.5, folder: 0.25}
    files = [Source(path, weight, weight) for path, weight in weights.items()]
    merge_adapters(files, output, model=str(model_directory), dtype="fp32")
    close(changes(output), expected)


def test_weights_behind_files(tmp_path):
    file = tmp_path / "a:1.safetensors"
    file.write_bytes(b"")
    assert parse_source(str(file)) == Source(file, 1.0, 1.0)
    assert parse_source(f"{file}:0.8") == Source(file, 0.8, 0.8)
    assert parse_source(f"{file}:0.8:-0.4") == Source(file, 0.8, -0.4)
    for text in (f"{file}:1:2:3", "no.safetensors:1", f"{file}:x", ""):
        with pytest.raises(ValueError, match=r"there is no such file; write FILE, FILE:0\.8"):
            parse_source(text)


def test_what_is_wrong_is_told(tmp_path, capsys, model_directory):
    file, xl, out = (str(tmp_path / f"{name}.safetensors") for name in ("a", "xl", "out"))
    save(tmp_path / "a.safetensors", lora())
    save(tmp_path / "xl.safetensors", lora(), tiny.make_sdxl())
    for arguments, message in [
        ([file, xl, "-o", out], "they are for different base models: a.safetensors for sd_v1"),
        ([xl, "-o", out, "--base", str(model_directory)], "xl.safetensors: is for"),
        ([file, "-o", out, "--base", str(model_directory), "--rank", "2"], "take out --base"),
        ([file, "-o", str(tmp_path / "folder")], "for a whole model give --base"),
        ([file, "-o", file], "exists already"),
        ([file, "-o", out, "--rank", "0"], "rank: 0 is not a rank"),
        ([file, "-o", out, "--base", "no/where"], "no/where"),
    ]:
        assert main(arguments) == 2, message
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert main([f"{file}:0.5", "-o", out]) == 0
    assert "out.safetensors: a.safetensors:0.5 in " in capsys.readouterr().out
