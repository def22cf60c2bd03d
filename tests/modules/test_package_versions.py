"""Versions that a receipt names."""

from __future__ import annotations

import platform
import subprocess

import pytest
import torch

from modules import package_versions
from modules.package_versions import OURSELVES, own_commit


def test_what_is_installed_is_named():
    found = package_versions.package_versions(
        ["yaml.Loader", "my_parts.Optimizer", "torch.optim.X"]
    )
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert "my_parts" not in found
    assert set(found) >= {"diffusers", "transformers", "accelerate", "safetensors", "numpy"}


def git(directory, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    run = subprocess.run(["git", *identity, *arguments], cwd=directory, capture_output=True)
    if run.returncode:
        pytest.skip(f"no git here: {run.stderr.decode()}")
    return run.stdout.decode().strip()


def test_our_commit_tells_of_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(package_versions, "_ROOT", tmp_path)
    assert own_commit() is None
    git(tmp_path, "init", "-q")
    assert own_commit() is None  # nothing is committed
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert own_commit() == head
    assert package_versions.package_versions()[OURSELVES] == head
    (tmp_path / "a.py").write_text("a = 2\n")
    assert own_commit() == f"{head}-dirty"


def test_the_repository_around_ours_is_not_ours(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "a", "--allow-empty")
    inner = tmp_path / "vendored"
    inner.mkdir()
    monkeypatch.setattr(package_versions, "_ROOT", inner)
    assert own_commit() is None
