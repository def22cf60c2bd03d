"""A run says which of its settings are not the defaults."""

from __future__ import annotations

from modules.changed_settings import changed_settings
from modules.config import load


def lines(path, *overrides) -> dict[str, str]:
    config = load(path, *overrides)
    return dict(line.split(": ", 1) for line in changed_settings(config))


def test_each_value_stands_beside_its_default(write_config, model_directory, dataset_directory):
    path = write_config(
        networks={"cat": {"module": "networks.lora.LoRA", "args": {"rank": 4}}},
        train={"resume": None, "gradient_checkpointing": True},
        sample={"prompts": ["a cat", "a dog"], "seed": 0},
        loggers={"wandb": {"api_key": "0123456789abcdef", "project": "cats"}},
    )
    assert lines(path, "save.metadata.author=me", "train.max_grad_norm=1.0") == {
        "model": f"path {model_directory}",
        "dataset": f"args.path {dataset_directory}",
        "networks": "cat.module networks.lora.LoRA, cat.args.rank 4",
        "train": "learning_rate 0.001 (default 0.0001), batch_size 2 (default 1), "
        "max_train_steps 2 (default null), gradient_checkpointing true (default false), "
        "log_every 1 (default 10)",
        "save": f"name run (default null), directory {path.parent / 'output'} (default output), "
        "dtype fp32 (default fp16), metadata.author me (default null)",
        "sample": "prompts ['a cat', 'a dog'] (default null)",
        "loggers": "wandb.api_key ***, wandb.project cats",
    }


def test_parts_in_a_list_are_counted(write_config):
    steps = [{"module": "preprocess.bucketing.bucketing", "args": {"source": "a"}}]
    path = write_config(networks={"a": {"module": "networks.lora.LoRA"}}, prepare=steps)
    assert lines(path)["prepare"] == "0.module preprocess.bucketing.bucketing, 0.args.source a"


def test_a_default_that_is_written_out_is_no_change(write_config):
    path = write_config(networks={"a": {"module": "networks.lora.LoRA"}})
    bare = lines(path)
    written = ("objective.module=null", "train.seed=0", "optimizer.args={}", "model.trainable=[]")
    assert lines(path, *written) == bare
