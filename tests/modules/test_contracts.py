"""Parts of a person's own that lack what the trainer calls, or take less than it offers."""

import sys

import pytest

from modules.config import load
from modules.contracts import lacking_methods
from modules.errors import ConfigError
from modules.idle_settings import idle_settings
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}
FAULTY = """
from torch import nn
from modules.samplers import GridSampler

class Half(nn.Module):
    def attach(self, model): ...
    def condition(self, inputs, batch): ...

class Plain:
    def attach(self, model): ...
    def detach(self): ...
    def condition(self, inputs, batch): ...
    def parameter_groups(self): ...
    def load(self, path): ...
    def save(self, path, *, dtype, metadata): ...

class Quiet:
    def __init__(self, *, every_steps: int | None = None): ...
    def save_if_due(self, run, *, last): ...

class Narrow(GridSampler):
    def __init__(self, *, prompts: list[str]):
        super().__init__(prompts=prompts, width=32, height=32, num_inference_steps=1)

class Empty: ...

def made(path: str):
    return [Empty()]
"""
ADVICE = "; config/README.md shows what a class of your own must have"


@pytest.fixture(autouse=True)
def my_parts(tmp_path, monkeypatch):
    """The file of faulty parts, where main.py's are found; forgotten afterwards."""
    (tmp_path / "my_parts.py").write_text(FAULTY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_parts", None)


def test_a_class_without_the_methods_is_refused_before_anything_is_loaded(write_config):
    empty = {"module": "my_parts.Empty"}
    networks = {"half": {"module": "my_parts.Half"}, "plain": {"module": "my_parts.Plain"}}
    sample = {**empty, "prompts": ["a cat"]}
    path = write_config(
        dataset={**empty, "args": {}}, networks=networks, objective=empty, save=empty, sample=sample
    )
    with pytest.raises(ConfigError) as raised:
        Trainer.from_config(load(path))
    assert str(raised.value).splitlines()[1:] == [
        "  dataset.module: my_parts.Empty has no __len__, __getitem__" + ADVICE,
        "  networks.half.module: my_parts.Half has no detach, parameter_groups, load, save"
        + ADVICE,
        "  networks.plain.module: my_parts.Plain is no torch.nn.Module; let it be one",
        "  objective.module: my_parts.Empty has no sample_noise, sample_timesteps, add_noise, "
        "target, loss_weight, error" + ADVICE,
        "  save.module: my_parts.Empty has no save_if_due" + ADVICE,
        "  sample.module: my_parts.Empty has no sample_if_due" + ADVICE,
    ]
    function = write_config("function", networks=LORA, dataset={"module": "my_parts.made"})
    assert lacking_methods(load(function)) == []  # what it returns is not known yet


def test_settings_that_a_part_does_not_take_are_named(write_config):
    save = {"module": "my_parts.Quiet", "every_steps": 1, "keep_last": 2}
    sample = {"module": "my_parts.Narrow", "prompts": ["a cat"], "seed": 5, "every_steps": 1}
    path = write_config(networks=LORA, save=save, sample=sample)
    assert idle_settings(load(path)) == [
        "save.keep_last has no effect: my_parts.Quiet takes no such argument",
        "save.dtype has no effect: my_parts.Quiet takes no such argument",
        "sample.seed has no effect: my_parts.Narrow takes no such argument",
        "sample.every_steps has no effect: my_parts.Narrow takes no such argument",
    ]
    trainer = Trainer.from_config(load(path))
    trainer.train()
    files = [*trainer.directory.glob("*.*"), *trainer.directory.glob("samples/*.*")]
    names = [file.name for file in files]  # its state is not the saver's
    assert "step00000002.png" in names  # drawn by the one class; the other saves nothing
    assert not [name for name in names if name.endswith(".safetensors")]
