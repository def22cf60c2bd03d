"""Products of small matrices: limits, errors, and what stays as it is."""

from __future__ import annotations

import pytest
import torch

from tools.low_rank import Errors, Factors, Limits, decompose, join, shorten

VALUES = torch.tensor([4.0, 2.0, 1.0, 0.0])
SQUARES = 21.0


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        (Limits(), 4),
        (Limits(rank=2), 2),
        (Limits(rank=9), 4),
        (Limits(energy=16 / 21), 1),
        (Limits(energy=0.77), 2),
        (Limits(energy=1.0), 3),
        (Limits(threshold=0.5), 2),
        (Limits(threshold=0.51), 1),
        (Limits(rank=2, energy=1.0, threshold=0.1), 2),
    ],
)
def test_the_fewest_that_any_limit_allows_are_kept(limits, count):
    assert limits.count(VALUES, SQUARES) == count


def test_a_layer_without_a_change_keeps_one_rank():
    limits = Limits(energy=0.9)
    assert limits.count(torch.zeros(3), 0.0) == 1
    kept, lost = decompose(torch.zeros(4, 3), limits)
    assert (kept.rank, lost) == (1, 0.0)
    errors = Errors()
    errors.note("a", lost, 0.0)
    assert errors.describe() == "nothing is changed by it"


def factors(rank: int, *, outputs: int = 6, inputs: int = 5) -> Factors:
    generator = torch.Generator().manual_seed(rank)
    up = torch.randn(outputs, rank, generator=generator)
    return Factors(up, torch.randn(rank, inputs, generator=generator), (outputs, inputs))


def test_more_ranks_than_a_layer_has_sizes_are_brought_down():
    """Joined, ranks may be more than the weight's; a limit between the two holds, exactly."""
    whole = join([(0.5, factors(4)), (-2.0, factors(3))])
    expected = whole.up @ whole.down
    same, lost, _ = shorten(whole, Limits(rank=7))
    assert same is whole
    assert lost == 0
    fewer, lost, squares = shorten(whole, Limits(rank=6))
    assert fewer.rank == 5
    assert lost == 0
    assert squares == pytest.approx(float(expected.square().sum()), rel=1e-5)
    torch.testing.assert_close(fewer.up @ fewer.down, expected)


def test_sums_are_of_one_shape():
    with pytest.raises(ValueError, match=r"are for weights of .*\(6, 5\)"):
        join([(1.0, factors(2)), (1.0, factors(2, inputs=4))])


def test_errors_are_relative_to_what_there_was():
    errors = Errors()
    errors.note("small", 0.25, 1.0)
    errors.note("large", 0.75, 99.0)
    assert errors.total == pytest.approx(0.1)
    assert errors.worst() == ("small", 0.5)
    assert errors.describe() == "relative error 1.00e-01; the worst layer has 5.00e-01 (small)"
