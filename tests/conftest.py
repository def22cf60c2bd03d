"""Fixtures: a tiny model and dataset on disk, and a config for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors gain nothing from threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

from network_guard import no_network

from modules.console import OUR_LOGGERS, quiet_libraries

quiet_libraries()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report what can't be UTF-8 as escapes: of several processes one tells the other."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the tests' own, for the commands that they start, too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SD_TRAINER_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    """Fail a test that reaches for another machine, as the person forbids with HF_HUB_OFFLINE=1."""
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        yield
        return
    with no_network():
        yield


@pytest.fixture(autouse=True)
def fresh_loggers() -> None:
    """Let a test capture our messages, whichever test before it has set up a terminal's logging."""
    for name in OUR_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SD1 as a diffusers directory; tests don't write to it."""
    import tiny

    return tiny.save_sd(tmp_path_factory.mktemp("model") / "sd1")


@pytest.fixture(scope="session")
def dataset_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images in two buckets with latents and captions; tests don't write to it."""
    import tiny

    directory = tmp_path_factory.mktemp("dataset") / "data"
    return tiny.save_dataset(directory, {(32, 32): 5, (48, 32): 3})


@pytest.fixture
def write_config(
    tmp_path: Path, model_directory: Path, dataset_directory: Path
) -> Callable[..., Path]:
    """Write a config over the tiny model and dataset; sections given replace or extend ours."""

    def write(name: str = "run", **sections) -> Path:
        config = {
            "model": {"path": str(model_directory)},
            "dataset": {"args": {"path": str(dataset_directory)}},
            "train": {"max_train_steps": 2, "batch_size": 2, "learning_rate": 1e-3, "log_every": 1},
            "save": {"directory": str(tmp_path / "output"), "dtype": "fp32"},
        }
        for section, values in sections.items():
            known = config.get(section)
            if isinstance(known, dict) and isinstance(values, dict):
                config[section] = {**known, **values}
            else:
                config[section] = values
        if "max_train_epochs" in config["train"]:
            del config["train"]["max_train_steps"]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return write
