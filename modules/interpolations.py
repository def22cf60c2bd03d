"""How large a config becomes when its interpolations are written out, found before that is done."""

from __future__ import annotations

import re
from typing import Any

from modules.yaml_text import KeyPath

MOST = 1_000_000
"""Characters and values of a whole config; the largest real ones have some thousands."""

_GOAL = re.compile(r"\$\{(?:[^${}:]*:)*([^${}]*)")


def is_too_large(values: Any) -> bool:
    """Say whether interpolations of interpolations make more of `values` than memory should hold.

    Sizes are added up along what each `${key.path}` names, once for each key, and nothing is
    written out. Of a path that is made by an interpolation itself the known beginning counts.

    Raises:
        RecursionError: a chain of interpolations has hundreds of links.
    """
    return _Sizes(values).of(values, ()) > MOST


class _Sizes:
    def __init__(self, root: Any):
        self._root = root
        self._known: dict[KeyPath, int] = {}

    def of(self, value: Any, path: KeyPath) -> int:
        if path in self._known:
            return self._known[path]
        self._known[path] = 0  # what leads back to itself is refused when it is resolved
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            size = 1 + sum(self.of(item, (*path, str(key))) for key, item in pairs)
        elif isinstance(value, str):
            goals = (goal for text in _GOAL.findall(value) for goal in text.split(","))
            size = 1 + len(value) + sum(self._of_goal(goal.strip(), path) for goal in goals)
        else:
            size = 1
        self._known[path] = size
        return size

    def _of_goal(self, goal: str, path: KeyPath) -> int:
        up = len(goal) - len(goal.lstrip("."))  # `.key` is a neighbour, `..key` one of the parent
        wanted = path[: max(len(path) - up, 0)] if up else ()
        found = self._root
        reached: KeyPath = ()
        for key in (*wanted, *re.findall(r"[^.\[\]]+", goal)):
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                break
            reached = (*reached, key)
        return self.of(found, reached) if reached else 0
