"""Changes of weights as products of two small matrices, and how much of them such a product keeps.

The best product of rank r in the Frobenius norm is that of the r greatest singular values (Eckart
and Young 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_WHOLE = 512  # of a smaller matrix all singular values are computed
_SPARE = 16  # singular values beyond the rank that a randomized decomposition computes


@dataclass(frozen=True)
class Factors:
    """A change of a weight, `up` (out, rank) @ `down` (rank, in * kernel), float32."""

    up: Tensor
    down: Tensor
    shape: tuple[int, ...]  # of the change: (out, in[, k, k])

    @property
    def rank(self) -> int:
        """The number of rows of `down`."""
        return self.down.shape[0]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many singular values of a layer are kept: the fewest that any of these allows.

    Args:
        rank: at most so many.
        energy: as many as hold this part of the sum of all squares, 0 to 1.
        threshold: those of at least this part of the greatest, 0 to 1.
    """

    rank: int | None = None
    energy: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank: {self.rank} is not a rank; it must be at least 1")
        for name, value in (("energy", self.energy), ("threshold", self.threshold)):
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}: {value} is no part of a whole; give one as 0.95")

    def count(self, values: Tensor, squares: float) -> int:
        """How many of the singular `values`, greatest first, are kept; at least one.

        `squares` is the sum of the squares of all there are, also of those not in `values`.
        """
        counts = [len(values)]
        if self.rank is not None:
            counts.append(self.rank)
        if self.energy is not None:
            lacking = values.square().cumsum(0) < self.energy * squares * (1 - 1e-6)
            counts.append(int(lacking.sum()) + 1)
        if self.threshold is not None:
            counts.append(int((values >= self.threshold * values[0]).sum()))
        return max(1, min(counts))


@dataclass
class Errors:
    """What was lost of each layer's change, and of all together, in the Frobenius norm."""

    lost: dict[str, float] = field(default_factory=dict)  # squares
    whole: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, lost: float, whole: float) -> None:
        """Note the squared norms of a layer's lost part and of its whole change."""
        self.lost[name], self.whole[name] = max(lost, 0.0), whole

    @property
    def total(self) -> float:
        """Relative error over all layers."""
        whole = sum(self.whole.values())
        return (sum(self.lost.values()) / whole) ** 0.5 if whole else 0.0

    def worst(self) -> tuple[str, float]:
        """The layer with the greatest relative error, and that."""
        errors = {n: (self.lost[n] / w) ** 0.5 for n, w in self.whole.items() if w}
        return max(errors.items(), key=lambda item: item[1], default=("", 0.0))

    def describe(self) -> str:
        """The relative errors in words."""
        name, error = self.worst()
        if not name:
            return "nothing is changed by it"
        return f"relative error {self.total:.2e}; the worst layer has {error:.2e} ({name})"


def join(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """The sum of changes with weights, exactly: their ranks add up.

    Raises:
        ValueError: they are for layers of other sizes.
    """
    shapes = {part.shape for _, part in parts}
    if len(shapes) > 1:
        raise ValueError(f"its changes are for weights of {' and '.join(map(str, shapes))}")
    return Factors(
        torch.cat([weight * part.up for weight, part in parts], dim=1),
        torch.cat([part.down for _, part in parts]),
        parts[0][1].shape,
    )


def shorten(factors: Factors, limits: Limits) -> tuple[Factors, float, float]:
    """The best product of fewer ranks; with it the squared norms of what is lost and of the whole.

    The singular values are exact, by the QR decompositions of both factors. A product that has no
    more ranks than it may keep is returned as it is.
    """
    left, upper = torch.linalg.qr(factors.up.double())
    right, lower = torch.linalg.qr(factors.down.double().T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    whole = float(values.square().sum())
    count = limits.count(values, whole)
    if count == len(values) and factors.rank <= (limits.rank or factors.rank):
        return factors, 0.0, whole
    root = values[:count].sqrt()
    up, down = (left @ u[:, :count]) * root, root[:, None] * (v[:count] @ right.T)
    lost = float(values[count:].square().sum())
    return Factors(up.float(), down.float(), factors.shape), lost, whole


def decompose(change: Tensor, limits: Limits, *, exact: bool = False) -> tuple[Factors, float]:
    """The best product for a change of a weight, and the squared norm of what is lost, measured.

    Of a large matrix that is to have a small rank only some singular values are computed, by random
    projections with power iterations (Halko et al. 2011, arXiv:0909.4061); `exact` computes all.
    """
    matrix = change.float().flatten(1)
    smaller = min(matrix.shape)
    wanted = smaller if limits.rank is None else min(limits.rank, smaller)
    if exact or smaller <= _WHOLE or 4 * (wanted + _SPARE) > smaller:
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng([matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, values, columns = torch.svd_lowrank(matrix, q=wanted + _SPARE, niter=4)
            v = columns.T
    count = limits.count(values, float(matrix.square().sum()))
    root = values[:count].sqrt()
    up, down = u[:, :count] * root, root[:, None] * v[:count]
    lost = float((matrix - up @ down).square().sum())
    return Factors(up, down, tuple(change.shape)), lost
