"""Components by dotted path: find the class, check its arguments, build it.

Ours, a package's and a person's own classes come in through the same door.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from modules.hints import nearest
from modules.schema import convert

logger = logging.getLogger(__name__)

PIP_LINES = {
    "bitsandbytes": "pip install bitsandbytes",
    "came_pytorch": "pip install came-pytorch",
    "prodigyopt": "pip install prodigyopt",
    "prodigyplus": "pip install prodigy-plus-schedule-free",
    "pytorch_optimizer": "pip install pytorch-optimizer",
    "lion_pytorch": "pip install lion-pytorch",
    "lpips": "pip install lpips",
    "schedulefree": "pip install schedulefree",
    "dadaptation": "pip install dadaptation",
    "torchao": "pip install torchao",
    "torchvision": "pip install torchvision",
}

_WRONG_CALL = re.compile(r"unexpected keyword argument|missing \d+ required")


def resolve(path: str) -> Any:
    """Return the class or function at a dotted path such as `torch.optim.AdamW`.

    Raises:
        ValueError: no such module or name; says what is nearest, or how to install it.
    """
    module_path, _, name = path.rpartition(".")
    if not module_path:
        raise ValueError(f"{path!r} is not a dotted path; write package.module.Name")
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        raise ValueError(_import_problem(module_path, error)) from error
    except (Exception, SystemExit) as error:  # a fault in a file of the person's own
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise ValueError(f"importing {module_path} failed: {reason}") from error
    if not hasattr(module, name):
        public = [n for n, value in vars(module).items() if n[:1] != "_" and callable(value)]
        raise ValueError(f"{module_path} has no {name!r}{nearest(name, public)}")
    found = getattr(module, name)
    if not callable(found):
        raise ValueError(f"{path} is neither a class nor a function")
    return found


def argument_faults(
    where: str, path: str, args: Mapping[str, Any], supplied: Collection[str] = ()
) -> list[str]:
    """What is wrong with calling the component at `path` with `args`, one line each.

    `supplied` names the arguments that the trainer gives by itself.
    """
    try:
        target = resolve(path)
    except ValueError as error:
        return [f"{where}.module: {error}"]
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # a class in C without a signature: it will judge by itself
        return []
    parameters = signature.parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    offered = [name for name in known if name not in supplied]
    collected = _Faults(where)
    hints = _hints(target)
    for key, value in args.items():
        if key in supplied:
            collected.fault((key,), "is set by the trainer; take it out")
        elif key in known:
            convert(value, hints.get(key, Any), collected, (key,))
        elif not open_ended:
            collected.fault((key,), f"{path} takes no argument {key!r}{_offer(key, offered)}")
        elif near := nearest(key, offered):
            idle = f"{path} names no such argument, so it may have no effect"
            logger.warning("%s.args.%s: %s%s", where, key, idle, near)
    for name in known:
        given = name in args or name in supplied
        if parameters[name].default is inspect.Parameter.empty and not given:
            collected.fault((name,), f"is missing; {path} needs it")
    return collected.lines


def build(path: str, args: Mapping[str, Any], /, *positional: Any, **supplied: Any) -> Any:
    """Call the component at `path`, its arguments converted to what its signature says.

    Raises:
        ValueError: an argument is wrong, or the component needs what is not installed.
    """
    target = resolve(path)
    hints = _hints(target)
    collected = _Faults(path)
    arguments = {
        key: convert(value, hints.get(key, Any), collected, (key,)) for key, value in args.items()
    }
    if collected.lines:
        raise ValueError("; ".join(collected.lines))
    try:
        return target(*positional, **arguments, **supplied)
    except (ImportError, NotImplementedError) as error:  # of packages: they refuse a setting
        raise ValueError(f"{path}: {_reason(error)}") from error
    except TypeError as error:  # of arguments that are passed on
        if not _WRONG_CALL.search(str(error)):
            raise
        raise ValueError(f"{path}: {_reason(error)}") from error


def accepts(path: str, name: str) -> bool:
    """Whether the component at `path` takes an argument of that name."""
    try:
        parameters = inspect.signature(resolve(path)).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class _Faults:
    def __init__(self, where: str):
        self._where = where
        self.lines: list[str] = []

    def fault(self, path: tuple[str, ...], message: str) -> None:
        self.lines.append(f"{self._where}.args.{'.'.join(path)}: {message}")


def _hints(target: Any) -> dict[str, Any]:
    """Annotations by argument; one that can't be evaluated here counts as Any."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    names = getattr(function, "__globals__", {})
    hints = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, names)
            except Exception:  # names that only a type checker sees
                annotation = Any
        hints[name] = annotation
    return hints


def _offer(key: str, known: list[str]) -> str:
    return nearest(key, known) or (f"; it takes {', '.join(known)}" if known else "")


def _import_problem(module_path: str, error: ImportError) -> str:
    package = module_path.partition(".")[0]
    missing = getattr(error, "name", None)
    if missing is None or not f"{module_path}.".startswith(f"{missing}."):
        pip_line = PIP_LINES.get(str(missing).partition(".")[0])
        advice = f"; {pip_line}" if pip_line else ""
        return f"importing {module_path} failed: {_reason(error)}{advice}"
    if package in PIP_LINES:
        return f"the package {package} is not installed; {PIP_LINES[package]}"
    near = nearest(missing.rpartition(".")[2], _siblings(missing))
    advice = near or "; is it spelled right, installed, or beside main.py?"
    return f"there is no module {missing!r}{advice}"


def _reason(error: BaseException) -> str:
    """The first line of an error's message, and where in a file of ours or the person's it is."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, SyntaxError):  # names its own file and line
        return said
    paths = sysconfig.get_paths()
    libraries = tuple(paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)[1:]  # the first is of this file
        if not frame.filename.startswith(("<", *libraries))
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return said + place


def _siblings(module_path: str) -> list[str]:
    """Modules of the package that `module_path` would be in."""
    parent = sys.modules.get(module_path.rpartition(".")[0])
    return [module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", []))]
