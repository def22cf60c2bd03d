"""Blocks of a frozen denoiser whose weights rest in the machine's memory, not the card's.

They come to the card block by block, in the forward pass and again in the backward pass, the next
one while this one computes. A block's weights have one storage on the card, which is emptied and
filled again, so that what autograd has kept of them (a transposed view, say) is good again when
it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modules.resting_block import RestingBlock, size_of

logger = logging.getLogger(__name__)

_MIB = 2**20

Moment = tuple[str, str]
"""The pass in which a block is entered, and its path."""


def find_blocks(denoiser: Any) -> dict[str, nn.Module]:
    """The blocks of a denoiser by path: the innermost of what diffusers keeps on one device."""
    kinds = set(getattr(denoiser, "_no_split_modules", None) or ())
    named = denoiser.named_modules() if kinds else ()
    found = {n: m for n, m in named if type(m).__name__ in kinds}
    outer = {n for n in found for inner in found if inner.startswith(f"{n}.")}
    return {name: block for name, block in found.items() if name not in outer}


def choose_blocks(denoiser: Any, count: int | None) -> dict[str, nn.Module]:
    """The `count` largest blocks of a denoiser by path, or all of them.

    Raises:
        ValueError: it has fewer.
    """
    blocks = find_blocks(denoiser)
    if count is not None and count > len(blocks):
        raise ValueError(
            f"{count} blocks, but this {type(denoiser).__name__} has {len(blocks)}; give at most "
            "that number"
        )
    largest = sorted(blocks, key=lambda name: -size_of(blocks[name]))
    return {name: blocks[name] for name in largest[:count]}


def spared_bytes(denoiser: Any, count: int | None) -> int:
    """Bytes of a card that `count` blocks, or all, leave free: theirs but for two at a time."""
    blocks = list(choose_blocks(denoiser, count).values())
    own = sum(parameter.nbytes for block in blocks for parameter in block.parameters())
    return max(0, own - sum(size_of(block) for block in blocks[:2]))


def offload_blocks(denoiser: Any, count: int, *, device: torch.device) -> BlockOffload:
    """Let the largest blocks of a frozen denoiser rest in the machine's memory."""
    assert not any(p.requires_grad for p in denoiser.parameters()), "trained weights stay"
    chosen = choose_blocks(denoiser, count)
    resting = {name: RestingBlock(block, device) for name, block in chosen.items()}
    if device.type == "cpu":
        logger.warning(
            "model.offload_blocks has no use without a card: the weights are copied within the "
            "machine's memory"
        )
    total = sum(each.size for each in resting.values())
    logger.info(
        "model.offload_blocks: %d blocks, %.1f MiB of weights, rest in the machine's memory",
        *(count, total / _MIB),
    )
    return BlockOffload(resting, device)


class BlockOffload:
    """Brings each block's weights when it is entered, and the following one's meanwhile.

    Which one follows is known from the last time. At most two blocks are on the device, but where
    checkpoints hold several of them.
    """

    def __init__(self, blocks: Mapping[str, RestingBlock], device: torch.device) -> None:
        self.blocks = dict(blocks)
        self.transfers = 0  # so far
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: dict[str, Any] = {}  # those on the device: the event of their copy
        self._open: set[str] = set()  # those whose backward pass is under way
        self._following: dict[Moment, Moment] = {}
        self._last: Moment | None = None
        for name, resting in self.blocks.items():
            # What is compiled is the block between them: they act on memory, not on values.
            before = torch.compiler.disable(partial(self._before, name))
            behind = torch.compiler.disable(partial(self._behind, name))
            resting.block.register_forward_pre_hook(before, with_kwargs=True)
            resting.block.register_forward_hook(behind, with_kwargs=True)

    @property
    def resident_bytes(self) -> int:
        """What all blocks take of the device now."""
        return sum(each.resident_bytes for each in self.blocks.values())

    def _before(self, name: str, _block: nn.Module, args: Any, kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() == -1:  # no backward pass is under way
            self._open.clear()
            self._enter(("forward", name))
        elif name not in self._open:
            self._enter(("again", name))
        if not torch.is_grad_enabled():
            return None
        values = [*args, *kwargs.values()]
        places = [n for n, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]
        if places:
            close = partial(self._close, name)
            passed = _Closing.apply(close, *(values[place] for place in places))
            for place, value in zip(places, passed, strict=True):
                values[place] = value
        given = dict(zip(kwargs, values[len(args) :], strict=True))
        return tuple(values[: len(args)]), given

    def _behind(self, name: str, _block: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        if output.requires_grad:
            values = [*args, *kwargs.values()]
            closes = any(isinstance(v, Tensor) and v.requires_grad for v in values)
            output.register_hook(partial(self._begin, name, closes))
        self._leave(name)

    def _begin(self, name: str, closes: bool, _grad: Tensor) -> None:
        """The backward pass of a block begins."""
        self._enter(("backward", name))
        self._open.add(name)
        if not closes:  # no gradient leaves it: the end of all is its end
            engine: Any = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.queue_callback(partial(self._close, name))

    def _close(self, name: str) -> None:
        """The backward pass of a block has ended."""
        self._open.discard(name)
        self._leave(name)

    def _enter(self, moment: Moment) -> None:
        if self._last is not None:
            self._following[self._last] = moment
        self._last, name = moment, moment[1]
        following = self._following.get(moment)
        wanted = {name} if following is None else {name, following[1]}
        for other in [n for n in self._coming if n not in wanted | self._open]:
            self._rest(other)
        self._fetch(name)
        self._await(name)
        self.blocks[name].use()
        if following is not None:
            self._fetch(following[1])

    def _leave(self, name: str) -> None:
        """Let a block rest, unless it comes next again."""
        following = None if self._last is None else self._following.get(self._last)
        if name not in self._open and (following is None or following[1] != name):
            self._rest(name)

    def _fetch(self, name: str) -> None:
        """Begin to bring a block's weights, behind all that the device has to do up to now."""
        if name in self._coming:
            return
        resting, event = self.blocks[name], None
        resting.make_room()
        if self._stream is None:
            resting.fetch()
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            with torch.cuda.stream(self._stream):
                resting.fetch()
                event = self._stream.record_event()
        self.transfers += 1
        self._coming[name] = event

    def _await(self, name: str) -> None:
        if self._stream is not None and (event := self._coming[name]) is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(event)

    def _rest(self, name: str) -> None:
        """Give a block's memory back, once it has been copied to and computed with."""
        if name in self._coming:
            self._await(name)
            del self._coming[name]
            self.blocks[name].rest()


class _Closing(torch.autograd.Function):
    """The inputs of a block as they are; tells when the gradients of all of them are there."""

    @staticmethod
    def forward(ctx: Any, close: Callable[[], None], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.close = close
        ctx.set_materialize_grads(False)
        return inputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        ctx.close()
        return None, *grads
