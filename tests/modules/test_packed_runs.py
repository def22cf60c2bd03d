"""Whole runs on packed and remote datasets; a start with a million images."""

import fsspec
import pytest
from safetensors.torch import load_file

import main
from bench.large_data import make_dataset, measure_afresh
from preprocess.pack import pack


def train(write_config, path, name, **dataset):
    config = write_config(
        name,
        dataset={"args": {"path": str(path), **dataset}},
        networks={"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}},
        train={"max_train_epochs": 1, "batch_size": 2, "learning_rate": 1e-3},
    )
    assert main.main([str(config)]) == 0
    folder = config.parent / "output" / name
    return load_file(folder / f"{name}.safetensors")


def test_runs_on_packed_and_remote_datasets_train_the_same(
    write_config, dataset_directory, tmp_path, capfd
):
    packed = tmp_path / "packed"
    pack(directory=dataset_directory, output=packed)
    memory, address = fsspec.filesystem("memory"), "memory://run/data"
    memory.put(str(packed), "/run/data", recursive=True)
    wanted = train(write_config, dataset_directory, "single")
    for name, path in {"packed": packed, "remote": address}.items():
        found = train(write_config, path, name)
        assert found.keys() == wanted.keys()
        assert all(found[key].equal(wanted[key]) for key in wanted)
    assert main.main([str(tmp_path / "remote.yaml"), "--check"]) == 0
    memory.rm("/run", recursive=True)
    capfd.readouterr()
    assert main.main([str(tmp_path / "remote.yaml")]) == 2
    assert "dataset: memory://run/data: no such directory" in capfd.readouterr().err


@pytest.mark.slow
def test_a_million_images_start_in_a_gibibyte(tmp_path):
    make_dataset(tmp_path, 1_000_000)
    took = measure_afresh(tmp_path)
    assert took["images"] == 1_000_000
    assert took["batches"] == 250_000
    assert took["peak MiB"] < 1024
