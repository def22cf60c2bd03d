"""A new card, or torch without CUDA: "no kernel image", and nothing says what to install."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from interrupted_runs import LORA
from safetensors.torch import load_file

import main
from modules.hardware import build_faults
from tools.torch_findings import find_torch


@pytest.fixture
def card(monkeypatch):
    """Lets torch say that there is a card of a capability, and its build has certain kernels."""

    def put(capability, *kernels):
        properties = SimpleNamespace(name="RTX 5090", major=capability[0], minor=capability[1])
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "get_device_name": lambda _index=0: "RTX 5090",
            "get_device_capability": lambda _index=0: capability,
            "get_device_properties": lambda _index=0: properties,
            "get_arch_list": lambda: list(kernels),
            "mem_get_info": lambda _index=0: (30 << 30, 32 << 30),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.version, "cuda", "12.4")

    return put


def test_the_doctor_holds_the_card_against_the_builds_kernels(card):
    card((12, 0), "sm_80", "sm_90")
    problem = next(one for one in find_torch() if one.state == "problem")
    assert "compute capability 12.0" in problem.text
    assert "sm_80 sm_90" in problem.text
    assert "no kernel image is available" in problem.text
    assert problem.mend.startswith("pip install --force-reinstall torch --index-url https://")


def test_a_card_that_fits_is_no_problem(card):
    card((12, 0), "sm_90", "sm_120")
    assert build_faults() == []


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_run_beside_a_card_that_torch_cannot_use_says_so(
    write_config, tmp_path, monkeypatch, capfd
):
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{driver.parent}:/usr/bin:/bin")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert main.main([str(write_config(networks=LORA))]) == 0
    said = capfd.readouterr().out
    assert "an NVIDIA card is present but this torch" in said
    assert "pip install --force-reinstall torch==" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="xformers may run on the card")
def test_kernels_that_cannot_run_here_are_replaced(write_config, tmp_path, capfd):
    path = write_config(networks=LORA)
    for name, kernel in (("default", None), ("asked", "xformers")):
        given = [f"train.attention={kernel}"] if kernel else []
        assert main.main([str(path), f"save.name={name}", *given]) == 0
    assert "train.attention: xformers can't be used here" in capfd.readouterr().out
    one, two = (
        load_file(tmp_path / "output" / name / f"{name}.safetensors")
        for name in ("default", "asked")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
