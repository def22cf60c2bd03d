"""From a config to a trainer: checks first, then data, then weights, then the engine."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from modules.caption_lengths import MOST_COUNTED, describe_truncated
from modules.changed_settings import show_changed
from modules.checkpoint import read_progress
from modules.compilation import compile_blocks
from modules.component_checks import check_components
from modules.config import Config, to_yaml
from modules.data_findings import FILE
from modules.dataset_contents import begin_contents
from modules.engine import (
    create_accelerator,
    prepare_modules,
    set_attention,
    store_channels_last,
)
from modules.errors import explained
from modules.files import write_atomically
from modules.graphed_denoiser import GraphedDenoiser
from modules.hardware import warn_of_unfit_build
from modules.idle_settings import idle_settings
from modules.parts import (
    NoSamples,
    NoSaves,
    build_average,
    build_optimizer,
    build_saver,
    build_schedule,
)
from modules.plan import plan_run
from modules.prediction_check import check_prediction
from modules.preparation import prepare
from modules.rehearsal import is_rehearsed, rehearse
from modules.reloading import load_again
from modules.requests import Requests
from modules.resume import describe_end, find_state, go_on, is_finished
from modules.run_description import describe_run
from modules.run_folder import check_space, first_save, share_run_folder
from modules.run_identity import Identity, as_begun, check_config, check_identity, identify
from modules.run_kinds import kind_of, with_sampler
from modules.run_metadata import person_spec
from modules.run_parts import load_parts
from modules.schedule import Every
from modules.sources import build_ledger, build_prior, build_source
from modules.state_keeper import StateKeeper
from modules.text_memory import remember_text
from modules.text_stop import TextStop, text_parameters
from modules.token_merging import merge_tokens
from modules.trackers import start_trackers
from modules.trial import Trial, try_out
from modules.validation_parts import build_validation, find_held_out

if TYPE_CHECKING:
    from accelerate import Accelerator

    from modules.trainer import Trainer

logger = logging.getLogger(__name__)


def assemble(config: Config, *, check: bool | Trial = False) -> Trainer | None:
    """Build the trainer of a config; with `check` only show what it would do.

    Raises:
        ConfigError: an argument, the dataset or the model does not fit; nothing was written then.
    """
    config = with_sampler(config)
    check_components(config)
    for line in idle_settings(config):
        logger.warning("%s", line)
    state = find_state(config)
    if state is not None and check_config(state, config) and is_finished(state):
        logger.info("nothing left to do: %s", describe_end(state))
        return None
    warn_of_unfit_build()
    if not check:
        accelerator = create_accelerator(config.train.mixed_precision)
        return _assemble_run(config, accelerator, state)
    try_out(config, Trial() if check is True else check)
    return None


def _assemble_run(config: Config, accelerator: Accelerator, state: Path | None) -> Trainer:
    train, is_main = config.train, accelerator.is_main_process
    prepare(config, accelerator)
    parts = load_parts(config, weights=True)
    held_out = find_held_out(config, parts)
    source = build_source(
        config, config.dataset, parts.dataset, accelerator, buckets=held_out.buckets
    )
    plan_it = partial(plan_run, config, parts, source.batch_sampler, held_out)
    plan = explained("dataset", plan_it)
    count = partial(describe_truncated, parts.model, parts.dataset, most=MOST_COUNTED)
    if is_main and (cut := explained("dataset", count)):
        logger.warning("%s", cut)
    if train.channels_last:
        store_channels_last(parts.model, parts.networks)
    prepare_modules(
        parts.model,
        parts.networks,
        device=accelerator.device,
        mixed_precision=train.mixed_precision,
        gradient_checkpointing=train.gradient_checkpointing,
        quantize=config.model.quantize,
        offload=config.model.offload_blocks,
    )
    set_attention(parts.model, parts.networks, train.attention)
    if train.tome_ratio:
        explained("", partial(merge_tokens, parts.model.denoiser, train.tome_ratio))
    if train.compile:
        blocks = compile_blocks(parts.model, parts.networks)
        logger.info("%d blocks are compiled when they first run, which takes minutes", blocks)
    if train.cuda_graphs and (denoiser := parts.model.denoiser) is not None:
        networks = list(parts.networks.values())
        parts.model.graphs = GraphedDenoiser(denoiser, networks, most=train.cuda_graphs)
    text = text_parameters(parts.trained_base, parts.networks.values())
    remember_text(parts.model, parts.datasets, trained=bool(text), most_gib=train.text_memory_gib)
    if state is None:
        check = partial(
            check_prediction,
            *(parts, accelerator),
            batch_size=train.batch_size,
            is_told=config.objective.module is not None,
        )
        explained("model", check)
    optimizer = explained("optimizer", lambda: build_optimizer(config, parts.groups))
    saver = explained("save", lambda: build_saver(config))
    if is_main and state is None:
        needed, disk = first_save(parts.groups, config), Path(config.save.directory)
        explained("", lambda: check_space(disk, needed=needed))
    given = explained("save.metadata", lambda: person_spec(config.save.metadata))
    directory = explained(
        "",
        lambda: share_run_folder(
            Path(config.save.directory),
            str(config.save.name),
            accelerator,
            resumed=None if state is None else state.parent,
        ),
    )
    told = identify(
        config,
        parts.dataset,
        held_out=held_out.digest(),
        steps=plan.max_train_steps,
        processes=accelerator.num_processes,
    )
    contents = begin_contents(parts, directory) if is_main else None
    identity = Identity(told, contents)
    if state is not None:
        check_identity(state, config, identity, accelerator)
    metadata = describe_run(config, parts, plan, accelerator, given=given, contents=contents)
    if is_main:
        show_changed(config)
        plan.show(directory, details=directory / FILE)
        settings = to_yaml(as_begun(config))
        write_atomically(directory / "config.yaml", settings)
        start_trackers(
            accelerator,
            config.loggers,
            directory=directory,
            run_name=directory.name,
            settings=settings,
            done=0 if state is None else read_progress(state)["step"],
        )
    trainer = kind_of(config).trainer(
        name=str(config.save.name),
        directory=directory,
        model=parts.model,
        networks=dict(parts.networks),
        trained_base=dict(parts.trained_base),
        groups=parts.groups,
        objective=parts.objective,
        source=source,
        prior=build_prior(config, parts.prior, accelerator),
        average=build_average(config.ema, parts.groups),
        text_stop=TextStop(
            parts.model,
            text,
            after=train.stop_text_encoders_after,
            alone=accelerator.num_processes == 1,
        ),
        optimizer=optimizer,
        lr_scheduler=build_schedule(config.lr_scheduler, optimizer, total=plan.max_train_steps),
        accelerator=accelerator,
        saver=saver if is_main else NoSaves(),
        keeper=_keeper(config, directory, accelerator),
        validation=build_validation(config, held_out, parts.objective, writes=is_main),
        coverage=build_ledger(source, plan, parts.dataset, directory, accelerator),
        identity=identity,
        sampler=parts.sampler if is_main else NoSamples(),
        max_train_steps=plan.max_train_steps,
        steps_per_epoch=plan.steps_per_epoch,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        max_grad_norm=train.max_grad_norm,
        fused_backward=config.optimizer.fused_backward,
        max_nonfinite_steps=train.max_nonfinite_steps,
        log_every=train.log_every,
        seed=train.seed,
        metadata=metadata,
    )
    own = {name: getattr(trainer, name) for name in ("saver", "sampler", "validation", "coverage")}
    trainer.stateful |= {n: p for n, p in own.items() if hasattr(p, "state_dict")}
    if state is not None:
        explained("train.resume", lambda: go_on(trainer, state))
    if is_rehearsed(train.rehearse, trainer):
        rehearse(trainer, reload=partial(load_again, config=config), is_new=state is None)
    return trainer


def _keeper(config: Config, directory: Path, accelerator: Accelerator) -> StateKeeper:
    save = config.save
    return StateKeeper(
        directory,
        Requests(directory, accelerator),
        every=Every(steps=save.every_steps, epochs=save.every_epochs),
        minutes=save.state_every_minutes,
        is_regular=save.state,
        writes=accelerator.is_main_process,
    )
