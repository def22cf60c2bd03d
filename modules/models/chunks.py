"""Long prompts in chunks of a text encoder's length, as AUTOMATIC1111 and ComfyUI cut them."""

from __future__ import annotations

from collections.abc import Sequence

COMMA_BACKTRACK = 20
"""A word group is moved to the next chunk whole if its comma is at most so many tokens back."""


def split_chunks(ids: Sequence[int], *, length: int, comma: int | None) -> list[list[int]]:
    """Split a prompt's token ids, without start and end, into chunks of at most `length`.

    Where a chunk is full amid a group between commas (`comma` is their id), it ends behind its
    last comma, if that is near; an empty prompt is one empty chunk.
    """
    chunks: list[list[int]] = []
    current: list[int] = []
    last_comma = -1  # its place in the current chunk
    for token in ids:
        if len(current) == length:
            start = last_comma + 1
            near = last_comma >= 0 and length - last_comma <= COMMA_BACKTRACK
            rest = current[start:] if near and token != comma else []
            chunks.append(current[: length - len(rest)])
            current, last_comma = rest, -1
        if token == comma:
            last_comma = len(current)
        current.append(token)
    return [*chunks, current]
