import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_dataset, save_sd

import main

ROOT = Path(main.__file__).parent


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A model, a dataset and a config that names them."""
    place = tmp_path_factory.mktemp("main")
    save_sd(place / "model")
    save_dataset(place / "data")
    text = f"""\
model: {{path: '{place / "model"}'}}
dataset: {{args: {{path: '{place / "data"}'}}}}
networks:
  lora: {{module: networks.lora.LoRA, args: {{rank: 2}}}}
train: {{max_train_steps: 1, batch_size: 2}}
save: {{directory: '{place / "output"}'}}
"""
    (place / "cat.yaml").write_text(text, encoding="utf-8")
    return place


def test_no_argument_shows_usage(capsys):
    assert main.main([]) == 2
    assert capsys.readouterr().out.startswith(f"usage: {main.USAGE}\n")


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["--help"])
    assert caught.value.code == 0
    assert "config/README.md" in capsys.readouterr().out


def test_an_unknown_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["a.yaml", "--chek"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --chek" in capsys.readouterr().err


def test_a_faulty_file_has_no_traceback(tmp_path, capsys):
    config = tmp_path / "cat.yaml"
    config.write_text("model: {path: owner/model}\ntrain: {max_train_steps: 0}\n", encoding="utf-8")
    assert main.main([str(config), "model.trainable=[unet]", "--check"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"{config} is not a valid config:\n"
        "  train.max_train_steps (line 2): 0 is out of range; it must be at least 1\n"
    )


def test_faulty_arguments_come_after_the_schema_and_before_data(material, capsys):
    overrides = ["networks.lora.args.rnk=2", "optimizer.module=torch.optim.AdmaW"]
    assert main.main([str(material / "cat.yaml"), *overrides]) == 2
    error = capsys.readouterr().err
    assert "networks.lora.args.rnk: networks.lora.LoRA takes no argument 'rnk'; did you" in error
    assert "optimizer.module: torch.optim has no 'AdmaW'; did you mean 'AdamW'?" in error
    assert "Traceback" not in error
    assert not (material / "output").exists()


def test_check_trains_nothing_and_makes_no_folder(material, capsys):
    before = sorted(material.rglob("*"))
    assert main.main([str(material / "cat.yaml"), "--check", "train.max_train_steps=3"]) == 0
    assert sorted(material.rglob("*")) == before
    captured = capsys.readouterr()
    assert "3 in all" in captured.out + captured.err


def test_options_may_stand_anywhere(material):
    assert main.main(["--check", str(material / "cat.yaml"), "train.batch_size=1"]) == 0
    assert not (material / "output").exists()


def test_a_run_and_the_config_that_it_leaves(material):
    assert main.main([str(material / "cat.yaml")]) == 0
    run = material / "output" / "cat"
    assert (run / "cat.safetensors").is_file()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1]
    assert main.main([str(run / "config.yaml"), "--check"]) == 0


def test_a_faulty_file_is_answered_without_torch(tmp_path):
    """In a process of its own; the seconds are a loose bound for a busy machine."""
    resource = pytest.importorskip("resource")  # not on Windows
    (tmp_path / "cat.yaml").write_text("traan: {}\n", encoding="utf-8")
    code = (
        "import sys, main\n"
        "status = main.main(['cat.yaml'])\n"
        "heavy = [m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules]\n"
        "print(status, heavy)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout == "2 []\n"
    assert done.stderr.startswith("cat.yaml is not a valid config:\n  traan (line 1): no such key")
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0


def test_a_run_that_cannot_go_on_says_why_and_returns_1(write_config, capsys):
    path = write_config(
        networks={"lora": {"module": "networks.lora.LoRA"}},
        objective={"module": "plugged_in.Poisoned"},
        train={"max_nonfinite_steps": 1},
    )
    assert main.main([str(path)]) == 1
    assert "step 1: loss or gradient were not finite" in capsys.readouterr().err
