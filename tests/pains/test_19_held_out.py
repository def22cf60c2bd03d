"""Images change sides between training and validation when files are renamed or added."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from interrupted_runs import LORA, assemble
from PIL import Image

FOLDERS = {"images": ".png", "latents": ".npy", "captions": ".caption"}


@pytest.fixture
def data(dataset_directory, tmp_path):
    """Twelve images: those of the dataset under names in the other order, and four new ones."""
    shutil.copytree(dataset_directory, tmp_path / "data")
    index = json.loads((tmp_path / "data" / "buckets.json").read_text())
    renamed = {
        bucket: [f"other{99 - int(n[-3:])}" for n in names] for bucket, names in index.items()
    }
    for folder, ending in FOLDERS.items():
        for file in (tmp_path / "data" / folder).iterdir():
            file.rename(file.with_name(f"other{99 - int(file.stem[-3:])}{ending}"))
    rng = np.random.default_rng(7)
    for name in ("a0", "a1", "a2", "a3"):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{name}.png")
        latents = rng.standard_normal((4, 8, 8)).astype(np.float32)
        np.save(tmp_path / "data" / "latents" / f"{name}.npy", latents)
        (tmp_path / "data" / "captions" / f"{name}.caption").write_text("a cat")
        renamed["(32, 32)"].insert(0, name)
    (tmp_path / "data" / "buckets.json").write_text(json.dumps(renamed))
    return tmp_path / "data"


def test_no_image_changes_sides_by_its_name_or_by_others(write_config, data):
    path = write_config(networks=LORA, validation={"split": 0.4})
    before = assemble(path).validation.held_out
    after = assemble(path, f"dataset.args.path={data}").validation.held_out
    assert (before.total, after.total) == (8, 12)
    assert 0 < before.count < 8
    kept, renamed = (
        {held_out.dataset[number].name for number in held_out.measured}
        for held_out in (before, after)
    )
    old = {name for name in renamed if name.startswith("other")}
    assert {f"image{99 - int(name[5:]):03d}" for name in old} == kept
