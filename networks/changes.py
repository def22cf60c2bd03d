"""Changes of a Linear layer's weight: made once in each pass, nothing of their size is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Given:
    """What a backward pass begins with."""

    weight: Tensor  # of the base, (out, in)
    rows: Tensor  # (N, in)
    output: Tensor | None  # (N, out), without bias, where it is needed
    grad: Tensor  # (N, out), of the output
    wants_rows: bool  # whether their gradient is wanted

    def of_rows(self, changed: Callable[[], Tensor]) -> Tensor | None:
        """The rows' gradient, if it is wanted, by the changed weight."""
        return self.grad @ changed() if self.wants_rows else None


class Change(Protocol):
    """What an adapter makes of a weight W (out, in), as a function of its factors."""

    is_thin: bool
    """Whether computing it beside W takes products of its rank's size only."""
    needs_output: bool
    """Whether the backward pass looks at the layer's output."""

    def weight(self, base: Tensor, *factors: Tensor) -> Tensor:
        """The changed weight, (out, in)."""
        raise TypeError

    def backward(self, given: Given, *factors: Tensor) -> tuple[Tensor | None, Gradients]:
        """Gradients of the rows, if they are wanted, and of each factor."""
        raise TypeError


class LowRank:
    """W + scale * up @ down, with down (rank, in) and up (out, rank)."""

    is_thin = True
    needs_output = False

    def __init__(self, scale: float):
        self.scale = scale

    def weight(self, base: Tensor, *factors: Tensor) -> Tensor:
        down, up = factors
        return torch.addmm(base, up, down, alpha=self.scale)

    def backward(self, given: Given, *factors: Tensor) -> tuple[Tensor | None, Gradients]:
        of_rows = given.of_rows(partial(self.weight, given.weight, *factors))
        return of_rows, self.of_factors(given.rows, given.grad, *factors)

    def of_factors(self, rows: Tensor, grad: Tensor, *factors: Tensor) -> Gradients:
        """Gradients of the factors."""
        down, up = factors
        low = rows @ down.t()
        # With beta 0 the first argument is not read: it lends its shape.
        grad_low = torch.addmm(low, grad, up, beta=0, alpha=self.scale)
        grad_up = torch.addmm(up, grad.t(), low, beta=0, alpha=self.scale)
        return grad_low.t() @ rows, grad_up


class Hadamard:
    """W + scale * (w1_a @ w1_b) * (w2_a @ w2_b), `_a` (out, rank), `_b` (rank, in)."""

    is_thin = False
    needs_output = False

    def __init__(self, scale: float):
        self.scale = scale

    def weight(self, base: Tensor, *factors: Tensor) -> Tensor:
        w1_a, w1_b, w2_a, w2_b = factors
        return torch.addcmul(base, w1_a @ w1_b, w2_a @ w2_b, value=self.scale)

    def backward(self, given: Given, *factors: Tensor) -> tuple[Tensor | None, Gradients]:
        w1_a, w1_b, w2_a, w2_b = factors
        first, second = w1_a @ w1_b, w2_a @ w2_b
        changed = partial(torch.addcmul, given.weight, first, second, value=self.scale)
        of_rows = given.of_rows(changed)
        # With beta 0 the first argument is not read: it lends its shape.
        dense = torch.addmm(first, given.grad.t(), given.rows, beta=0, alpha=self.scale)
        of_first, of_second = second.mul_(dense), first.mul_(dense)
        found = of_first @ w1_b.t(), w1_a.t() @ of_first, of_second @ w2_b.t()
        return of_rows, (*found, w2_a.t() @ of_second)


class Kronecker:
    """W + scale * kron(w1, w2), w1 (i, j), w2 (k, n); each whole or a product of two factors.

    Factors: `w1` or `w1_a` (i, rank), `w1_b` (rank, j); then `w2` or `w2_a` (k, rank), `w2_b`
    (rank, n).
    """

    is_thin = True
    needs_output = False

    def __init__(self, scale: float, *, is_first_whole: bool, is_second_whole: bool):
        self.scale = scale
        self._count = 1 if is_first_whole else 2  # of w1's factors
        self._is_second_whole = is_second_whole

    def weight(self, base: Tensor, *factors: Tensor) -> Tensor:
        first, second = _product(factors[: self._count]), _product(factors[self._count :])
        (i, j), (k, n) = first.shape, second.shape
        spread = first.view(i, 1, j, 1), second.view(1, k, 1, n)
        return torch.addcmul(base.view(i, k, j, n), *spread, value=self.scale).view_as(base)

    def backward(self, given: Given, *factors: Tensor) -> tuple[Tensor | None, Gradients]:
        of_rows = given.of_rows(partial(self.weight, given.weight, *factors))
        own, others = factors[: self._count], factors[self._count :]
        first, inner = _product(own) * self.scale, others[-1]  # what is applied to the rows first
        i, j = first.shape
        rows = given.rows.reshape(-1, inner.shape[1])  # (N * j, n)
        grad = given.grad.reshape(-1, given.grad.shape[1] // i)  # (N * i, k)
        low = (rows @ inner.t()).view(-1, j, inner.shape[0])  # (N, j, rank or k)
        high = grad if self._is_second_whole else grad @ others[0]
        high = high.view(-1, i, inner.shape[0])  # (N, i, rank or k)
        of_first = torch.tensordot(high, low, ([0, 2], [0, 2])) * self.scale
        back = torch.matmul(first.t(), high).view(-1, inner.shape[0])  # (N * j, rank or k)
        found: Gradients = (back.t() @ rows,)
        if not self._is_second_whole:
            mixed = torch.matmul(first, low).view(-1, inner.shape[0])  # (N * i, rank)
            found = (grad.t() @ mixed, *found)
        if self._count == 1:
            return of_rows, (of_first, *found)
        w1_a, w1_b = own
        return of_rows, (of_first @ w1_b.t(), w1_a.t() @ of_first, *found)


class Decomposed:
    """m * V / ||V|| where V is W with a change of low rank; no gradients pass through ||V||.

    The first factor is m: (out, 1) `by_output`, or else (1, in) (`networks/dora.py`).
    """

    is_thin = False  # the norm needs V

    def __init__(self, change: LowRank, *, by_output: bool):
        self.change = change
        self.needs_output = by_output

    def weight(self, base: Tensor, *factors: Tensor) -> Tensor:
        magnitudes, *inner = factors
        changed = self.change.weight(base, *inner)
        return changed.mul_(self._scale(changed, magnitudes))

    def backward(self, given: Given, *factors: Tensor) -> tuple[Tensor | None, Gradients]:
        magnitudes, *inner = factors
        rows, grad = given.rows, given.grad
        of_rows: Tensor | None
        changed = self.change.weight(given.weight, *inner)
        scale = self._scale(changed, magnitudes)
        # m is a factor of the output and of the rows' gradient: without it they are its gradient.
        if given.output is None:
            of_rows = grad @ changed.mul_(scale)
            products = (rows * of_rows).sum(0, keepdim=True)
            rows = rows * scale
        else:
            of_rows = given.of_rows(lambda: changed.mul_(scale))
            products = (given.output * grad).sum(0).unsqueeze(1)
            grad = grad * scale.t()
        of_magnitudes = torch.where(magnitudes == 0, 0.0, products / magnitudes)
        return of_rows, (of_magnitudes, *self.change.of_factors(rows, grad, *inner))

    def _scale(self, changed: Tensor, magnitudes: Tensor) -> Tensor:
        dim = 1 if self.needs_output else 0
        norms = torch.linalg.vector_norm(changed, dim=dim, keepdim=True)
        return magnitudes / norms.clamp_(min=torch.finfo(norms.dtype).eps)


def _product(factors: tuple[Tensor, ...]) -> Tensor:
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]
