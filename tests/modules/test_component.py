from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import pytest

from modules.component import accepts, argument_faults, build, resolve

if TYPE_CHECKING:
    from nowhere import Unseen


class Part:
    def __init__(
        self,
        path: str,
        *,
        size: int = 3,
        span: tuple[float, float] = (0.0, 1.0),
        names: Sequence[str] = (),
        mode: Literal["a", "b"] = "a",
        rate: float | None = None,
        extras: Mapping[str, int] | None = None,
        unseen: Unseen | None = None,
    ):
        self.given = {"path": path, "size": size, "span": span, "names": names, "mode": mode}


class Child(Part):
    pass


class Plain:
    pass


class Open:
    def __init__(self, size: int = 1, **rest):
        self.given = {"size": size, **rest}


def wrapper(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)

    return inner


@wrapper
def wrapped(size: int = 1):
    return size


not_callable = 3


@pytest.fixture(autouse=True)
def parts(monkeypatch, tmp_path):
    """This file as a module `parts`, and a directory for modules of one's own."""
    monkeypatch.setitem(sys.modules, "parts", sys.modules[__name__])
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def why(path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        resolve(path)
    return str(caught.value)


def test_resolve_ours_a_packages_and_ones_own(parts):
    (parts / "mine_alone.py").write_text("class Net: pass\n", encoding="utf-8")
    assert resolve("networks.lora.LoRA").__name__ == "LoRA"
    assert resolve("torch.optim.AdamW").__module__.startswith("torch.optim")
    assert resolve("mine_alone.Net").__name__ == "Net"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("AdamW", "'AdamW' is not a dotted path; write package.module.Name"),
        ("torch.optim.AdmaW", "torch.optim has no 'AdmaW'; did you mean 'AdamW'?"),
        ("networks.lora.Lora", "networks.lora has no 'Lora'; did you mean 'LoRA'?"),
        ("networks.lora.", "networks.lora has no ''"),
        ("networks.lroa.LoRA", "there is no module 'networks.lroa'; did you mean 'lora'?"),
        (
            "no_such_package.part.Thing",
            "there is no module 'no_such_package'; is it spelled right, installed, or beside "
            "main.py?",
        ),
        ("parts.not_callable", "parts.not_callable is neither a class nor a function"),
    ],
)
def test_paths_that_lead_nowhere(path, message):
    assert why(path) == message


def test_an_optional_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert why("bitsandbytes.optim.AdamW8bit") == (
        "the package bitsandbytes is not installed; pip install bitsandbytes"
    )


def test_a_module_of_ones_own_that_fails(parts):
    (parts / "broken_import.py").write_text("import surely_not_there\n", encoding="utf-8")
    (parts / "broken_code.py").write_text("1 / 0\n", encoding="utf-8")
    (parts / "broken_syntax.py").write_text("def f(:\n", encoding="utf-8")
    assert why("broken_import.Net") == (
        "importing broken_import failed: No module named 'surely_not_there'"
    )
    assert why("broken_code.Net") == (
        "importing broken_code failed: ZeroDivisionError: division by zero"
    )
    assert why("broken_syntax.Net").startswith("importing broken_syntax failed: SyntaxError: ")


@pytest.mark.parametrize("name", ["Part", "Child"])
def test_all_faulty_arguments_at_once(name):
    args = {
        "sizze": 1,
        "size": "4",
        "span": [0],
        "names": "unet",
        "mode": "c",
        "rate": "high",
        "extras": {"a": "b"},
        "unseen": 3,
        "seed": 1,
    }
    assert argument_faults("networks.x", f"parts.{name}", args, supplied={"seed"}) == [
        f"networks.x.args.sizze: parts.{name} takes no argument 'sizze'; did you mean 'size'?",
        "networks.x.args.size: '4' is not a whole number; write 4 without quotes",
        "networks.x.args.span: has 1 values, 2 are wanted",
        "networks.x.args.names: 'unet' is not a list; write ['unet']",
        "networks.x.args.mode: 'c' is not one of 'a', 'b'",
        "networks.x.args.rate: 'high' is not a number",
        "networks.x.args.extras.a: 'b' is not a whole number",
        "networks.x.args.seed: is set by the trainer; take it out",
        f"networks.x.args.path: is missing; parts.{name} needs it",
    ]


def test_other_signatures():
    assert argument_faults("x", "parts.Nothing", {}) == ["x.module: parts has no 'Nothing'"]
    assert argument_faults("x", "parts.Plain", {}) == []
    assert argument_faults("x", "parts.Plain", {"a": 1}) == [
        "x.args.a: parts.Plain takes no argument 'a'"
    ]
    assert argument_faults("x", "parts.Open", {"size": 1.5, "what": "ever"}) == [
        "x.args.size: 1.5 is not a whole number"
    ]
    assert argument_faults("x", "parts.wrapped", {"size": "a"}) == [
        "x.args.size: 'a' is not a whole number"
    ]
    assert argument_faults("x", "builtins.dict", {"a": 1}) == []  # no signature: it will judge
    assert argument_faults("x", "parts.Part", {"path": "p", "zzz": 1}) == [
        "x.args.zzz: parts.Part takes no argument 'zzz'; it takes path, size, span, names, mode, "
        "rate, extras, unseen"
    ]


def test_components_that_a_config_names():
    supplied = {"params", "lr"}
    right = {"betas": [0.9, 0.99], "weight_decay": 0, "eps": 1e-8}
    assert argument_faults("optimizer", "torch.optim.AdamW", right, supplied) == []
    wrong = {"weight_decy": 0.1, "betas": 0.9, "lr": 1}
    assert argument_faults("optimizer", "torch.optim.AdamW", wrong, supplied) == [
        "optimizer.args.weight_decy: torch.optim.AdamW takes no argument 'weight_decy'; did you "
        "mean 'weight_decay'?",
        "optimizer.args.betas: 0.9 is not a list; write [0.9]",
        "optimizer.args.lr: is set by the trainer; take it out",
    ]
    args = {"network_dim": 4, "targets": "unet", "alpha": None}
    assert argument_faults("networks.lora", "networks.lora.LoRA", args) == [
        "networks.lora.args.network_dim: networks.lora.LoRA takes no argument 'network_dim'; did "
        "you mean 'rank'?",
        "networks.lora.args.targets: 'unet' is not a list; write ['unet']",
    ]


def test_build_converts_and_supplies():
    part = build("parts.Part", {"size": 4.0, "span": [0, 1], "names": ["a"]}, path="here")
    assert part.given == {
        "path": "here", "size": 4, "span": (0.0, 1.0), "names": ["a"], "mode": "a",
    }  # fmt: skip
    assert build("parts.Open", {"a": 1}, 5).given == {"size": 5, "a": 1}
    with pytest.raises(ValueError, match=r"^parts\.Part\.args\.size: 'x' is not a whole number$"):
        build("parts.Part", {"size": "x"}, path="here")


def test_accepts():
    assert accepts("parts.Part", "size")
    assert not accepts("parts.Part", "seed")
    assert accepts("parts.Open", "seed")
    assert not accepts("parts.Nothing", "seed")
    assert not accepts("builtins.dict", "seed")
