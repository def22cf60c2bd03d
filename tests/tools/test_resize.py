"""Resizing a LoRA: exact where nothing is lost, the best there is elsewhere."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch
from adapter_files import changes, close, save
from safetensors import safe_open
from safetensors.torch import load_file
from variants import EVERYTHING

from networks.loha import LoHa
from networks.lora import LoRA
from tools.adapter_ranks import resize
from tools.resize import main


def locon(**options) -> LoRA:
    return LoRA(**{"rank": 8, "conv_rank": 4, "alpha": 3.0, "targets": EVERYTHING, **options})


def metadata(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_rank_that_is_no_less_changes_nothing(tmp_path):
    save(tmp_path / "a.safetensors", locon(), dtype=torch.float16)
    told = resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=8)
    assert "ranks 4..8 -> 4..8, relative error 0.00e+00" in told
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    ups = [tensor for key, tensor in after.items() if key.endswith("lora_up.weight")]
    assert {tensor.dtype for tensor in ups} == {torch.float16}


def test_each_layer_keeps_its_greatest_singular_values(tmp_path):
    expected = save(tmp_path / "a.safetensors", locon())
    told = resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=3)
    best, lost = {}, 0.0
    for name, change in expected.items():
        u, s, v = torch.linalg.svd(change.flatten(1).double(), full_matrices=False)
        best[name] = ((u[:, :3] * s[:3]) @ v[:3]).view_as(change).float()
        lost += float(s[3:].square().sum())
    close(changes(tmp_path / "b.safetensors"), best, 1e-5)
    whole = sum(float(change.double().square().sum()) for change in expected.values())
    assert f"relative error {math.sqrt(lost / whole):.2e}" in told


def test_a_larger_file_comes_back_from_its_own_rank(tmp_path):
    expected = save(tmp_path / "a.safetensors", locon(rank=2, conv_rank=2))
    save(tmp_path / "zero.safetensors", locon(rank=3, conv_rank=3))
    from tools.merge import merge

    merge(
        [str(tmp_path / "a.safetensors"), f"{tmp_path / 'zero.safetensors'}:0"],
        tmp_path / "large.safetensors",
        dtype="fp32",
    )
    assert metadata(tmp_path / "large.safetensors")["ss_network_dim"] == "5"
    resize(tmp_path / "large.safetensors", tmp_path / "b.safetensors", energy=1.0)
    assert metadata(tmp_path / "b.safetensors")["ss_network_dim"] == "2"
    close(changes(tmp_path / "b.safetensors"), expected, 1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_energy_takes_the_fewest_that_hold_it(tmp_path, energy):
    expected = save(tmp_path / "a.safetensors", locon())
    resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", energy=energy)
    found = changes(tmp_path / "b.safetensors")
    for name, change in expected.items():
        values = torch.linalg.svdvals(change.flatten(1)).square()
        held = values.cumsum(0) / values.sum()
        rank = torch.linalg.matrix_rank(found[name].flatten(1), rtol=1e-4)
        assert rank == int((held < energy).sum()) + 1, name
    written = metadata(tmp_path / "b.safetensors")
    assert written["ss_network_dim"] == "Dynamic"
    assert written["ss_network_alpha"] == "3"
    assert "resized by sd-trainer: ranks 4..8 -> " in written["sd_trainer.note"]
    tensors = load_file(tmp_path / "b.safetensors")
    assert {float(tensors[key]) for key in tensors if key.endswith("alpha")} == {3.0}


def test_a_threshold_is_relative_to_the_greatest(tmp_path):
    expected = save(tmp_path / "a.safetensors", locon())
    resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", threshold=0.6)
    found = changes(tmp_path / "b.safetensors")
    for name, change in expected.items():
        values = torch.linalg.svdvals(change.flatten(1))
        rank = torch.linalg.matrix_rank(found[name].flatten(1), rtol=1e-4)
        assert rank == int((values >= 0.6 * values[0]).sum()), name


def test_metadata_are_kept_and_corrected(tmp_path):
    network = locon(conv_rank=8)
    model = tiny.make_sd()
    network.attach(model)
    own = {"ss_tag_frequency": "{}", "sshs_model_hash": "1", "ss_training_comment": "cats"}
    own["lora_adapter_metadata"] = json.dumps({"unet.r": 8})
    given = {**network.describe(model), **own}
    network.save(tmp_path / "a.safetensors", dtype=torch.float32, metadata=given)
    resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=2)
    written = metadata(tmp_path / "b.safetensors")
    assert written["ss_tag_frequency"] == "{}"
    assert written["ss_training_comment"] == "cats"
    assert written["ss_network_dim"] == "2"
    assert json.loads(written["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "3"}
    assert written["ss_output_name"] == "b"
    assert written.get("sshs_model_hash") != "1"
    assert "lora_adapter_metadata" not in written


def test_the_magnitudes_of_a_dora_are_kept(tmp_path):
    save(tmp_path / "a.safetensors", locon(dora="input"))
    resize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rank=2)
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    scales = [key for key in before if key.endswith("dora_scale")]
    assert scales
    assert all(torch.equal(before[key], after[key]) for key in scales)
    assert metadata(tmp_path / "b.safetensors")["ss_network_module"] == "lycoris.kohya"


def test_what_is_wrong_is_told(tmp_path, capsys):
    save(tmp_path / "a.safetensors", locon())
    save(tmp_path / "loha.safetensors", LoHa(rank=2))
    out = ["-o", str(tmp_path / "b.safetensors")]
    file, loha = str(tmp_path / "a.safetensors"), str(tmp_path / "loha.safetensors")
    for arguments, message in [
        ([file], "there is nothing to do; give rank, energy or threshold"),
        ([file, "--rank", "0"], "rank: 0 is not a rank"),
        ([file, "--energy", "95"], "energy: 95.0 is no part of a whole; give one as 0.95"),
        ([loha, "--rank", "2"], "is a LoHa, whose rank is no rank of its change"),
        ([str(tmp_path / "no.safetensors"), "--rank", "2"], "cannot be read"),
    ]:
        assert main([*arguments, *out]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()
    assert main([file, "--rank", "2", *out]) == 0
    assert " layers, ranks 4..8 -> 2, relative error " in capsys.readouterr().out
    assert main([file, "--rank", "2", *out]) == 2
    assert "exists already" in capsys.readouterr().err
