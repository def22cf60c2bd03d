"""Kinds of numbers that a config may ask for."""

from __future__ import annotations

from typing import Annotated

from modules.schema import Minimum, Within

Count = Annotated[int, Minimum(1)]
Natural = Annotated[int, Minimum(0)]
NonNegative = Annotated[float, Minimum(0)]
Fraction = Annotated[float, Within(0, 1)]
Rate = NonNegative | dict[str, NonNegative]
