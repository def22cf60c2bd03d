"""Tensors out of foreign .ckpt files: bit by bit, and nothing in the file is run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modules.models.tensor_file import open_tensors
from tools import convert_ckpt, inert_pickle
from tools.containers import change_container
from tools.inert_pickle import Inert, read_tensors

RUN: list[str] = []


def note(text: str) -> None:
    RUN.append(text)


class Callback:
    """As training programs leave in their checkpoints."""

    def __init__(self) -> None:
        self.best, self.paths = 0.5, ["a.ckpt"]


class Hostile:
    """Calls a function of this test when it is loaded the usual way."""

    def __reduce__(self):
        return note, ("was run",)


class Listlike(list):
    def __reduce__(self):
        return Listlike, (), {"a": 1}, iter([1, 2]), iter([("k", 2)])

    def __setitem__(self, *_: object) -> None: ...


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return {
        "float": base,
        "transposed": base.T,
        "part": base[1:3, ::2],
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(0.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    content = {
        "state_dict": collections.OrderedDict(tensors()),
        "callbacks": {Callback: Callback(), "list": Listlike()},
        "hostile": Hostile(),
        "epoch": 3,
    }
    torch.save(content, tmp_path / "foreign.ckpt")
    return tmp_path / "foreign.ckpt"


def forge(file: Path, program: bytes, data: bytes = bytes(16)) -> Path:
    """A checkpoint whose pickle is `program`, with one storage of 4 floats."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", data)
    return file


class Name:
    """Pickles as the name of a class or function, which needs not exist."""

    def __init__(self, module: str, name: str):
        self.target = f"c{module}\n{name}\n".encode()


class Call(Name):
    """Pickles as a call of what is named."""

    def __init__(self, module: str, name: str, *arguments: object):
        super().__init__(module, name)
        self.arguments = arguments


class Forger(pickle._Pickler):  # the one written in Python, which lets itself be changed
    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Name):
            super().save(obj, save_persistent_id)
            return
        self.write(obj.target)
        if isinstance(obj, Call):
            super().save(obj.arguments)
            self.write(pickle.REDUCE)

    def persistent_id(self, obj: object) -> object:
        if obj == "the storage":
            return ("storage", Name("torch", "FloatStorage"), "0", "cpu", 4)
        return None


def program(content: object) -> bytes:
    stream = io.BytesIO()
    Forger(stream, protocol=2).dump(content)
    return stream.getvalue()


def rebuild(*arguments: object) -> Call:
    return Call("torch._utils", "_rebuild_tensor_v2", *arguments)


def test_tensors_come_out_bit_by_bit_and_nothing_is_run(foreign, tmp_path, caplog):
    RUN.clear()
    with caplog.at_level("INFO"):
        assert change_container(foreign, tmp_path / "out.safetensors") == len(tensors())
    assert RUN == []
    assert f"{__name__}.note" in caplog.text
    loaded = load_file(tmp_path / "out.safetensors")
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name
    torch.load(foreign, weights_only=False)  # the test would notice
    assert RUN == ["was run"]


def test_a_state_dict_alone_is_read(tmp_path):
    torch.save(tensors(), tmp_path / "plain.ckpt")
    found, ignored = read_tensors(tmp_path / "plain.ckpt")
    assert found.keys() == tensors().keys()
    assert ignored == []


def test_loading_the_model_names_the_objects_and_the_way_out(foreign):
    with pytest.raises(ValueError, match=r"holds more than tensors .*python tools/convert\.py"):
        open_tensors(foreign)


@pytest.mark.parametrize("module", ["os", "builtins", "posix", "torch", "tools.inert_pickle"])
@pytest.mark.parametrize("name", ["system", "eval", "getattr", "load", "_Data", "Tensor"])
def test_no_name_is_imported(tmp_path, module, name):
    marker = tmp_path / "marker"
    call = Call(module, name, f"touch {marker}")
    content = {"state_dict": {"x": rebuild("the storage", 0, (4,), (1,))}, "y": call}
    found, ignored = read_tensors(forge(tmp_path / "a.ckpt", program(content)))
    assert torch.equal(found["x"], torch.zeros(4))
    assert ignored == [f"{module}.{name}"]
    assert not marker.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("the storage", 0, (5,), (1,)),
        ("the storage", 1, (4,), (1,)),
        ("the storage", 0, (2, 2), (4, 1)),
        ("the storage", 0, (10**12,), (0,)),
        ("the storage", 0, (10**30,), (0,)),
        ("the storage", -1, (2,), (1,)),
        ("the storage", 0, (-1,), (1,)),
        ("the storage", 0, (2,), (1, 1)),
        ("the storage", 5, (0,), (1,)),
        ("the storage", 0, [4], (1,)),
        ("the storage", 0),
        ("no storage", 0, (4,), (1,)),
        (b"", 0, (4,), (1,)),
    ],
)
def test_tensors_beyond_their_data_are_refused(tmp_path, arguments):
    file = forge(tmp_path / "a.ckpt", program({"x": rebuild(*arguments)}))
    with pytest.raises(ValueError, match="can't be read"):
        read_tensors(file)


@pytest.mark.parametrize("place", ["_rebuild_tensor_v2", "FloatStorage"])
def test_stand_ins_cannot_be_changed(tmp_path, place):
    module = "torch" if place.endswith("Storage") else "torch._utils"
    # BUILD with (None, {"__class__": Inert, "name": 1}): pickle's way to set attributes
    build = f"c{module}\n{place}\nN}}(U\x09__class__cos\nsystem\nU\x04nameK\x01u\x86b.".encode(
        "latin-1"
    )
    read_tensors(forge(tmp_path / "a.ckpt", build))
    known = inert_pickle._Reader.known[module, place]
    assert type(known) is inert_pickle._Named
    assert known.name == place  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        known.name = "other"  # type: ignore[attr-defined]


def test_classes_of_stand_ins_cannot_be_changed(tmp_path):
    build = b"cos\nsystem\nN}(U\x08__call__K\x01u\x86b."
    read_tensors(forge(tmp_path / "a.ckpt", build))
    assert Inert()("anything") is not None


def test_names_for_the_terminal_are_plain(tmp_path):
    content = {"y": Call("\x1b[2J", "evil")}
    _, ignored = read_tensors(forge(tmp_path / "a.ckpt", program(content)))
    assert ignored == ["\\x1b[2J.evil"]


def test_compressed_data_are_refused(tmp_path):
    file = tmp_path / "a.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", program({"x": rebuild("the storage", 0, (4,), (1,))}))
        archive.writestr("a/data/0", bytes(16))
    with pytest.raises(ValueError, match="are compressed"):
        read_tensors(file)


def test_the_command_says_what_it_wrote_or_why_not(foreign, tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    assert convert_ckpt.main([str(foreign), "-o", str(output)]) == 0
    assert f"{output}: {len(tensors())} tensors" in capsys.readouterr().out
    assert convert_ckpt.main([str(foreign), "-o", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "none.ckpt").write_bytes(b"nothing")
    assert convert_ckpt.main([str(tmp_path / "none.ckpt"), "-o", str(tmp_path / "b")]) == 2
    assert "is no .pt file of tensors" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["foreign.ckpt", "none.ckpt", "out.safetensors"]
