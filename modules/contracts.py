"""Whether a class has the methods that its place in the trainer calls: said before any loading."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from torch import nn

from modules.component import resolve
from modules.protocols import Network, Sampler, Saver
from modules.run_kinds import kind_of
from modules.sections import Config


def lacking_methods(config: Config) -> list[str]:
    """One line for each component whose class can't do what the trainer asks of it.

    A function that makes the object is believed: what it returns is known only when it is called.
    """
    faults = []
    for where, path, wanted in _components(config):
        try:
            found = resolve(path)
        except ValueError:  # said already, with the arguments
            continue
        lacking = [name for name in wanted if not hasattr(found, name)]
        if inspect.isclass(found) and lacking:
            faults.append(
                f"{where}.module: {path} has no {', '.join(lacking)}; config/README.md shows what "
                "a class of your own must have"
            )
        elif inspect.isclass(found) and where.startswith("networks.") and not _is_module(found):
            faults.append(f"{where}.module: {path} is no torch.nn.Module; let it be one")
    return faults


def _components(config: Config) -> Iterator[tuple[str, str, list[str]]]:
    """(section, dotted path, methods) of everything that a person may write."""
    yield "dataset", config.dataset.module, ["__len__", "__getitem__"]
    for name, network in config.networks.items():
        yield f"networks.{name}", network.module, _methods(Network)
    if config.objective.module is not None:
        yield "objective", config.objective.module, _methods(kind_of(config).objective)
    yield "save", config.save.module, _methods(Saver)
    if config.sample is not None:
        yield "sample", config.sample.module, _methods(Sampler)


def _methods(protocol: type) -> list[str]:
    return [name for name, value in vars(protocol).items() if name[0] != "_" and callable(value)]


def _is_module(found: type) -> bool:
    return issubclass(found, nn.Module)
