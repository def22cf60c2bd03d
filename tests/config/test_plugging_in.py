"""The parts of one's own that config/README.md shows, taken from there and trained with."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import main
from modules.config import load
from modules.errors import ConfigError
from modules.trainer import Trainer
from modules.yaml_text import parse

ROOT = Path(main.__file__).parent
LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
PARTS = {
    "my_dataset": "dataset",
    "my_network": "networks",
    "my_objective": "objective",
    "my_saver": "save",
}


def parts(readme):
    """(code, values of the YAML behind it) by the name of the file that the code is for."""
    text = (ROOT / "config" / readme).read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```\n\n```yaml\n(.*?)^```$", text, re.M | re.S)
    names = [re.match(r"# (\w+)\.py, beside main\.py\n", code) for code, _ in found]
    return {
        name[1]: (code, parse(yaml)[0]) for name, (code, yaml) in zip(names, found, strict=True)
    }


@pytest.fixture
def beside_main(tmp_path, monkeypatch):
    """A directory that is searched for modules as that of main.py is; forgets them afterwards."""
    place = tmp_path / "beside_main"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    known = set(sys.modules)
    yield place
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def plug_in(beside_main):
    """Write one of README's files; returns the section of its YAML."""

    def write(name):
        code, values = parts("README.md")[name]
        (beside_main / f"{name}.py").write_text(code, encoding="utf-8")
        (section,) = values
        assert section == PARTS[name]
        return values[section]

    return write


def train(path, *overrides):
    trainer = Trainer.from_config(load(path, *overrides))
    trainer.train()
    return trainer


def losses(trainer):
    return [record["loss"] for record in trainer.metrics.read()]


def test_both_languages_show_the_same_parts():
    assert parts("README.md") == parts("README.ja.md")
    assert list(parts("README.md")) == list(PARTS)
    for code, _ in parts("README.md").values():
        body = code.partition("\nclass ")[2].splitlines()
        assert 5 < len([line for line in body if line.strip()]) <= 15  # about ten lines


def test_a_dataset_straight_from_a_folder(plug_in, write_config, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("cat", (70, 50)), ("dog", (40, 90)), ("mat", (32, 32))):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"a {name}\n", encoding="utf-8")
    section = plug_in("my_dataset")
    section["args"] |= {"path": str(pictures), "size": 32}
    section["num_workers"] = 0
    files = sorted(pictures.iterdir())
    path = write_config(dataset=section, networks=LORA)
    trainer = Trainer.from_config(load(path))
    seen, loss = [], trainer.loss

    def spy(batch):
        seen.append(batch)
        return loss(batch)

    trainer._loss.compute = spy
    trainer.train()
    assert sorted(name for batch in seen for name in batch.names) == ["cat", "dog", "mat"]
    for batch in seen:
        assert batch.captions == [f"a {name}" for name in batch.names]
        assert batch.pixel_values.shape == (len(batch.names), 3, 32, 32)
        assert batch.latents is None
    (mat,) = [b.pixel_values[b.names.index("mat")] for b in seen if "mat" in b.names]
    assert torch.equal(((mat + 1) * 127.5).round().byte().permute(1, 2, 0), torch.tensor(pixels))
    assert (trainer.directory / "run.safetensors").is_file()
    assert sorted(pictures.iterdir()) == files  # no latents, no index: nothing was prepared
    (pictures / "dog.txt").unlink()
    with pytest.raises(ConfigError, match=r"^dataset: .*dog\.txt"):
        Trainer.from_config(load(path))


def test_a_network_that_conditions(plug_in, write_config):
    networks = plug_in("my_network")
    first = train(write_config("first", networks=networks))
    offset = first.networks["offset"].offset
    assert offset.shape == (first.model.text_width,)
    assert (offset != 0).all()
    file = first.directory / "first.safetensors"
    assert torch.equal(load_file(file)["offset"], offset.detach())
    networks["offset"]["resume"] = str(file)
    path = write_config("second", networks=networks)
    second = Trainer.from_config(load(path))
    assert torch.equal(second.networks["offset"].offset, offset)
    batch = next(iter(second.source.loader))
    torch.manual_seed(0)
    with_offset = second.loss(batch).item()
    second.networks["offset"].multiplier = 0.0
    torch.manual_seed(0)
    assert second.loss(batch).item() != with_offset
    lora = train(write_config("lora", networks=LORA)).directory / "lora.safetensors"
    with pytest.raises(
        ConfigError, match=r"^networks\.offset: .*lora\.safetensors: is no PromptOf"
    ):
        Trainer.from_config(load(path, f"networks.offset.resume={lora}"))


def test_an_objective_with_another_error(plug_in, write_config):
    section = plug_in("my_objective")
    usual = train(write_config("usual", networks=LORA, objective={"args": {"noise_offset": 0.05}}))
    own = train(write_config("own", networks=LORA, objective=section))
    assert own.objective.noise_offset == 0.05
    for ours, squared in zip(losses(own), losses(usual), strict=True):
        assert ours > 1.2 * squared  # 2 log cosh(2 x) is above x^2 for usual errors
    timesteps = torch.zeros(1, dtype=torch.int64)
    error = own.objective.error(torch.ones(1), torch.zeros(1), timesteps)
    assert error.item() == pytest.approx(2 * math.log(math.cosh(1 / 0.5)))


def test_a_saver_that_copies(plug_in, write_config, tmp_path):
    section = plug_in("my_saver")
    section["every_steps"] = 1
    path = write_config(networks=LORA, save=section)
    there = tmp_path / "loras"
    with pytest.raises(ConfigError, match=r"\n  save: folder: .*loras is not a directory$"):
        Trainer.from_config(load(path, f"save.args.folder={there}"))
    assert not (tmp_path / "output").exists()
    there.mkdir()
    trainer = train(path, f"save.args.folder={there}")
    names = ["run-step00000001.safetensors", "run.safetensors"]
    assert sorted(copy.name for copy in there.iterdir()) == names
    for name in names:
        assert (there / name).read_bytes() == (trainer.directory / name).read_bytes()
    assert load_file(there / names[0])  # and the section's dtype, which the class passes on
    assert {tensor.dtype for tensor in load_file(there / names[1]).values()} == {torch.float32}


def test_all_of_them_beside_a_main_that_is_called_from_elsewhere(
    plug_in, beside_main, write_config, tmp_path
):
    """In a process of its own, with the search path that `python <directory>/main.py` has."""
    sections = {PARTS[name]: plug_in(name) for name in PARTS}
    (tmp_path / "cat.txt").write_text("a cat", encoding="utf-8")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "cat.png")
    sections["dataset"]["args"] = {"path": str(tmp_path), "size": 32}
    sections["save"]["args"]["folder"] = str(tmp_path)
    path = write_config(**sections)
    shutil.copy(main.__file__, beside_main)
    done = subprocess.run(
        [sys.executable, str(beside_main / "main.py"), str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "offset.unet: 32 parameters in 1 tensors, learning rate 0.001" in done.stdout
    assert "data       1 images" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("warning")] == [
        "warning: train.learning_rate has no effect: every network has its own"
    ]
    assert "2/2" in done.stderr
    assert load_file(tmp_path / "run.safetensors")["offset"].abs().min() > 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(:", "SyntaxError: invalid syntax (my_parts.py, line 3)"),
        ("import nowhere_to_be", "No module named 'nowhere_to_be' (my_parts.py, line 3)"),
        ("torch.nn.Net", "AttributeError: module 'torch.nn' has no attribute 'Net' (my_parts.py, "),
    ],
)
def test_a_fault_in_the_file_is_one_line(beside_main, write_config, capsys, code, message):
    (beside_main / "my_parts.py").write_text(f"import torch\n\n{code}\n", encoding="utf-8")
    path = write_config(networks={"mine": {"module": "my_parts.Net"}})
    assert main.main([str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "run: the config asks for what can't be done:"
    assert lines[1].startswith(f"  networks.mine.module: importing my_parts failed: {message}")
    assert len(lines) == 2
