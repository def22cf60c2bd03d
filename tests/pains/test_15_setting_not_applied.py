"""A setting is misspelt or of the wrong type, and a whole run is made without it."""

from __future__ import annotations

import pytest
from interrupted_runs import LORA

import main
from modules.config import load

MISSPELT = {
    "learning_rat": ("train.learning_rat", "no such key; did you mean 'learning_rate'?"),
    "mixed_precision": ("train.mixed_precision", "'bf61' is not one of 'no', 'fp16', 'bf16'"),
    "learning_rate": ("train.learning_rate", "'oops' is not a number or a mapping of names"),
}
VALUES = {"learning_rat": 1e-4, "mixed_precision": "bf61", "learning_rate": "oops"}


def test_what_other_trainers_pass_over_is_refused_with_its_line(write_config, tmp_path, capsys):
    path = write_config(networks=LORA, train=VALUES)
    text = path.read_text().splitlines()
    assert main.main([str(path)]) == 2
    said = capsys.readouterr().err
    for key, (name, message) in MISSPELT.items():
        number = 1 + next(n for n, line in enumerate(text) if f"  {key}:" in line)
        assert f"  {name} (line {number}): {message}" in said
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.args.min_snr_gama=5", "takes no argument 'min_snr_gama'; did you mean 'min_sn"),
        ("optimizer.args.weight_decy=0.1", "takes no argument 'weight_decy'; did you mean 'weight"),
        ("networks.lora.args.rnk=8", "takes no argument 'rnk'; did you mean 'rank'?"),
        ("networks.lora.args.rank=many", "networks.lora.args.rank: 'many' is not"),
        ("ema.use_emma=true", "ema.use_emma (command line): no such key"),
        ("train.gradient_checkpointing=yes", "'yes' is not true or false or a list; write true"),
    ],
)
def test_no_argument_of_a_part_is_passed_over(write_config, tmp_path, capsys, override, message):
    assert main.main([str(write_config(networks=LORA)), override]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_what_differs_from_the_defaults_is_shown_and_all_is_kept(write_config, tmp_path, capfd):
    path = write_config(networks=LORA)
    assert main.main([str(path), "train.seed=3", "save.dtype=bf16"]) == 0
    shown = [line for line in capfd.readouterr().out.splitlines() if line.startswith("settings ")]
    (train,) = [line for line in shown if " train: " in line]
    assert "learning_rate 0.001 (default 0.0001)" in train
    assert "seed 3 (default 0)" in train
    assert any("dtype bf16 (default fp16)" in line for line in shown)
    kept = load(tmp_path / "output" / "run" / "config.yaml")
    assert kept == load(path, "train.seed=3", "save.dtype=bf16")


def test_a_setting_without_effect_is_named(write_config, capfd):
    path = write_config(networks=LORA, lr_scheduler={"name": "cosine", "num_cycles": 3})
    assert main.main([str(path), "--check"]) == 0
    assert "lr_scheduler.num_cycles has no effect with cosine" in capfd.readouterr().out


def test_a_config_of_the_original_trainer_means_the_same_today(
    model_directory, dataset_directory, tmp_path, capfd
):
    old = tmp_path / "old.yaml"
    old.write_text(
        f"model: {{input_path: {model_directory}}}\n"
        f"dataset: {{module: utils.dataset.BaseDataset, args: {{path: {dataset_directory}}}}}\n"
        'train: {train_unet: true, epochs: 1, batch_size: 2, lr: "3e-4"}\n'
    )
    assert main.main([str(old), "--check"]) == 0
    said = capfd.readouterr().out
    assert "translated" in said
    assert "learning_rate 0.0003" in said
