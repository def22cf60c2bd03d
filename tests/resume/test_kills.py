"""Runs that are killed and resumed until they are done end as one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import kills
import pytest
import torch
from kills import Kill
from safetensors.torch import load_file

from modules.checkpoint import read_progress
from modules.state_folder import find_states

pytestmark = pytest.mark.slow

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "targets": ["unet"]}}}
SAVES = {"every_steps": 2, "keep_last": 1}
STEPS = {"max_train_steps": 7, "log_every": 2}
RUNS: dict[str, dict] = {
    "lora": {"networks": LORA},
    "full": {"model": {"trainable": ["unet.up_blocks", "text_encoders"]}},
    "accumulation": {"networks": LORA, "train": {"gradient_accumulation_steps": 3}},
    "ema": {"networks": LORA, "ema": {"decay": 0.9, "save": "beside"}},
    "augmentation": {
        "networks": LORA,
        "dataset": {
            "module": "modules.dataset.ImageDataset",
            "num_workers": 2,
            "args": {"flip": 0.5, "crop_jitter": 0.2, "caption_dropout": 0.3},
        },
    },
    "validation": {
        "networks": LORA,
        "validation": {"split": 0.4, "every_steps": 1, "keep_best": True},
    },
    "rehearsed": {"networks": LORA, "train": {"rehearse": True}},
    "two processes": {"networks": LORA, "train": {"batch_size": 1}},
}


@pytest.fixture
def prepared(request, write_config, dataset_directory) -> tuple[Path, int]:
    """The YAML of one of RUNS, and its number of processes."""
    sections = {name: dict(values) for name, values in RUNS[request.param].items()}
    sections["train"] = {
        "batch_size": 2,
        "learning_rate": 1e-3,
        **STEPS,
        **sections.get("train", {}),
    }
    sections["save"] = SAVES
    if "dataset" in sections:
        own = sections["dataset"]
        own["args"] = {"path": str(dataset_directory), **own["args"]}
    return write_config(**sections), 2 if request.param == "two processes" else 1


def results(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of all weights in a run's folder, by file, without the run's name."""
    files = [p for p in folder.rglob("*.safetensors") if not p.name.startswith(".")]
    name = folder.name.partition("-")[0]  # that of a run begun anew ends with -2
    return {str(p.relative_to(folder)).replace(name, "*"): load_file(p) for p in sorted(files)}


def assert_same(one: Path, two: Path) -> None:
    """Check that two runs have left the same, bit by bit, and nothing unfinished."""
    first, second = results(one), results(two)
    assert first.keys() == second.keys()
    for file, tensors in first.items():
        assert tensors.keys() == second[file].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[file][key]), f"{file}: {key}"
    assert metrics(one) == metrics(two)
    assert not [p.name for p in two.iterdir() if ".tmp" in p.name]


def metrics(folder: Path) -> list[dict[str, float]]:
    """What was logged, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def until_done(run: Callable[[Kill | None], tuple[int, ...]], kills_to_come: list[Kill]) -> int:
    """Run until it ends by itself, with one kill after another; returns how many hit."""
    for hits, kill in enumerate([*kills_to_come, None]):
        codes = run(kill)
        if set(codes) == {0}:
            return hits
        assert any(code < 0 for code in codes), codes
    raise AssertionError("a run that is left alone does not end")


@pytest.mark.parametrize("prepared", ["lora", "two processes"], indirect=True)
def test_a_rehearsal_leaves_no_trace(prepared, tmp_path):
    path, processes = prepared
    assert set(kills.train(path, "save.name=plain", processes=processes)) == {0}
    options = ("save.name=rehearsed", "train.rehearse=true")
    assert set(kills.train(path, *options, processes=processes)) == {0}
    assert "rehearsal: largest bucket" in Path(f"{path}.log").read_text(encoding="utf-8")
    output = tmp_path / "output"
    assert_same(output / "plain", output / "rehearsed")
    assert (output / "plain" / "coverage.csv").read_bytes() == (
        output / "rehearsed" / "coverage.csv"
    ).read_bytes()


@pytest.mark.parametrize("prepared", ["lora"], indirect=True)
def test_a_kill_in_a_rehearsal_leaves_what_the_run_began_from(prepared, tmp_path):
    path, _ = prepared
    output, log = tmp_path / "output", Path(f"{path}.log")
    assert kills.train(path, "save.name=whole") == (0,)
    assert kills.train(path, "save.name=run", "train.max_train_steps=4") == (0,)
    (state,) = find_states(output / "run")
    options = ("save.name=run", "train.resume=auto", "train.accept_changes=[train.max_train_steps]")
    for number in (16, 24, 32):
        said = log.read_text(encoding="utf-8").count("the run will take")
        kill = Kill(at_call=number)
        assert kills.train(path, *options, "train.rehearse=true", kill=kill) == (-signal.SIGKILL,)
        assert log.read_text(encoding="utf-8").count("the run will take") == said
        assert find_states(output / "run") == [state]
        assert [p for p in (output / "run").iterdir() if ".tmp" in p.name]
    assert kills.train(path, *options, "train.rehearse=true") == (0,)
    assert_same(output / "whole", output / "run")


@pytest.mark.parametrize("prepared", RUNS, indirect=True)
def test_random_kills(prepared, tmp_path, request):
    path, processes = prepared
    output = tmp_path / "output"
    assert set(kills.train(path, "save.name=whole", processes=processes)) == {0}
    before = time.monotonic()  # behind the first one, which starts the server
    assert set(kills.train(path, "save.name=again", processes=processes)) == {0}
    seconds = time.monotonic() - before
    assert_same(output / "whole", output / "again")
    chance = random.Random(request.node.name)
    hits = 0
    for number in range(4):
        name = f"killed{number}"

        def run(kill: Kill | None, name: str = name) -> tuple[int, ...]:
            options = ("train.resume=auto", f"save.name={name}")
            return kills.train(path, *options, kill=kill, processes=processes)

        hits += until_done(run, [Kill(after_seconds=chance.uniform(0, seconds)) for _ in range(3)])
        newest = max(output.glob(f"{name}*"), key=lambda folder: (len(folder.name), folder.name))
        assert_same(output / "whole", newest)
        for folder in output.glob(f"{name}*"):
            shutil.rmtree(folder)
    assert hits > 0
    print(f"{hits} kills")


@pytest.mark.parametrize("prepared", ["ema"], indirect=True)
@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(False, id="before"),
        pytest.param(True, id="behind", marks=pytest.mark.exhaustive),
    ],
)
def test_kills_at_every_rename_and_fsync_of_a_save(prepared, behind, tmp_path):
    path, _ = prepared
    output = tmp_path / "output"
    calls = kills.count_calls(path, "save.name=whole", counts=tmp_path / "counts")
    assert calls > 40
    for number in range(int(behind), calls, 2):
        name = f"killed{number}"

        def run(kill: Kill | None, name: str = name) -> tuple[int, ...]:
            return kills.train(path, "train.resume=auto", f"save.name={name}", kill=kill)

        assert until_done(run, [Kill(at_call=number, behind=behind)]) == 1
        newest = max(output.glob(f"{name}*"), key=lambda folder: (len(folder.name), folder.name))
        assert_same(output / "whole", newest)
        for folder in output.glob(f"{name}*"):
            shutil.rmtree(folder)
    print(f"{calls} calls")


@pytest.mark.parametrize("prepared", ["full"], indirect=True)
def test_kills_in_the_middle_of_a_file(prepared, tmp_path):
    path, _ = prepared
    output = tmp_path / "output"
    assert kills.train(path, "save.name=whole") == (0,)
    sizes = sorted({p.stat().st_size for p in (output / "whole").rglob("*") if p.is_file()})
    limits = sorted({size // 2 for size in sizes if size > 20} | {size - 1 for size in sizes[-4:]})
    for number, limit in enumerate(limits):
        name = f"killed{number}"

        def run(kill: Kill | None, name: str = name) -> tuple[int, ...]:
            return kills.train(path, "train.resume=auto", f"save.name={name}", kill=kill)

        assert until_done(run, [Kill(file_size=limit)]) == 1
        newest = max(output.glob(f"{name}*"), key=lambda folder: (len(folder.name), folder.name))
        assert_same(output / "whole", newest)


@pytest.mark.parametrize("prepared", ["two processes"], indirect=True)
def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(prepared, tmp_path):
    path, processes = prepared
    options = ("train.max_train_steps=100000", "train.rehearse=false", "save.name=run")
    kill = Kill(after_step=3, number=signal.SIGTERM, only_rank=1)
    codes = kills.train(path, *options, kill=kill, processes=processes)
    assert set(codes) <= {130, 128 + signal.SIGTERM, -signal.SIGKILL}  # the last by the launcher
    (state,) = find_states(tmp_path / "output" / "run")
    step = read_progress(state)["step"]
    assert 0 < step < 100000
    options = (f"train.max_train_steps={step + 3}", "save.name=run", "train.resume=auto")
    options += ("train.accept_changes=[train.max_train_steps]",)
    assert kills.train(path, *options, processes=processes) == (0, 0)
    whole = (f"train.max_train_steps={step + 3}", "save.name=whole")
    assert kills.train(path, *whole, processes=processes) == (0, 0)
    ended, expected = (
        load_file(tmp_path / "output" / name / f"{name}.safetensors") for name in ("run", "whole")
    )
    assert all(torch.equal(ended[key], expected[key]) for key in expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("prepared", ["augmentation"], indirect=True)
def test_a_signal_to_workers_too(prepared, number, tmp_path):
    path, _ = prepared
    options = ("train.max_train_steps=100000", "train.rehearse=false", "save.name=run")
    kill = Kill(after_step=3, number=number, group=True)
    assert kills.train(path, *options, kill=kill) == (128 + number,)
    (state,) = find_states(tmp_path / "output" / "run")
    log = Path(f"{path}.log").read_text(encoding="utf-8")
    assert f"stopped: step {read_progress(state)['step']} is kept; go on with" in log
    assert "KeyboardInterrupt" not in log
