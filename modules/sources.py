"""Where a run's batches come from, as the config says, and who counts them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.buckets import BucketBatchSampler
from modules.config import Config
from modules.coverage import Ledger
from modules.coverage import Plan as CoveragePlan
from modules.loading import Source, make_source
from modules.sections import DatasetConfig, PriorConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

    from modules.plan import Plan


def make_batch_sampler(
    config: Config, buckets: Sequence[Sequence[int]], *, rank: int, world_size: int
) -> BucketBatchSampler:
    """What plans the batches of the indices in buckets."""
    return BucketBatchSampler(
        buckets,
        batch_size=config.train.batch_size // config.train.minibatch_repeat,
        shuffle=config.dataset.shuffle,
        seed=config.train.seed,
        rank=rank,
        world_size=world_size,
    )


def build_source(
    config: Config,
    section: DatasetConfig | PriorConfig,
    dataset: Any,
    accelerator: Accelerator,
    *,
    buckets: Sequence[Sequence[int]],
    weight: float = 1.0,
) -> Source:
    """Batches of a dataset, of those of its indices that stand in `buckets`."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return make_source(
        dataset,
        make_batch_sampler(config, buckets, rank=rank, world_size=world_size),
        weight=weight,
        repeats=config.train.minibatch_repeat,
        num_workers=section.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def build_prior(config: Config, dataset: Any, accelerator: Accelerator) -> Source | None:
    """Batches of class images, if there are any."""
    section = config.prior
    if section is None:
        return None
    weight = section.loss_weight
    return build_source(
        config, section, dataset, accelerator, buckets=dataset.buckets, weight=weight
    )


def build_ledger(
    source: Source, plan: Plan, dataset: Any, directory: Path, accelerator: Accelerator
) -> Ledger:
    """The ledger of a dataset's images, which `source` draws."""
    planned = CoveragePlan(
        source.batch_sampler,
        images=len(dataset),
        steps_per_epoch=plan.steps_per_epoch,
        batches=plan.gradient_accumulation_steps,
    )
    names = getattr(dataset, "names", None)
    return Ledger(planned, directory, accelerator, names=names, repeats=source.repeats)
