"""Where long prompts are cut."""

from __future__ import annotations

from itertools import chain

import pytest

from modules.models.chunks import split_chunks

COMMA = 9


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 10, 11])
def test_without_commas_chunks_are_full(count):
    ids = list(range(10, 10 + count))
    chunks = split_chunks(ids, length=5, comma=COMMA)
    assert list(chain(*chunks)) == ids
    assert [len(chunk) for chunk in chunks[:-1]] == [5] * (len(chunks) - 1)
    assert len(chunks) == max(1, -(-count // 5))


def test_a_group_is_moved_whole_if_its_comma_is_near():
    ids = [1, 2, COMMA, 3, 4, 5, 6]
    assert split_chunks(ids, length=5, comma=COMMA) == [[1, 2, COMMA], [3, 4, 5, 6]]
    assert split_chunks(ids, length=5, comma=None) == [[1, 2, COMMA, 3, 4], [5, 6]]


def test_a_comma_too_far_back_moves_nothing():
    ids = [1, COMMA, *[2] * 40]
    assert split_chunks(ids, length=30, comma=COMMA) == [ids[:30], ids[30:]]
    near = [*[1] * 10, COMMA, *[2] * 30]
    assert split_chunks(near, length=30, comma=COMMA) == [near[:11], near[11:]]


def test_a_comma_behind_a_full_chunk_begins_the_next():
    ids = [1, COMMA, 2, 3, COMMA, 4]
    assert split_chunks(ids, length=4, comma=COMMA) == [[1, COMMA, 2, 3], [COMMA, 4]]
