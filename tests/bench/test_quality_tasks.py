"""The tasks of the quality table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.quality_tasks import DREAMBOOTH, MASKED, fill
from modules.component import build
from modules.dataset import LatentDataset

ROOT = Path(__file__).parent.parent.parent
TINY_SD = ROOT / "assets" / "tiny-sd"


def test_masks_of_the_masked_recipe_leave_out_the_mark(tmp_path):
    steps = fill(MASKED.prepare(model=str(TINY_SD), seed=0), MASKED.folders(tmp_path))
    steps[0]["args"] |= {"count": 2, "plain_count": 1}
    for step in steps:
        build(step["module"], step["args"])
    data = LatentDataset(str(tmp_path / "dataset"), mask=True)
    masks = [data[index].mask[0].numpy() for index in range(3)]  # 16x16 of 64x64 pixels
    wanted = np.ones((16, 16))
    wanted[12:16, 9:15] = 0
    assert np.array_equal(masks[0], wanted)
    assert np.array_equal(masks[1], wanted)
    assert masks[2].min() == 1


def test_class_images_make_a_dataset_of_their_own(tmp_path):
    steps = fill(DREAMBOOTH.prepare(model=str(TINY_SD), seed=3), DREAMBOOTH.folders(tmp_path))
    assert steps[0]["args"]["seed"] == 3
    drawn = [step for step in steps if step["module"].endswith("class_images")]
    assert len({step["args"]["output"] for step in drawn}) == len(drawn) == 8
    assert len({step["args"]["seed"] for step in drawn}) == 8
    for step in [drawn[0], drawn[1], *steps[-2:]]:
        if step in drawn:
            step["args"] |= {"count": 2, "num_inference_steps": 2}
        build(step["module"], step["args"])
    data = LatentDataset(str(tmp_path / "prior"))
    assert [data.whole_caption(index) for index in range(len(data))] == [
        *["a red square on a green background"] * 2,
        *["an orange square on a cyan background"] * 2,
    ]


def test_folders_are_put_into_lists_and_mappings():
    filled = fill({"a": ["{x}/b", 1, {"c": "{x}"}], "d": ("{y}", None)}, {"{x}": "/here"})
    assert filled == {"a": ["/here/b", 1, {"c": "/here"}], "d": ["{y}", None]}
