"""What ways of computing an adapter's layer cost, in multiplications and numbers that are moved."""

from __future__ import annotations


def merging_pays(rows: int, inputs: int, outputs: int) -> bool:
    """Whether adding a change to the weight costs less than computing beside it.

    Beside it each pass makes a product of the rank's size more, and goes once more over all
    `rows` of what is computed: rows * outputs numbers forward, rows * inputs backward. Merged, the
    change is made in the weight's size, inputs * outputs, in both passes. The rank is a factor of
    all of them. After RunLoRA (Cherniuk et al. 2023, arXiv:2312.03415).
    """
    return rows * (inputs + outputs) > 2 * inputs * outputs
