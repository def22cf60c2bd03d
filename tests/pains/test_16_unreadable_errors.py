"""An error in a config is a traceback that says neither the line nor what is wanted."""

from __future__ import annotations

import re

import pytest
from interrupted_runs import LORA

import main


@pytest.fixture
def told(tmp_path, monkeypatch, capfd):
    """What is said of a config's bytes: exit status 2, and no word of Python's."""
    monkeypatch.chdir(tmp_path)

    def run(content, *overrides):
        (tmp_path / "cat.yaml").write_bytes(content)
        assert main.main(["cat.yaml", *overrides]) == 2
        said = capfd.readouterr().err
        assert "Traceback" not in said
        assert not re.search(r"\b(Error|Exception|omegaconf|NoneType)\b", said)
        return said.splitlines()

    return run


def test_all_faults_in_one_pass_each_with_key_line_and_what_is_wanted(told):
    first, *faults = told(
        b"model: {path: a.safetensors}\n"
        b"networks: {a: {module: networks.lora.LoRA}}\n"
        b"train:\n  max_train_steps: 0\n  batch_size: two\n  mixed_precison: bf16\n"
        b"save: {dtype: fp8}\n"
    )
    assert first == "cat.yaml is not a valid config:"
    assert faults == [
        "  model.path (line 1): 'a.safetensors' is not there",
        "  train.max_train_steps (line 4): 0 is out of range; it must be at least 1",
        "  train.batch_size (line 5): 'two' is not a whole number",
        "  train.mixed_precison (line 6): no such key; did you mean 'mixed_precision'?",
        "  save.dtype (line 7): 'fp8' is not one of 'fp32', 'fp16', 'bf16'",
    ]


@pytest.mark.parametrize(
    "written", [r'"C:\new"', r'"D:\Loras\Projects"', r'"C:\models"', r'"..\training"']
)
def test_backslashes_of_windows_are_told(told, written):
    (said,) = told(f"model: {{path: a}}\nsave:\n  directory: {written}\n".encode())
    assert "line 3" in said
    assert said.endswith("write Windows paths in 'single quotes' or with /")


def test_a_byte_order_mark_is_no_part_of_the_first_key(write_config):
    path = write_config(networks=LORA)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert main.main([str(path), "--check"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {path: 猫}\n".encode("utf-16"), "is not UTF-8 text (line 1); save it as UTF-8"),
        (b"a: 1\nb: \xe9t\xe9\n", "is not UTF-8 text (line 2); save it as UTF-8"),
        (b"model:\n\tpath: a\n", "line 2: a tab; indent with spaces"),
        (b"- model\n", "a config has sections as `model:` and `train:`"),
        (b"train: {seed: 1\n", "is not valid YAML: line 2: "),
    ],
)
def test_what_is_no_config_is_one_line(told, content, message):
    (said,) = told(content)
    assert said.startswith("cat.yaml ")
    assert message in said


def test_a_file_that_is_not_there(told, capfd):
    assert main.main(["dog.yaml"]) == 2
    assert capfd.readouterr().err.startswith("dog.yaml: no such file")
