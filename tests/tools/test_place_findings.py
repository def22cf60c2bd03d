from collections import namedtuple
from pathlib import Path

import pytest

from tools import place_findings
from tools.place_findings import find_disks, find_fonts, find_settings, hub_cache

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "state", "words"),
    [
        (50e9, "ok", "50.0 GB free"),
        (5e9, "warning", "5.0 GB free, a few models' worth"),
        (5e8, "problem", "0.5 GB free, too little for a model"),
    ],
)
def test_free_space(tmp_path, monkeypatch, free, state, words):
    looked = []

    def usage(path):
        looked.append(path)
        return Usage(1e12, 0, free)

    monkeypatch.setattr(place_findings.shutil, "disk_usage", usage)
    output, cache = find_disks(tmp_path / "runs" / "of" / "mine")
    assert (output.name, cache.name) == ("output", "cache")
    assert looked[0] == tmp_path  # what is there of it
    assert output.state == state
    assert output.text == f"{tmp_path / 'runs' / 'of' / 'mine'}: {words}"


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "output").write_text("")
    found = next(iter(find_disks(tmp_path / "output")))
    assert found.state == "problem"
    assert "can't be written to" in found.text


def test_the_cache_is_the_hubs(monkeypatch):
    from huggingface_hub import constants

    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert hub_cache() == Path("~/.cache/huggingface/hub").expanduser()
    assert constants.HF_HUB_CACHE.endswith(str(Path("huggingface", "hub")))
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub_cache() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/hf")
    assert hub_cache() == Path("/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    assert hub_cache() == Path("/hub")


def test_offline(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert list(find_settings()) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert list(find_settings()) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    assert [one.state for one in find_settings()] == ["warning"]


def test_fonts(monkeypatch):
    from matplotlib import get_data_path

    from modules import grids

    monkeypatch.setattr(grids, "_WIDE_FONTS", ("no-such-font.ttc",))
    (found,) = find_fonts()
    assert (found.state, found.text.partition(":")[0]) == ("warning", "none with Japanese")
    font = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    monkeypatch.setattr(grids, "_WIDE_FONTS", ("no-such-font.ttc", str(font)))
    (found,) = find_fonts()
    assert found.state == "ok"
    assert found.text.startswith("DejaVu Sans for Japanese")
