"""Files of weights: what they claim is checked before it is believed, and no code in them runs."""

from __future__ import annotations

import json
import pickle
import re
import resource
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from hostile.checkpoints import Touch, bad_checkpoints, saved, weights_and_code
from safetensors.torch import load_file, save_file

import main
from modules.models import load
from modules.models.pieces import load_vae
from networks.hypernetwork import Hypernetwork
from networks.lora import LoRA
from networks.pfg import PFG
from networks.reading import read_layers
from tools import convert, info, merge, resize

BAD = list(bad_checkpoints(Path("canary")))


@pytest.fixture
def canary(tmp_path) -> Path:
    """A path that exists once code in a file has run."""
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def model():
    """A random SD1; networks are attached and detached again."""
    return tiny.make_sd()


@pytest.fixture
def write(tmp_path, canary):
    """Write a bad checkpoint by its name."""

    def write(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(bad_checkpoints(canary)[name])
        return path

    return write


def attach_and_load(network, model, path):
    network.attach(model)
    try:
        network.load(path)
    finally:
        network.detach()


def check_told(message: str, path: Path) -> None:
    assert str(path) in message
    assert len(message) < 600
    assert "\n" not in message.strip()
    assert "weights_only" not in message  # torch's advice, which is to run the code


def test_the_canary_sings(canary):
    pickle.loads(pickle.dumps(Touch(canary)))
    assert canary.exists()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_every_loader(name, write, canary, model):
    path = write(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (
        lambda: load(str(path)),
        lambda: load(str(path), weights=False),
        lambda: load_vae(str(path)),
        lambda: read_layers(path),
        lambda: attach_and_load(LoRA(rank=2), model, path),
        lambda: attach_and_load(Hypernetwork(), model, path),
        lambda: attach_and_load(PFG(features="pfg", input_size=8, num_tokens=2), model, path),
    ):
        with pytest.raises(ValueError, match=re.escape(str(path))) as told:
            read()
        check_told(str(told.value), path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # KiB
    assert not canary.exists()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_every_tool(name, write, canary, tmp_path, capsys):
    path, output = write(name), tmp_path / "output.safetensors"
    commands = {
        "info": lambda: info.main([str(path)]),
        "convert": lambda: convert.main([str(path), "-o", str(output)]),
        "merge": lambda: merge.main([str(path), "-o", str(output)]),
        "resize": lambda: resize.main([str(path), "-o", str(output), "--rank", "2"]),
    }
    for tool, command in commands.items():
        if (tool, name) == ("info", "numbers.pt"):
            continue  # it lists what is no tensor as nothing
        assert command() == 2, tool
        check_told(capsys.readouterr().err, path)
    assert not output.exists()
    assert not canary.exists()


def test_weights_beside_code_are_taken_out_by_a_conversion_alone(canary, tmp_path, capsys, model):
    path, output = tmp_path / "model.ckpt", tmp_path / "model.safetensors"
    path.write_bytes(weights_and_code(canary))
    for read in (lambda: load(str(path)), lambda: attach_and_load(LoRA(rank=2), model, path)):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read()
    assert info.main([str(path)]) == 2
    assert convert.main([str(path), "-o", str(output)]) == 0
    assert torch.equal(load_file(output)["model.b.weight"], torch.ones(4))
    assert not canary.exists()


@pytest.mark.parametrize("piece", ["unet", "vae", "text_encoder"])
def test_code_in_the_weights_of_a_diffusers_folder_is_not_run(
    piece, canary, tmp_path, model_directory
):
    folder = shutil.copytree(model_directory, tmp_path / "model")
    (weights,) = (folder / piece).glob("*.safetensors")
    name = {"text_encoder": "pytorch_model.bin"}.get(piece, "diffusion_pytorch_model.bin")
    content = {**load_file(weights), "more": Touch(canary)}
    weights.with_name(name).write_bytes(saved(content))
    weights.unlink()
    with pytest.raises(ValueError, match=f"{piece}: the weights can't be read"):
        load(str(folder))
    assert not canary.exists()


@pytest.mark.parametrize("shape", [(3, 3), (2, 32, 9, 9), (0, 32), (2,), (), (2, 10**7)], ids=str)
def test_layers_of_wrong_shapes_are_refused(shape, tmp_path, model):
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{layer}.lora_down.weight": torch.zeros(shape, dtype=torch.int8),
        f"{layer}.lora_up.weight": torch.zeros(32, 2, dtype=torch.int8),
    }
    path = tmp_path / "wrong.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        attach_and_load(LoRA(rank=2), model, path)


@pytest.mark.parametrize(
    "content", ["", "[" * 100_000, "{}", "[1]", '{"_class_name": "os.system"}']
)
def test_a_bad_index_of_a_model_is_told(content, tmp_path, model_directory):
    folder = shutil.copytree(model_directory, tmp_path / "model")
    (folder / "model_index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        load(str(folder))


@pytest.mark.parametrize(
    "change",
    [{"block_out_channels": "x"}, {"block_out_channels": []}, {"in_channels": 10**9}, {"a": {}}],
    ids=str,
)
@pytest.mark.parametrize("weights", [True, False])
def test_a_config_that_no_model_has_is_told(change, weights, tmp_path, model_directory):
    folder = shutil.copytree(model_directory, tmp_path / "model")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}), encoding="utf-8")
    if "a" in change:
        assert load(str(folder), weights=weights).denoiser is not None
        return
    if not weights and change.get("in_channels"):
        return  # only the weights show it
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        load(str(folder), weights=weights)


def test_a_run_that_resumes_a_bad_adapter_ends_in_one_line(write, write_config, canary, capsys):
    for name in ("terabyte.safetensors", "numbers.pt", "old-code.pt"):
        path = write(name)
        lora = {"module": "networks.lora.LoRA", "args": {"rank": 2}, "resume": str(path)}
        assert main.main([str(write_config(networks={"lora": lora}))]) == 2
        told = capsys.readouterr().err
        assert "Traceback" not in told
        assert str(path) in told.splitlines()[-1]
    assert not canary.exists()
