"""No network with HF_HUB_OFFLINE=1: the guard of all tests bites, and a missing model is told."""

from __future__ import annotations

import contextlib
import os
import socket
import urllib.request

import pytest
from network_guard import NetworkUsed, no_network

import main
from modules.models import load
from modules.models.pieces import load_vae


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("huggingface.co", 443)])
def test_the_guard_refuses_another_machine(address):
    told = pytest.raises(NetworkUsed, match=address[0])
    with pytest.raises(AssertionError, match="network use"), no_network(), told:
        socket.create_connection(address, timeout=5)


def test_the_guard_fails_what_swallows_the_refusal():
    swallow = contextlib.suppress(OSError)
    with (
        pytest.raises(AssertionError, match=r"HF_HUB_OFFLINE=1: example\.org"),
        no_network(),
        swallow,
    ):
        urllib.request.urlopen("http://example.org/", timeout=5)


def test_the_guard_lets_a_process_reach_itself():
    with no_network(), socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_every_test_is_guarded():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert socket.socket.connect.__qualname__.startswith("no_network")


@pytest.mark.parametrize("name", ["someone/no-such-model", "../someone/model", "a/b/c"])
def test_a_model_that_is_not_here_is_not_asked_for(name):
    with pytest.raises(ValueError, match=f"^{name}: ") as told:
        load(name)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=f"^{name}: "):
        load_vae(name)


def test_a_run_on_a_model_that_is_not_here_ends_in_one_line(write_config, capsys):
    lora = {"lora": {"module": "networks.lora.LoRA"}}
    config = write_config(model={"path": "someone/no-such-model"}, networks=lora)
    assert main.main([str(config)]) == 2
    assert "someone/no-such-model" in capsys.readouterr().err
