"""The table that translates the original's keys: today's, the old ones it is made of, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules.legacy_values import (
    above_zero,
    adapter_class,
    adapter_targets,
    batch_size,
    every_epochs,
    learning_rate,
    objective,
    own_args,
    own_class,
    passes,
    precision,
    repeated,
    run_directory,
    run_name,
    side,
    side_inputs,
    timestep_range,
    trained_base,
    warmup_ratio,
)


def as_it_stands(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Row:
    """One of today's keys. It is left out where the first old key is, or `make` returns None."""

    today: str
    old: str
    """Keys of the original, separated by spaces; faults are told of the first."""
    make: Callable[..., Any] = as_it_stands
    """Today's value of theirs; raises ValueError with what is wrong."""


TABLE = (
    Row("model.path", "model.input_path"),
    Row(
        "model.trainable",
        "train.train_unet train.train_encoder feature.up_only network controlnet pfg",
        trained_base,
    ),
    Row("dataset.module", "dataset.module", own_class("dataset")),
    Row("dataset.args", "dataset.args dataset.module", own_args("dataset")),
    Row("dataset.args.path", "dataset.args.path"),
    Row("dataset.args.metadata", "dataset.args.metadata"),
    Row("dataset.args.mask", "dataset.args.mask"),
    Row("dataset.args.prefix", "dataset.args.prefix"),
    Row("dataset.args.prompt", "dataset.args.prompt"),
    Row("dataset.args.caption_dropout", "dataset.args.ucg"),
    Row(
        "dataset.args.extras",
        "dataset.args.path dataset.args.pfg dataset.args.control pfg controlnet",
        side_inputs,
    ),
    Row(
        "dataset.args.allow_missing_captions",
        "dataset.args.path dataset.args.prompt dataset.args.pfg pfg",
        lambda path, prompt, flag, pfg: True if prompt is None and (flag or pfg) else None,
    ),
    Row("dataset.shuffle", "dataset.args.shuffle"),
    Row("dataset.num_workers", "dataset.loader.args.num_workers"),
    Row("networks.lora.module", "network.module network.args.module", adapter_class),
    Row("networks.lora.args", "network.args network.module", own_args("network")),
    Row("networks.lora.args.rank", "network.args.rank"),
    Row("networks.lora.args.conv_rank", "network.args.conv_rank"),
    Row("networks.lora.args.alpha", "network.args.alpha"),
    Row("networks.lora.args.multiplier", "network.args.multiplier"),
    Row(
        "networks.lora.args.targets",
        "network.args network.module network.args.conv_rank train.train_encoder feature.up_only",
        adapter_targets,
    ),
    Row("networks.lora.train", "network.train"),
    Row("networks.lora.resume", "network.resume"),
    Row("networks.pfg.module", "pfg", lambda section: "networks.pfg.PFG"),
    Row("networks.pfg.args.input_size", "pfg.args.input_size"),
    Row("networks.pfg.args.num_tokens", "pfg.args.num_tokens"),
    Row("networks.pfg.train", "pfg.train"),
    Row("networks.pfg.resume", "pfg.resume"),
    Row(
        "networks.controlnet.module", "controlnet", lambda section: "networks.controlnet.ControlNet"
    ),
    Row("networks.controlnet.args.global_average_pooling", "controlnet.global_average_pooling"),
    Row("networks.controlnet.train", "controlnet.train"),
    Row("networks.controlnet.resume", "controlnet.resume"),
    Row("objective.module", "model.v_prediction", objective),
    Row("objective.args.timestep_range", "feature.step_range", timestep_range),
    Row("optimizer.module", "optimizer.module"),
    Row("optimizer.args", "optimizer.args", lambda args: args or None),
    Row("lr_scheduler.name", "train.lr_scheduler"),
    Row("lr_scheduler.warmup_ratio", "train.lr_scheduler", warmup_ratio),
    Row(
        "train.learning_rate",
        "train.lr train.train_unet train.train_encoder feature.up_only network controlnet pfg",
        learning_rate,
    ),
    Row("train.batch_size", "train.batch_size feature.minibatch_repeat", batch_size),
    Row("train.minibatch_repeat", "feature.minibatch_repeat", lambda n: None if n == 1 else n),
    Row(
        "train.max_train_epochs",
        "train.epochs feature.minibatch_repeat feature.test_steps",
        passes,
    ),
    Row("train.max_train_steps", "feature.test_steps", above_zero),
    Row("train.max_grad_norm", "train", lambda section: 0.0),  # it did not clip gradients
    Row("train.mixed_precision", "train.amp", precision),
    Row("train.gradient_checkpointing", "train.gradient_checkpointing"),
    Row("train.attention", "train.use_xformers", lambda on: "xformers" if on else None),
    Row("train.seed", "train.seed"),
    Row("train.tome_ratio", "train.tome_ratio"),
    Row("save.name", "model.output_name", run_name),
    Row("save.directory", "model.output_name", run_directory),
    Row(
        "save.every_epochs",
        "save.args.save_n_epochs save.args.save_n_steps feature.minibatch_repeat",
        every_epochs,
    ),
    Row("save.every_steps", "save.args.save_n_steps"),
    Row("save.keep_last", "save.args.over_write", lambda over_write: 1 if over_write else None),
    Row("save.module", "save.module", own_class("save")),
    Row("save.args", "save.args save.module", own_args("save")),
    Row("sample.prompts", "save.args.prompt save.args.num_images", repeated),
    Row(
        "sample.num_images",
        "save.args.num_images save.args.prompt",
        lambda count, prompt: count if prompt is None else None,
    ),
    Row("sample.negative_prompt", "save.args.negative_prompt"),
    Row("sample.width", "save.args.resolution", side(0)),
    Row("sample.height", "save.args.resolution", side(-1)),
    Row("sample.num_inference_steps", "save.args.num_images", lambda count: 50),
    Row("sample.guidance_scale", "save.args.num_images", lambda count: 7.0),
    Row("sample.seed", "save.args.seed"),
    Row(
        "sample.every_epochs",
        "save.args.save_n_epochs save.args.save_n_steps feature.minibatch_repeat",
        every_epochs,
    ),
    Row("sample.every_steps", "save.args.save_n_steps"),
    Row("sample.at_start", "save.args.num_images", lambda count: False),
    Row("loggers.wandb.project", "save.args.wandb_name", lambda name: name or None),
)

WITHOUT_COUNTERPART = {
    "model.v2": "the model's own files say what it is",
    "dataset.loader.module": "PyTorch's DataLoader is used",
    "dataset.loader.collate_fn": "a dataset gives single images, batches are made of them here",
    "pfg.args.cross_attention_dim": "the model says it",
    "save.args.image_logs": "validation images are in samples/ in the run's folder",
}
"""Keys of the original that nothing stands for, and why."""
