"""What prevents the pains of runs: their end and going on, their numbers, files and processes."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from pains.guards import Guard

from modules.loading import step_groups
from modules.verification import Verified


def _nothing(*_args, **_options):
    return None


def _from_the_start(source, *, done, **options):
    return step_groups(source, done=0, **options)


def _any_noise(model, generators, size):
    width, height = (side // model.vae_scale_factor for side in size)
    return torch.randn(len(generators), model.latent_channels, height, width)


_RESUME = "test_01_resume.py"
_RATE = "test_02_learning_rate.py"
_NAN = "test_03_nan_loss.py"
_VAE = "test_04_black_samples.py"
_KEYS = "test_05_keys_not_loaded.py"
_SAMPLES = "test_06_samples.py"
_STOP = "test_20_pause_and_stop.py"
_PROCESSES = "test_25_several_processes.py"

GUARDS = [
    Guard(
        row=1,
        target="modules.checkpoint:TrainState._apply_engine",
        replacement=_nothing,
        tests=_RESUME,
        only="same_bytes",
    ),
    Guard(
        row=1,
        target="modules.trainer:step_groups",
        replacement=_from_the_start,
        tests=_RESUME,
        only="same_bytes",
    ),
    Guard(
        row=1,
        target="modules.trainer:seed_step",
        replacement=_nothing,
        tests=_RESUME,
        only="same_bytes",
    ),
    Guard(
        row=1,
        target="modules.assembly:is_finished",
        replacement=lambda _state: False,
        tests=_RESUME,
        only="nothing_is_left",
    ),
    Guard(
        row=2,
        target="modules.checkpoint:TrainState._apply_engine",
        replacement=_nothing,
        tests=_RATE,
    ),
    Guard(row=2, target="modules.run_identity:_refuse", replacement=_nothing, tests=_RATE),
    Guard(
        row=3,
        target="modules.step_guard:StepGuard.step",
        replacement=lambda _self, make_step, **_options: make_step(),
        tests=_NAN,
    ),
    Guard(row=3, target="modules.trainer:check_steps", replacement=_nothing, tests=_NAN),
    Guard(row=3, target="modules.savers:check_finite", replacement=_nothing, tests=_NAN),
    Guard(
        row=4,
        target="preprocess.latent:np.isfinite",
        replacement=lambda values: np.ones(np.shape(values), bool),
        tests=_VAE,
        only="named",
    ),
    Guard(
        row=4,
        target="modules.models.spaces:full_precision",
        replacement=lambda _device: contextlib.nullcontext(),
        tests=_VAE,
        only="reach_the_vae",
    ),
    Guard(
        row=5,
        target="modules.verified_files:VerifiedFiles._verify",
        replacement=lambda *_args: Verified(0, 0.0),
        tests=_KEYS,
        only="not_kept",
    ),
    Guard(
        row=5,
        target="networks.keys:kohya_name",
        replacement=lambda _model, path: path.replace(".", "_"),
        tests=_KEYS,
        only="find_a_layer_for",
    ),
    Guard(
        row=6,
        target="modules.picture_batches:rounded",
        replacement=lambda _parameters, _dtype: contextlib.nullcontext(),
        tests=_SAMPLES,
        only="as_saved",
    ),
    Guard(
        row=6,
        target="modules.samplers:parameters_text",
        replacement=lambda picture, **_options: picture.prompt,
        tests=_SAMPLES,
        only="how_it_was_drawn",
    ),
    Guard(
        row=6,
        target="modules.drawing:draw_noise",
        replacement=_any_noise,
        tests=_SAMPLES,
        only="noise or neighbours",
    ),
    Guard(
        row=20,
        target="modules.requests:Requests._note",
        replacement=_nothing,
        tests=_STOP,
        only="first_signal",
    ),
    Guard(
        row=20,
        target="modules.requests:Requests._look",
        replacement=lambda _self: (False, False),
        tests=_STOP,
        only="asks_for_a_save",
    ),
    Guard(
        row=20, target="modules.files:_sync_file", replacement=_nothing, tests=_STOP, only="disk"
    ),
    Guard(
        row=25,
        target="modules.buckets:BucketBatchSampler.share",
        replacement=lambda _self, batch: (list(batch), True),
        tests=_PROCESSES,
        only="whole_batches",
    ),
]
