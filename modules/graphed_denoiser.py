"""The denoiser's passes as CUDA graphs: a batch of a known shape is one launch each way.

Small batches wait for the host, which launches thousands of kernels a step; a graph is launched as
one (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from modules.sections import Config

logger = logging.getLogger(__name__)

_KEY = "train.cuda_graphs"
_SEEN = 2
"""How often a shape comes before it is worth the work of capturing it."""

Replay = Callable[..., Tensor]
Capture = Callable[[nn.Module, tuple[Tensor, ...]], Replay]


def graph_faults(config: Config) -> list[str]:
    """What of a config, or of this machine, doesn't go with CUDA graphs; one line each."""
    train = config.train
    if not train.cuda_graphs:
        return []
    if not torch.cuda.is_available():
        return [f"{_KEY}: needs a card with CUDA and there is none here; write {_KEY}: 0"]
    changing = {
        "model.offload_blocks": bool(config.model.offload_blocks),
        "train.tome_ratio": bool(train.tome_ratio),
        "train.gradient_checkpointing": bool(train.gradient_checkpointing),
        "optimizer.fused_backward": config.optimizer.fused_backward,
    }
    for name, network in config.networks.items():
        changing[f"networks.{name}.args.module_dropout"] = bool(network.args.get("module_dropout"))
    faults = [
        f"{_KEY}: a graph repeats the same kernels in the same memory, which {key} changes from "
        f"step to step; take out the one or the other"
        for key, is_set in changing.items()
        if is_set
    ]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        faults.append(f"{_KEY}: is for one process; launch one, or write {_KEY}: 0")
    return faults


class GraphedDenoiser:
    """Calls a denoiser; from the second batch of a shape on by graphs of both passes.

    Graphs share one pool of memory. Of what is called without gradients (samples, validation), and
    of shapes beyond the first `most` that came often enough, there are none; a shape that can't be
    captured is computed as ever, and the log says so.

    Args:
        denoiser: a model of diffusers whose output has a `sample`.
        networks: what works inside of it, with parameters of its own.
        most: graphs that are kept.
        capture: makes the graphs of a module's passes; torch's own.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        networks: Sequence[Any],
        *,
        most: int,
        capture: Capture | None = None,
    ):
        self._denoiser = denoiser
        self._networks = list(networks)
        self._most = most
        self._capture = capture if capture is not None else _SharedPool().capture
        self._graphs: dict[tuple[Any, ...], Replay] = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._failed: set[tuple[Any, ...]] = set()
        self._is_full_said = False

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        """The denoiser's prediction, (B, C, h, w), for its own arguments."""
        tensors, tree = _flat(args, options)
        if not torch.is_grad_enabled():
            return _Passes(self._denoiser, tree)(*tensors)
        key = _key(tensors, tree)
        replay = self._graphs.get(key)
        if replay is None and self._wants_graph(key):
            replay = self._try_capture(key, tensors, tree)
        if replay is None:
            return _Passes(self._denoiser, tree)(*tensors)
        self._own_gradients()
        return replay(*tensors)

    @property
    def count(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def _wants_graph(self, key: tuple[Any, ...]) -> bool:
        self._seen[key] += 1
        if key in self._failed or self._seen[key] < _SEEN:
            return False
        if len(self._graphs) < self._most:
            return True
        if not self._is_full_said:
            self._is_full_said = True
            logger.info(
                "%s: %d graphs are kept; batches of further shapes are computed without",
                _KEY,
                self._most,
            )
        return False

    def _try_capture(
        self, key: tuple[Any, ...], tensors: Sequence[Tensor], tree: TreeSpec
    ) -> Replay | None:
        samples = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
        passes = _Passes(self._denoiser, tree, self._networks)
        shape = "x".join(str(size) for size in tensors[0].shape)
        try:
            with _same_numbers(tensors[0].device), _no_cast_cache(tensors[0].device.type):
                replay = self._capture(passes, samples)
        except RuntimeError as error:  # of torch, or of whatever kernel can't be captured
            self._failed.add(key)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning(
                "%s: batches of %s can't be captured (%s); they are computed without a graph",
                _KEY,
                shape,
                reason,
            )
            return None
        self._graphs[key] = replay
        logger.info("%s: batches of %s have a graph, number %d", _KEY, shape, len(self._graphs))
        return replay

    def _own_gradients(self) -> None:
        """Copy gradients of batches before this one out of the graphs' memory.

        autograd takes a graph's own tensor as the gradient; the next replay writes into it.
        """
        for owner in (self._denoiser, *self._networks):
            for parameter in owner.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()


class _Passes(nn.Module):
    """The denoiser as a function of tensors alone; parameters of networks are among its own."""

    def __init__(self, denoiser: nn.Module, tree: TreeSpec, networks: Sequence[Any] = ()):
        super().__init__()
        self.denoiser = denoiser
        self.networks = nn.ModuleList(networks)
        self._tree = tree

    def forward(self, *tensors: Tensor) -> Tensor:
        args, options = tree_unflatten(list(tensors), self._tree)
        return self.denoiser(*args, **options).sample  # type: ignore[no-any-return]


class _SharedPool:
    """Captures with torch's own function, all graphs in one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, passes: nn.Module, samples: tuple[Tensor, ...]) -> Replay:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return torch.cuda.make_graphed_callables(  # type: ignore[return-value]
            passes, samples, allow_unused_input=True, pool=self._pool
        )


def _flat(args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[list[Tensor], TreeSpec]:
    given = {name: value for name, value in options.items() if value is not None}
    tensors, tree = tree_flatten((args, given))
    assert all(isinstance(tensor, Tensor) for tensor in tensors), "a denoiser's inputs are tensors"
    return tensors, tree


def _key(tensors: Sequence[Tensor], tree: TreeSpec) -> tuple[Any, ...]:
    told = [(tuple(t.shape), t.dtype, t.requires_grad) for t in tensors]
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    return (*told, str(tree), autocast)


@contextlib.contextmanager
def _same_numbers(device: torch.device) -> Iterator[None]:
    """Let random numbers go on as if nothing had been drawn."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _no_cast_cache(device: str) -> contextlib.AbstractContextManager:
    """Mixed precision as it is, without its cache of casts, which a graph could not fill anew."""
    if not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)
