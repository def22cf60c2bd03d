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


class Forwarding(Part):
    def __init__(self, **settings):
        super().__init__(**settings)


def needs_more():
    raise ImportError("needs einops")


def faulty_code():
    return "a" + 1


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


@pytest.mark.parametrize(
    ("path", "pip_name"),
    [
        ("bitsandbytes.optim.AdamW8bit", "bitsandbytes"),
        ("came_pytorch.CAME", "came-pytorch"),
        ("dadaptation.DAdaptAdam", "dadaptation"),
        ("lion_pytorch.Lion", "lion-pytorch"),
        ("prodigyopt.Prodigy", "prodigyopt"),
        ("prodigyplus.ProdigyPlusScheduleFree", "prodigy-plus-schedule-free"),
        ("pytorch_optimizer.Lion", "pytorch-optimizer"),
        ("schedulefree.AdamWScheduleFree", "schedulefree"),
        ("torchao.optim.AdamW8bit", "torchao"),
    ],
)
def test_an_optional_package_is_named_with_its_pip_line(parts, monkeypatch, path, pip_name):
    package = path.partition(".")[0]
    take_away(package, monkeypatch)
    assert why(path) == f"the package {package} is not installed; pip install {pip_name}"
    (parts / "my_parts.py").write_text(f"\nimport {package}\n", encoding="utf-8")
    assert why("my_parts.Net") == (
        f"importing my_parts failed: import of {package} halted; None in sys.modules (my_parts.py, "
        f"line 2); pip install {pip_name}"
    )


def take_away(package, monkeypatch):
    """Make a package look as if it was not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import surely_not_there", "No module named 'surely_not_there' (faulty.py, line 2)"),
        ("from torch import Tensr", "cannot import name 'Tensr' from 'torch'"),
        ("1 / 0", "ZeroDivisionError: division by zero (faulty.py, line 2)"),
        ("import json\njson.loads('{')", "JSONDecodeError: Expecting property name"),
        ("raise SystemExit(3)", "SystemExit: 3 (faulty.py, line 2)"),
        ("def f(:", "SyntaxError: invalid syntax (faulty.py, line 2)"),
        ("import helper_of_faulty", "NameError: name 'x' is not defined (helper_of_faulty.py, "),
        ("raise ValueError('a\\nb')", "ValueError: a (faulty.py, line 2)"),
    ],
)
def test_a_file_of_ones_own_that_fails(parts, code, message):
    (parts / "faulty.py").write_text(f"\n{code}\n", encoding="utf-8")
    (parts / "helper_of_faulty.py").write_text("x\n", encoding="utf-8")
    said = why("faulty.Net")
    assert said.startswith(f"importing faulty failed: {message}")
    assert said.endswith(")")
    assert "\n" not in said


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


def test_an_open_ended_class_warns_of_what_may_be_misspelled(caplog):
    assert argument_faults("x", "parts.Open", {"sizze": 1, "unlike": 2}) == []
    assert {record.getMessage() for record in caplog.records} == {
        "x.args.sizze: parts.Open names no such argument, so it may have no effect; did you mean "
        "'size'?"
    }


def test_build_says_what_a_class_refuses():
    with pytest.raises(
        ValueError, match=r"^parts\.Forwarding: .*argument 'sizze' \(test_component"
    ):
        build("parts.Forwarding", {"path": "p", "sizze": 1})
    with pytest.raises(ValueError, match=r"^parts\.needs_more: needs einops \(test_component\.py"):
        build("parts.needs_more", {})
    with pytest.raises(TypeError, match="can only concatenate"):  # a fault of the code: traceback
        build("parts.faulty_code", {})


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
