"""Files of tensors: headers first, pickles without running anything, and what can't be read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.models.tensor_file import find_file, open_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)}


def read_all(path: Path) -> dict[str, torch.Tensor]:
    opened = open_tensors(path)
    with opened.reading() as read:
        return {name: read(name) for name in opened.shapes}


@pytest.mark.parametrize("suffix", [".safetensors", ".SAFETENSORS"])
def test_safetensors_give_shapes_and_metadata_by_their_header(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_file(TENSORS, path, metadata={"title": "cat"})
    opened = open_tensors(path)
    assert opened.shapes == {"a.weight": (2, 3), "b": ()}
    assert opened.metadata == {"title": "cat"}
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in read_all(path).items())


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_pickles_of_today_and_before_are_read(tmp_path, suffix, is_zip):
    path = tmp_path / f"a{suffix}"
    content = {"state_dict": {**TENSORS, "step": 3}, "epoch": 1}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    opened = open_tensors(path)
    assert opened.shapes == {"a.weight": (2, 3), "b": ()}
    assert opened.metadata == {}
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in read_all(path).items())


def test_tensors_without_a_state_dict_are_read(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt")
    assert read_all(tmp_path / "a.pt").keys() == TENSORS.keys()


class Foreign:
    ran = False

    def __setstate__(self, state: object) -> None:
        Foreign.ran = True


@pytest.mark.parametrize("is_zip", [True, False])
def test_other_objects_are_refused_and_never_run(tmp_path, is_zip):
    content = {"state_dict": TENSORS, "callback": Foreign()}
    content["callback"].__dict__["x"] = 1
    path = tmp_path / "a.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"a\.ckpt: (holds more than tensors|can't be read)"):
        open_tensors(path)
    assert not Foreign.ran


def test_a_plain_pickle_is_no_checkpoint(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(ValueError, match=r"a\.ckpt: can't be read"):
        open_tensors(tmp_path / "a.ckpt")


def test_what_is_cut_off_is_said_in_one_line(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"a\.safetensors: can't be read") as caught:
        open_tensors(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_paths_that_are_files(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert find_file(str(tmp_path / "a.txt")) == tmp_path / "a.txt"
    assert find_file(str(tmp_path)) is None
    assert find_file("owner/model") is None
    with pytest.raises(ValueError, match=r"owner/model\.ckpt: no such file"):
        find_file("owner/model.ckpt")
