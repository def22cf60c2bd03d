"""The configs for cards of 8, 12 and 24 GB: what their headers say is what is estimated today."""

import re
from pathlib import Path

import pytest
from real_folders import save_configs, save_latents

import main
from modules.config import load
from modules.memory import GIB, RunMemory
from modules.run_parts import load_parts

CARDS = sorted((Path(main.__file__).parent / "config").glob("*gb_*.yaml"))
SIZES = {"sd1": 512, "sdxl": 1024}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Configs and data of each published model."""
    place = tmp_path_factory.mktemp("published")
    for name, size in SIZES.items():
        save_configs(name, place / name)
        save_latents(place / f"{name}-data", size=size)
    return place


def test_there_is_one_for_each_card():
    assert {path.stem.partition("gb_")[0] for path in CARDS} == {"8", "12", "24"}


@pytest.mark.slow
@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_header_has_today_s_estimate_and_it_fits_the_card(path, folders):
    name = path.stem.split("_")[1]
    data = f"dataset.args.path={folders / f'{name}-data'}"
    config = load(str(path), f"model.path={folders / name}", data)
    train = config.train
    memory = RunMemory(config, load_parts(config, weights=False))
    estimate = memory.estimate(train.mixed_precision, checkpointing=train.gradient_checkpointing)
    peak = estimate.peak(train.batch_size) / GIB
    size = SIZES[name]
    said = f"# By --check about {peak:.1f} GiB at most, images of {size}x{size}, latents cached."
    assert path.read_text(encoding="utf-8").splitlines()[2] == said
    card = float(re.match(r"\d+", path.stem)[0])
    assert peak <= card - 0.4  # what a desktop and the driver take of a card
