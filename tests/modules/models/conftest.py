"""Fixtures of models on disk: a single file, and no way to the network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may open a connection, though nothing says that the hub is offline."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture(scope="session")
def sd1_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SD1 as one .safetensors in float32; tests don't write to it."""
    import tiny
    import torch

    from modules import models
    from modules.models.full_file import save_single_file

    directory = tmp_path_factory.mktemp("sd1")
    model = models.load(str(tiny.save_sd(directory / "model")))
    save_single_file(model, directory / "model.safetensors", dtype=torch.float32)
    return directory / "model.safetensors"
