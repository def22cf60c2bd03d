"""What would lower a run's peak memory, by how much, what costs nothing first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch.nn import Parameter

from modules.checkpointing import as_key
from modules.fused_backward import fused_backward_faults
from modules.memory import GIB, Estimate, RunMemory
from modules.optimizer_memory import measure_optimizer
from modules.run_parts import RunParts
from modules.sections import Config, NetworkConfig

WORTH = 0.05 * GIB
"""What saves less is not named."""
_EIGHT_BIT = {
    "torch.optim.AdamW": "bitsandbytes.optim.AdamW8bit",
    "torch.optim.Adam": "bitsandbytes.optim.Adam8bit",
}

Rows = Mapping[tuple[str, bool | tuple[str, ...]], Estimate]
Reload = Callable[[Config], RunParts]


@dataclass(frozen=True)
class Advice:
    """A change of the config, the bytes it saves, and what else it does."""

    change: str
    saves: Callable[[], float]
    cost: str


def advise(memory: RunMemory, rows: Rows, reload: Reload) -> list[str]:
    """What would lower the peak, one line each; each saving is by itself."""
    lines = []
    for advice in find_advice(memory, rows, reload):
        try:
            saved = advice.saves()
        except ValueError:  # the changed run would be no valid one
            continue
        if saved >= WORTH:
            lines.append(f"{advice.change}: {saved / GIB:.1f} GiB less ({advice.cost})")
    return lines


def find_advice(memory: RunMemory, rows: Rows, reload: Reload) -> Iterator[Advice]:
    """All that applies to a run: what is free, then what costs time, then what trains otherwise."""
    config = memory.config
    train, batch = config.train, config.train.batch_size
    checkpointed = as_key(train.gradient_checkpointing)
    own = rows[train.mixed_precision, checkpointed]

    def saved(find: Callable[[], Estimate], size: int = batch) -> Callable[[], float]:
        return lambda: own.peak(batch) - find().peak(size)

    if train.mixed_precision == "no":
        low = rows["bf16", checkpointed]
        yield Advice("train.mixed_precision: bf16", saved(lambda: low), "faster")
    if memory.could_cache_latents:
        cached = partial(_estimate, config, reload, cached=True)
        change = "cached latents (preprocess/latent.py)"
        yield Advice(change, saved(cached), "faster; images are not augmented")
    if own.sampling:
        change, cost = "smaller images in sample", "at most; nothing of training changes"
        yield Advice(change, saved(lambda: replace(own, sampling=0)), cost)
    if path := _EIGHT_BIT.get(config.optimizer.module):
        smaller = partial(_with_optimizer, own, path, memory.trained)
        yield Advice(f"optimizer.module: {path}", saved(smaller), "pip install bitsandbytes")
    if checkpointed is not True:
        again = rows[train.mixed_precision, True]
        change = "train.gradient_checkpointing: true"
        yield Advice(change, saved(lambda: again), "about a third more time")
    if config.model.quantize is None and not config.model.trainable:
        change, cost = "model.quantize: int8", "frozen weights are rounded; a little slower"
        rounded = replace(own, weights=own.weights - own.rounding)
        yield Advice(change, saved(lambda: rounded), cost)
    if not (config.model.offload_blocks or config.model.trainable):
        change, cost = f"model.offload_blocks: {memory.blocks}", "slower: they come in each pass"
        resting = replace(own, weights=own.weights - own.resting)
        yield Advice(change, saved(lambda: resting), cost)
    fused = with_fused_backward(config)
    if fused is not None:
        change, cost = (
            "optimizer.fused_backward: true",
            "train.max_grad_norm: 0, nothing is clipped",
        )
        yield Advice(change, saved(partial(_estimate, fused, reload)), cost)
    least = train.minibatch_repeat
    if batch > least and not config.optimizer.fused_backward:
        steps = train.gradient_accumulation_steps * batch // least
        change = f"train.batch_size: {least} with gradient_accumulation_steps: {steps}"
        yield Advice(change, saved(lambda: _accumulating(own), least), "more time")
    if config.ema:
        yield Advice("no ema", saved(lambda: replace(own, average=0)), "no average of the weights")
    yield from _smaller_training(config, own, reload, saved)


def _smaller_training(
    config: Config, own: Estimate, reload: Reload, saved: Callable[..., Callable[[], float]]
) -> Iterator[Advice]:
    """What trains less than the config asks for."""
    frozen = without_text(config)
    if frozen is not None:
        find = partial(_estimate, frozen, reload)
        yield Advice("text encoders not trained", saved(find), "they stay as they are")
    if config.model.trainable and "unet" in " ".join(config.model.trainable):
        find = partial(_estimate, with_lora(config), reload)
        yield Advice("a LoRA of rank 16 in place of the base", saved(find), "learns less")
    elif any("rank" in n.args for n in config.networks.values() if n.train):
        yield Advice("half the rank", saved(lambda: _halved(own)), "learns less")


def with_fused_backward(config: Config) -> Config | None:
    """The config with steps within the backward pass; None where it can't be, or is of no use."""
    if config.optimizer.fused_backward or not config.model.trainable:
        return None
    optimizer = replace(config.optimizer, fused_backward=True)
    train = replace(config.train, max_grad_norm=0.0)
    changed = replace(config, optimizer=optimizer, train=train)
    return None if fused_backward_faults(changed) else changed


def without_text(config: Config) -> Config | None:
    """The config with text encoders frozen; None where they are, or where nothing would remain."""
    own = list(config.model.trainable)
    trainable = [pattern for pattern in own if not pattern.startswith("text_encoders")]
    networks, changed = {}, trainable != own
    for name, network in config.networks.items():
        targets = network.args.get("targets")
        kept = [t for t in targets or () if not t.startswith("text_encoders")]
        if targets and network.train and kept and kept != list(targets):
            changed, args = True, {**network.args, "targets": kept}
            rate = _rate_without_text(network.learning_rate)
            network = replace(network, args=args, learning_rate=rate)
        networks[name] = network
    trains = trainable or any(network.train for network in networks.values())
    if not changed or not trains:
        return None
    model = replace(config.model, trainable=trainable)
    train = replace(config.train, learning_rate=_rate_without_text(config.train.learning_rate))
    return replace(config, model=model, networks=networks, train=train)


def _rate_without_text(rate: Any) -> Any:
    if not isinstance(rate, Mapping):
        return rate
    return {key: value for key, value in rate.items() if not key.startswith("text_encoders")}


def with_lora(config: Config) -> Config:
    """The config with a LoRA of rank 16 in place of trained weights of the base."""
    parts = sorted({pattern.partition(".")[0] for pattern in config.model.trainable})
    args: dict[str, Any] = {"rank": 16, "targets": parts}
    lora = NetworkConfig(module="networks.lora.LoRA", args=args)
    model = replace(config.model, trainable=[])
    train = replace(config.train, learning_rate=1e-4)
    networks = {**config.networks, "lora in place": lora}
    return replace(config, model=model, networks=networks, train=train)


def _estimate(config: Config, reload: Reload, *, cached: bool = False) -> Estimate:
    memory = RunMemory(config, reload(config))
    if cached:
        memory.use_cached_latents()
    train = config.train
    return memory.estimate(train.mixed_precision, checkpointing=train.gradient_checkpointing)


def _with_optimizer(own: Estimate, path: str, trained: Sequence[Parameter]) -> Estimate:
    state, more = measure_optimizer(path, {}, trained)
    return replace(own, state=state, optimizer_step=more)


def _accumulating(own: Estimate) -> Estimate:
    """The estimate where gradients are there before a batch; its own are then added and go."""
    if own.keeps_gradients:
        return own
    return replace(own, keeps_gradients=True, step=own.step.without(own.gradients))


def _halved(own: Estimate) -> Estimate:
    return replace(
        own,
        weights=own.weights - own.trained // 2,
        average=own.average // 2,
        state=own.state // 2,
    )
