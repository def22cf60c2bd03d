"""Finding parts of a model by patterns of their module paths: parameters, layers for adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn

from modules.models.patterns import matches, no_match

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel
    from modules.models.model import Model


def parameters_matching(model: Model, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
    """Parameters of the base by module path, where a pattern matches.

    Raises:
        ValueError: a pattern matches nothing; names it and what the model has.
    """
    named = {
        f"{component}.{name}": parameter
        for component, module in model.components().items()
        for name, parameter in module.named_parameters()
    }
    chosen: set[str] = set()
    for pattern in patterns:
        found = {path for path in named if matches(path, pattern)}
        if not found:
            raise ValueError(no_match(pattern, module_paths(model)))
        _check_reached(model, pattern, found)
        chosen |= found
    return {path: named[path] for path in named if path in chosen and not is_idle(model, path)}


def adapter_layers(
    model: DiffusionModel, patterns: Iterable[str], *, conv: bool
) -> dict[str, nn.Module]:
    """Linear and convolution layers for an adapter, by module path, in the model's order.

    Taken are the family's transformer layers that a pattern covers, with `conv` also those of
    its convolution blocks, and single layers whose own name a pattern ends in.

    Raises:
        ValueError: a pattern covers no such layer; names it and what the model has.
    """
    patterns = list(patterns)
    found: dict[str, nn.Module] = {}
    used: dict[str, set[str]] = {pattern: set() for pattern in patterns}
    for component, module in model.components().items():
        covered = set(_covered_paths(model, component, module, conv=conv))
        for name, layer in module.named_modules():
            path, own = f"{component}.{name}", f".{name.rpartition('.')[2]}"
            if not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            hits = {p for p in patterns if name in covered and matches(path, p)}
            hits |= {p for p in patterns if p.endswith(own) and fnmatchcase(path, p)}
            if hits:
                found[path] = layer
            for pattern in hits:
                used[pattern].add(path)
    for pattern, paths in used.items():
        if paths:
            _check_reached(model, pattern, paths)
        elif any(matches(path, pattern) for path in module_paths(model)):
            raise ValueError(
                f"{pattern!r} has no layer that this network adapts by default; name a single "
                "layer in full" + ("" if conv else ", or set conv_rank for convolution blocks")
            )
        else:
            raise ValueError(no_match(pattern, module_paths(model)))
    return {path: layer for path, layer in found.items() if not is_idle(model, path)}


def module_paths(model: Model) -> Iterator[str]:
    """Paths of all modules of all components."""
    for component, module in model.components().items():
        yield component
        yield from (f"{component}.{name}" for name, _ in module.named_modules() if name)


def is_idle(model: Model, path: str) -> bool:
    """Whether a part of the model has no effect on what the denoiser gets, and so can't learn."""
    return any(matches(path, idle) for idle in model.idle_paths())


def _check_reached(model: Model, pattern: str, paths: Iterable[str]) -> None:
    if all(is_idle(model, path) for path in paths):
        raise ValueError(
            f"{pattern!r} names only parts without effect on the images, which can't be trained: "
            f"this model doesn't use {', '.join(model.idle_paths())}"
        )


def _covered_paths(
    model: DiffusionModel, component: str, module: nn.Module, *, conv: bool
) -> Iterator[str]:
    kind = component.partition(".")[0]
    classes = model.adapter_targets.get(kind, ())
    conv_classes = model.conv_targets.get(kind, ()) if conv else ()
    for name, block in module.named_modules():
        everything = type(block).__name__ in conv_classes
        if not everything and type(block).__name__ not in classes:
            continue
        for inner, layer in block.named_modules(prefix=name):
            small = not isinstance(layer, nn.Conv2d) or layer.kernel_size == (1, 1)
            if everything or small:
                yield inner
