import json

import numpy as np
import pytest

from modules import shape_check
from modules.dataset import LatentDataset
from preprocess.pack import pack

TALL = [f"tall_{number:02d}" for number in range(12)]
WIDE = [f"wide_{number:02d}" for number in range(6)]


@pytest.fixture
def directory(tmp_path):
    content = {"(16, 24)": TALL, "(24, 16)": WIDE}
    (tmp_path / "buckets.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "latents").mkdir()
    for name in TALL + WIDE:
        save(tmp_path, name, (4, 6, 4) if name in TALL else (4, 4, 6))
    return tmp_path


def save(directory, name, shape):
    np.save(directory / "latents" / f"{name}.npy", np.zeros(shape, dtype=np.float32))


def faults(directory, **options):
    dataset = LatentDataset(str(directory), prompt="")
    return [fault.split()[0] for fault in shape_check.find_odd_files(dataset, 4, 4, **options)]


def test_of_many_files_some_of_each_bucket_are_opened(directory):
    for name in ("tall_06", "tall_07", "wide_03"):
        save(directory, name, (4, 1, 1))
    odd = ["latents/tall_06.npy:", "latents/tall_07.npy:", "latents/wide_03.npy:"]
    assert faults(directory) == faults(directory, most=18) == odd
    assert faults(directory, most=6) == [odd[0], odd[2]]  # every third
    for name in WIDE:
        save(directory, name, (4, 6, 4))
    assert "latents/wide_00.npy:" in faults(directory, most=1)  # a bucket that is wrong as a whole


def test_a_trial_opens_all(directory, monkeypatch):
    monkeypatch.setattr(shape_check.find_odd_files, "__kwdefaults__", {"most": 6})
    save(directory, "tall_07", (4, 1, 1))
    dataset = LatentDataset(str(directory), prompt="")
    dataset.check_latent_shapes(4, 4)
    with pytest.raises(ValueError, match="tall_07"):
        dataset.check_every_shape(4, 4)


def test_packed_latents_are_all_compared(directory):
    pack(directory=directory, remove=True)
    content = {"(16, 24)": TALL + WIDE[-1:], "(24, 16)": WIDE[:-1]}
    (directory / "buckets.json").write_text(json.dumps(content), encoding="utf-8")
    assert len(faults(directory, most=1)) == 1


def test_side_inputs_are_opened_as_rarely(directory):
    (directory / "pfg").mkdir()
    for number, name in enumerate(TALL + WIDE):
        np.savez(directory / "pfg" / f"{name}.npz", np.zeros(3 + (number in (4, 6))))
    dataset = LatentDataset(str(directory), prompt="", extras={"pfg": "npz"})
    assert len([*shape_check.find_odd_files(dataset, 4, 4)]) == 2
    assert len([*shape_check.find_odd_files(dataset, 4, 4, most=6)]) == 1
