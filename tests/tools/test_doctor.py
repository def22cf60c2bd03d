"""The report on a machine, also on one where nothing works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.doctor import main

ROOT = Path(__file__).parents[2]
DOCTOR = ROOT / "tools" / "doctor.py"


def run(*options: str, cwd: Path, python: tuple[str, ...] = (), **environment: str):
    """Start the command; returns its exit status, output, and findings by name if it is JSON."""
    done = subprocess.run(
        [sys.executable, *python, str(DOCTOR), *options],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    found = json.loads(done.stdout) if "--json" in options else []
    return done.returncode, done.stdout, {one["name"]: one for one in found}


def package(folder: Path, name: str, source: str) -> None:
    """Write a package that stands before an installed one."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source, encoding="utf-8")


def test_this_machine_is_fit(tmp_path):
    status, _, found = run("--json", "--output", str(tmp_path / "runs"), cwd=tmp_path)
    assert [one for one in found.values() if one["state"] == "problem"] == []
    assert status == 0
    import torch

    assert f"torch {torch.__version__}" in found["packages"]["text"]
    assert "bitsandbytes 0." in found["optional"]["text"]
    assert found["torch"]["text"].startswith(torch.__version__)
    assert found["attention"]["text"].endswith("math")
    assert found["attention"]["state"] == "ok"
    assert found["output"]["text"].startswith(f"{tmp_path / 'runs'}: ")
    assert not (tmp_path / "runs").exists()
    assert found["network"]["text"].startswith("HF_HUB_OFFLINE is set")
    assert "python" in found["python"]["text"]


def test_without_any_package_it_says_what_to_install(tmp_path):
    status, output, _ = run(cwd=tmp_path, python=("-I", "-S"))
    assert status == 1
    assert "problem  torch                   not installed\n" in output
    assert " -> pip install torch==2." in output
    assert " -> pip install diffusers==" in output
    assert "warning  wandb                   not installed; for loggers.wandb\n" in output
    assert "all packages at once: pip install -r requirements.txt" in output
    lines = output.splitlines()
    problems = sum(line.startswith("problem ") for line in lines)
    assert lines[-1].startswith(f"{problems} problems, ")
    assert any(line.startswith("ok       optional ") for line in lines)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise OSError('libcudart.so.13: no such file')", "OSError: libcudart.so.13: no such"),
        ("import os; os._exit(7)", "ends Python with status 7"),
    ],
)
def test_a_broken_torch_is_named_alone(tmp_path, source, told):
    package(tmp_path / "before", "torch", source)
    status, _, found = run("--json", cwd=tmp_path, PYTHONPATH=str(tmp_path / "before"))
    assert status == 1
    bad = [name for name, one in found.items() if one["state"] == "problem"]
    assert bad == ["torch"]
    assert f"is installed but broken: {told}" in found["torch"]["text"]
    assert found["torch"]["mend"].startswith("pip install --force-reinstall torch==")
    assert "attention" not in found
    assert {"fonts", "output", "cache"} <= set(found)


def test_a_probe_that_fails_ends_nothing(monkeypatch, capsys):
    import tools.doctor as doctor

    def fail():
        raise RuntimeError("the card fell off the bus\nand more")

    for name in ("find_packages", "find_torch", "find_attention", "find_xformers"):
        monkeypatch.setattr(doctor, name, fail)
    assert main([]) == 0
    told = capsys.readouterr().out
    assert "warning  packages   can't be examined: the card fell off the bus\n" in told
    assert "ok       output " in told
