"""Hostile YAML is refused in one message: bombs before they are expanded, tags before they run."""

from __future__ import annotations

import resource
import time

import pytest

from modules.config import load
from modules.errors import ConfigError
from modules.interpolations import MOST, is_too_large

BASE = """
model: {path: a/b}
dataset: {args: {path: .}}
networks: {lora: {module: networks.lora.LoRA}}
train: {max_train_steps: 1}
"""


def levels(count: int, line: str) -> str:
    """Lines of which each names the one before ten times."""
    return "".join(line.format(one=number, two=number + 1) for number in range(count))


ALIASES = "a0: &a0 [x, x]\n" + levels(20, "a{two}: &a{two} [" + "*a{one}, " * 10 + "]\n")
TEXTS = "a0: x\n" + levels(20, "a{two}: '" + "${{a{one}}}" * 10 + "'\n")
LISTS = "a0: [x, x]\n" + levels(20, "a{two}: [" + "'${{a{one}}}', " * 10 + "]\n")
NEIGHBOURS = "s:\n  a0: x\n" + levels(20, "  a{two}: '" + "${{.a{one}}}" * 10 + "'\n")
SELECTED = "a0: x\n" + levels(20, "a{two}: '" + "${{oc.select:a{one}}}" * 10 + "'\n")
CHAIN = "a0: x\n" + "".join(f"a{n + 1}: '${{a{n}}}'\n" for n in range(5000))

HOSTILE = {
    "aliases": ALIASES,
    "texts": TEXTS,
    "lists": LISTS,
    "neighbours": NEIGHBOURS,
    "selected": SELECTED,
    "chain": CHAIN,
    "merges": "a: &a {x: 1}\nb: &b {<<: *b}\n",
    "itself": "a: &a [*a]\n",
    "circle": "a: ${b}\nb: ${a}\n",
    "deep lists": "[" * 5000,
    "deep mappings": "{a: " * 5000,
    "deep interpolation": "a: '" + "${a." * 300 + "}" * 300 + "'\n",
    "unclosed": "a: '" + "${" * 300 + "'\n",
    "creates": "a: ${oc.create:'{b: 1}'}\n",
    "python call": "a: !!python/object/apply:os.mkdir [canary]\n",
    "python name": "a: !!python/name:os.system\n",
    "python module": "a: !!python/module:antigravity\n",
    "own tag": "a: !mine {b: 1}\n",
    "int": "a: !!int x\n",
    "empty int": "a: !!int 0x\n",
    "float": "a: !!float x\n",
    "bool": "a: !!bool x\n",
    "date": "a: !!timestamp x\n",
    "binary": "a: !!binary x\n",
    "key list": "? [1, 2]\n: 3\n",
    "key mapping": "? {a: 1}\n: 3\n",
    "key with half a character": '"\\ud800": 1\n',
    "documents": "a: 1\n---\nb: 2\n",
    "control": "a: \a\n",
    "nul": BASE + 'save: {directory: "a\\0b"}\n',
    "half a character": BASE + 'save: {directory: "\\ud800"}\n',
    "not a number": BASE.replace("steps: 1", "steps: 1, learning_rate: .nan"),
    "infinite": BASE.replace("steps: 1", "steps: 1, learning_rate: .inf"),
    "no steps": BASE.replace("steps: 1", "steps: .nan"),
    "huge": BASE.replace("steps: 1", f"steps: {'9' * 900}"),
    "hugest": BASE.replace("steps: 1", f"steps: {'9' * 9000}"),
    "huge rate": BASE.replace("steps: 1", f"steps: 1, learning_rate: {'9' * 900}"),
    "overflow": BASE.replace("steps: 1", "steps: 1e999"),
    "secret taken out": BASE + "loggers: {wandb: {settings: {api_key: '***'}}}\n",
    "name upwards": BASE + "save: {name: ../x}\n",
    "name absolute": BASE + "save: {name: /x}\n",
    "name with a drive": BASE + "save: {name: 'C:x'}\n",
    "name of a device": BASE + "save: {name: CON}\n",
    "name of a device's file": BASE + "save: {name: nul.txt}\n",
    "name with a dot behind": BASE + "save: {name: 'x.'}\n",
    "name with lines": BASE + 'save: {name: "a\\nb"}\n',
    "name too long": BASE + f"save: {{name: {'a' * 300}}}\n",
    "network upwards": BASE.replace("{lora:", "{../x:"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(HOSTILE[name], encoding="utf-8")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load(path)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("content", [b"\xff\xfea\0", "a: \xe4".encode("latin-1"), bytes(100)])
def test_what_is_no_text_is_told(content, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml is not"):
        load(path)


def test_the_size_of_a_config_is_known_before_it_is_made():
    values = {"a": "x" * 99, "b": ["${a}", "${.0}"], "c": {"d": "${b[1]}", "e": "${..b.0}"}}
    assert not is_too_large(values)
    values["f"] = ["${b}"] * (MOST // 200)
    assert is_too_large(values)
    assert not is_too_large({"a": "${b}", "b": "${a}", "c": "${nowhere}", "d": "${a.${b}}"})
