"""An optimizer's arguments are text that nobody checks, or its rate is another than was asked."""

from __future__ import annotations

import pytest
from interrupted_runs import assemble

import main

LORA = {
    "lora": {
        "module": "networks.lora.LoRA",
        "args": {"rank": 2, "targets": ["unet", "text_encoders"]},
    }
}
ADAFACTOR = "pytorch_optimizer.AdaFactor"


def test_arguments_are_held_against_the_class(write_config, tmp_path, capsys):
    wrong = {"weight_decy": 0.1, "betas": "0.9,0.99", "lr": 1.0}
    path = write_config(networks=LORA, optimizer={"module": "torch.optim.AdamW", "args": wrong})
    assert main.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert "'weight_decy'; did you mean 'weight_decay'?" in said
    assert "optimizer.args.betas: '0.9,0.99' is not a list" in said
    assert "optimizer.args.lr" in said
    assert not (tmp_path / "output").exists()


def test_the_rate_of_each_group_is_shown_and_is_the_optimizers(write_config, capfd):
    rates = {"unet": 0.5, "text_encoders": 0.25}
    path = write_config(
        networks={"lora": {**LORA["lora"], "learning_rate": rates}},
        lr_scheduler={"name": "constant"},
    )
    trainer = assemble(path)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.5, 0.25]
    assert main.main([str(path)]) == 0
    shown = [line for line in capfd.readouterr().out.splitlines() if line.startswith("trained ")]
    assert [line.rpartition("learning rate ")[2] for line in shown] == ["0.5", "0.25"]


def test_a_rate_that_multiplies_one_that_is_found_is_told(write_config, capfd):
    path = write_config(networks=LORA, optimizer={"module": "prodigyopt.Prodigy"})
    assert main.main([str(path)]) == 0
    assert "multiplies it with ours, 0.001; train.learning_rate: 1" in capfd.readouterr().out
    assert main.main([str(path), "train.learning_rate=1"]) == 0
    assert "multiplies it with ours" not in capfd.readouterr().out


def test_a_schedule_beside_a_rate_of_its_own_is_refused(write_config, tmp_path, capfd):
    path = write_config(
        networks=LORA, optimizer={"module": ADAFACTOR}, lr_scheduler={"name": "cosine"}
    )
    assert main.main([str(path)]) == 2
    assert "optimizer.args.relative_step: " in capfd.readouterr().err
    assert not (tmp_path / "output").exists()
    assert main.main([str(path), "optimizer.args.relative_step=false"]) == 0
    constant = main.main([str(path), "lr_scheduler.name=constant", "--check"])
    assert constant == 0
    assert "train.learning_rate has no effect: " in capfd.readouterr().out


@pytest.mark.parametrize("module", ["prodigyopt.Prodigy", "torch.optim.AdamW"])
def test_a_rate_moves_the_weights(write_config, module):
    """Twice the rate is another result: it gets there, whichever the optimizer is."""
    ends = []
    for rate in (1.0, 2.0):
        path = write_config(networks=LORA, optimizer={"module": module})
        trainer = assemble(path, f"train.learning_rate={rate}", "train.max_train_steps=1")
        trainer.train()
        ends.append(sum(p.detach().abs().sum() for p in trainer.networks["lora"].parameters()))
    assert ends[0] != ends[1]
