"""The metadata of files, read as the programs that show them read it."""

from __future__ import annotations

import base64
import io
import json
from datetime import datetime

import pytest
import tiny
import torch
from PIL import Image

from modules.config import load
from modules.errors import ConfigError
from modules.safetensors_header import hash_head, read_header
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2, "alpha": 1}}}
NEEDED = {  # what sd-scripts keeps of its own with --no_metadata
    *("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim"),
    *("ss_network_alpha", "ss_network_args"),
}


def train(path, *overrides):
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    trainer.train()
    return trainer


def metadata_of(trainer, name="run.safetensors"):
    return read_header(trainer.directory / name).metadata


def as_a1111_reads(metadata):
    """Its family, name and hash of a network, by extensions-builtin/Lora/network.py."""
    values = {k: json.loads(v) if v.startswith("{") else v for k, v in metadata.items()}
    if str(metadata.get("ss_base_model_version", "")).startswith("sdxl_"):
        family = "SDXL"
    elif metadata.get("ss_v2") == "True":
        family = "SD2"
    else:
        family = "SD1" if metadata else "Unknown"
    return family, values.get("ss_output_name"), metadata["sshs_model_hash"][:12], values


@pytest.mark.parametrize(
    ("make", "options", "family"),
    [(tiny.make_sd, {}, "SD1"), (tiny.make_sd, {"sd2": True}, "SD2"), (tiny.make_sdxl, {}, "SDXL")],
)
def test_a1111_finds_family_name_and_dataset(write_config, tmp_path, make, options, family):
    base = tiny.save_sd(tmp_path / "base", make=make, **options)
    path = write_config(networks=LORA, model={"path": str(base), "clip_skip": 2})
    read, alias, short, values = as_a1111_reads(metadata_of(train(path)))
    assert (read, alias, len(short)) == (family, "run", 12)
    assert values["ss_sd_model_name"] == "base"
    assert values["ss_resolution"] == "(32, 32)"
    assert values["ss_clip_skip"] == "2"
    assert values["ss_num_train_images"] == "8"
    assert values["ss_tag_frequency"] == {"data": {"a red cat": 4, "a blue dog": 4}}
    assert sum(each["img_count"] for each in values["ss_dataset_dirs"].values()) == 8
    assert [b["count"] for b in values["ss_bucket_info"]["buckets"].values()] == [5, 3]


def test_settings_are_those_of_the_run(write_config):
    path = write_config(
        networks={
            "lora": {
                **LORA["lora"],
                "learning_rate": {"unet": 1e-3, "text_encoders": 5e-4},
                "args": {"rank": 2, "alpha": 1, "targets": ["unet", "text_encoders"]},
            }
        },
        optimizer={"module": "torch.optim.AdamW", "args": {"weight_decay": 0.1}},
        lr_scheduler={"name": "cosine", "warmup_ratio": 0.25},
        objective={"args": {"min_snr_gamma": 5, "noise_offset": 0.05, "timestep_range": [0, 0.5]}},
        train={"max_train_epochs": 2, "gradient_accumulation_steps": 2, "seed": 7},
    )
    found = metadata_of(train(path, "dataset.args.caption_dropout=0.1"))
    expected = {
        "ss_network_dim": "2",
        "ss_network_alpha": "1",
        "ss_network_module": "networks.lora",
        "ss_learning_rate": "0.001",
        "ss_unet_lr": "0.001",
        "ss_text_encoder_lr": "0.0005",
        "ss_optimizer": "torch.optim.AdamW(weight_decay=0.1)",
        "ss_lr_scheduler": "cosine",
        "ss_lr_warmup_steps": "2",
        "ss_seed": "7",
        "ss_mixed_precision": "no",
        "ss_min_snr_gamma": "5.0",
        "ss_noise_offset": "0.05",
        "ss_caption_dropout_rate": "0.1",
        "ss_gradient_accumulation_steps": "2",
        "ss_batch_size_per_device": "2",
        "ss_total_batch_size": "4",
        "ss_steps": "6",
        "ss_epoch": "2",
        "ss_num_epochs": "2",
        "ss_max_train_steps": "6",
        "ss_zero_terminal_snr": "False",
        "modelspec.timestep_range": "0,499",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert float(found["ss_training_started_at"]) <= float(found["ss_training_finished_at"])
    assert datetime.fromisoformat(found["modelspec.date"]).utcoffset() is not None
    assert 0 <= int(found["ss_session_id"]) < 2**32


def test_every_save_tells_its_own_step_and_name(write_config):
    trainer = train(write_config(networks=LORA), "save.every_steps=1")
    first, last = metadata_of(trainer, "run-step00000001.safetensors"), metadata_of(trainer)
    assert (first["ss_steps"], last["ss_steps"]) == ("1", "2")
    assert first["ss_output_name"] == first["modelspec.title"] == "run-step00000001"
    assert first["ss_session_id"] == last["ss_session_id"]


def test_a_base_in_one_file_has_the_hashes_that_programs_know_it_by(write_config, tmp_path):
    base = write_config(model={"trainable": ["unet.mid_block"]})
    whole = train(base, "save.format=single_file").directory / "run.safetensors"
    assert "ss_sd_model_hash" not in read_header(whole).metadata  # its own base was a directory
    path = write_config("b", networks=LORA, model={"path": str(whole)})
    found = metadata_of(train(path), "b.safetensors")
    assert found["ss_sd_model_name"] == "run.safetensors"
    assert found["ss_sd_model_hash"] == hash_head(whole)
    assert found["ss_new_sd_model_hash"] == found["sd_trainer.base_model_hash"]


def test_whole_models_have_settings_and_modelspec(write_config):
    path = write_config(model={"trainable": ["unet.mid_block", "text_encoders"]})
    trainer = train(
        path, "save.format=single_file", "train.learning_rate={unet: 1e-3, text_encoders: 0.0}"
    )
    found = metadata_of(trainer)
    assert found["modelspec.architecture"] == "stable-diffusion-v1"
    assert found["modelspec.title"] == "run"
    assert (found["ss_unet_lr"], found["ss_text_encoder_lr"]) == ("0.001", "0.0")
    assert "ss_network_dim" not in found
    folder = train(path).directory / "run" / "sd_trainer.json"
    beside = json.loads(folder.read_text(encoding="utf-8"))
    assert beside["modelspec.architecture"] == "stable-diffusion-v1"
    assert set(beside) == set(found) - {"format", "sd_trainer.configs"}


def test_fields_that_a_person_gives(write_config, tmp_path):
    Image.new("RGBA", (900, 300), "red").save(tmp_path / "cat.png")
    path = write_config(
        networks=LORA,
        save={
            "metadata": {
                "title": "My cat",
                "author": "猫",
                "tags": ["cat", "pet"],
                "trigger_phrase": "sks cat",
                "usage_hint": "weight 0.8",
                "license": "CC0",
                "description": "A cat,\nasleep",
                "thumbnail": str(tmp_path / "cat.png"),
            },
        },
    )
    found = metadata_of(train(path))
    told = {k.removeprefix("modelspec."): v for k, v in found.items() if k.startswith("modelspec.")}
    assert told["title"] == "My cat"
    assert told["author"] == "猫"
    assert told["tags"] == "cat, pet"
    assert (told["trigger_phrase"], told["usage_hint"]) == ("sks cat", "weight 0.8")
    assert told["description"] == "A cat,\nasleep"
    kind, _, content = told["thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (256, 85)
    assert found["ss_output_name"] == "run"  # what readers call it is the file's name


def test_the_trigger_word_is_the_datasets(write_config):
    found = metadata_of(train(write_config(networks=LORA), "dataset.args.trigger_word=sks"))
    assert found["modelspec.trigger_phrase"] == "sks"
    assert found["ss_tag_frequency"].count("sks") == 1


def test_minimal_files_say_what_programs_need(write_config):
    path = write_config(networks=LORA, save={"metadata": {"content": "minimal", "author": "me"}})
    trainer = train(path)
    found = metadata_of(trainer)
    assert {key for key in found if key.startswith("ss_")} == NEEDED | {"ss_output_name"}
    assert found["modelspec.author"] == "me"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert not [key for key in found if key.startswith("sd_trainer.") or key == "modelspec.date"]
    assert found["sshs_model_hash"]


def test_other_kinds_of_files(write_config, tmp_path):
    data = tiny.save_dataset(tmp_path / "pets", {(32, 32): 4}, side_inputs=True)
    networks = {
        "control": {"module": "networks.controlnet.ControlNet"},
        "pfg": {"module": "networks.pfg.PFG", "args": {"input_size": 12, "num_tokens": 2}},
        "ti": {
            "module": "networks.textual_inversion.TextualInversion",
            "args": {"tokens": {"<pet>": "cat"}},
        },
    }
    path = write_config(
        networks=networks,
        dataset={"args": {"path": str(data), "extras": {"control": "image", "pfg": "npz"}}},
    )
    trainer = train(path)
    kinds = {
        "run-control/diffusion_pytorch_model.safetensors": "controlnet",
        "run-pfg.safetensors": "pfg",
        "run-ti/pet.safetensors": "textual-inversion",
    }
    for file, kind in kinds.items():
        found = metadata_of(trainer, file)
        assert found["modelspec.architecture"] == f"stable-diffusion-v1/{kind}", file
        assert found["sd_trainer.config"], file
        assert found["sshs_model_hash"], file
    told = metadata_of(trainer, "run-ti/pet.safetensors")
    assert (told["ss_text_encoder_lr"], told["ss_unet_lr"]) == ("0.001", "None")
    plain = torch.load(trainer.directory / "run-pfg.pt")
    assert plain.keys() == {"pfg_linear.weight", "pfg_linear.bias"}


@pytest.mark.parametrize(("content", "fault"), [(None, "is not a file"), (b"no image", "cat.png")])
def test_a_thumbnail_that_is_none_stops_the_run_at_once(write_config, tmp_path, content, fault):
    if content is not None:
        (tmp_path / "cat.png").write_bytes(content)
    path = write_config(networks=LORA, save={"metadata": {"thumbnail": str(tmp_path / "cat.png")}})
    with pytest.raises(ConfigError, match=fault):
        Trainer.from_config(load(path))
    assert not list((tmp_path / "output").glob("*"))
