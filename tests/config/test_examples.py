"""Every example config trains."""

import json
from pathlib import Path

import pytest
import tiny
import tiny_if
import tiny_inpaint
import torch
from probes import perturb
from tiny import save_dataset, save_sd

import main
from modules.models import load
from modules.yaml_text import parse
from networks.lora import LoRA

ROOT = Path(main.__file__).parent
EXAMPLES = sorted(
    path for path in (ROOT / "config").rglob("*.yaml") if path.name != "quickstart.yaml"
)

WRITTEN = {
    "networks.controlnet.ControlNet": "/diffusion_pytorch_model.safetensors",
    "networks.hypernetwork.Hypernetwork": ".pt",
    "networks.textual_inversion.TextualInversion": "/cat-toy.safetensors",
}


MAKERS = {
    "12gb_sdxl_lora": tiny.make_sdxl,
    "24gb_sdxl_lora": tiny.make_sdxl,
    "8gb_sdxl_lora": tiny.make_sdxl,
    "deepfloyd_if": tiny_if.make_if,
    "inpainting": tiny_inpaint.make_sd,
    "sdxl_lora": tiny.make_sdxl,
}
"""What makes the model of an example that isn't for Stable Diffusion 1."""


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A directory with models, a dataset, and a LoRA of UNet and text encoder."""
    place = tmp_path_factory.mktemp("examples")
    save_sd(place / "model")
    for stem, make in MAKERS.items():
        save_sd(place / stem, make=make)
    save_dataset(place / "data", side_inputs=True, features=768)
    network = LoRA(rank=2, targets=["unet", "text_encoders"])
    network.attach(load(str(place / "model")))
    perturb(network, scale=0.01)
    network.save(place / "lora.safetensors", dtype=torch.float16, metadata={})
    return place


MORE = {
    "dreambooth": {"prior.args.path": "data"},
    "several_networks": dict.fromkeys(
        ["networks.merged.resume", "networks.kept.resume"], "lora.safetensors"
    ),
}
"""Further files of the material that examples want, by key."""

OVERRIDES = {"validation": ["validation.split=0.3"]}  # there are four images only


def dataset_keys(path: Path) -> list[str]:
    """Where an example wants the directories of its datasets."""
    if path.stem == "several_datasets":
        return [f"dataset.args.datasets.{number}.path" for number in range(2)]
    return ["dataset.args.path"]


def test_their_number():
    assert [path.relative_to(ROOT / "config").as_posix() for path in EXAMPLES] == [
        "12gb_sd1_finetune.yaml",
        "12gb_sdxl_lora.yaml",
        "24gb_sd1_finetune.yaml",
        "24gb_sdxl_finetune.yaml",
        "24gb_sdxl_lora.yaml",
        "8gb_sd1_lora.yaml",
        "8gb_sdxl_lora.yaml",
        "augmentation.yaml",
        "captions.yaml",
        "controlnet.yaml",
        "deepfloyd_if.yaml",
        "dora.yaml",
        "dreambooth.yaml",
        "ema.yaml",
        "finetune.yaml",
        "finetune_single_file.yaml",
        "hypernetwork.yaml",
        "inpainting.yaml",
        "large_batch.yaml",
        "locon.yaml",
        "loha.yaml",
        "lokr.yaml",
        "lora.yaml",
        "lora_text_encoder.yaml",
        "objective.yaml",
        "pfg.yaml",
        "pivotal_tuning.yaml",
        "rslora.yaml",
        "sdxl_lora.yaml",
        "several_datasets.yaml",
        "several_networks.yaml",
        "textual_inversion.yaml",
        "vae.yaml",
        "validation.yaml",
        "zero_terminal_snr.yaml",
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains(path, material, tmp_path):
    status = main.main(
        [
            str(path),
            f"model.path={material / (path.stem if path.stem in MAKERS else 'model')}",
            *(f"{key}={material / 'data'}" for key in dataset_keys(path)),
            f"save.directory={tmp_path}",
            "train.max_train_steps=2",
            "train.max_train_epochs=null",
            "train.log_every=1",
            "train.batch_size=2",
            "sample.width=32",
            "sample.height=32",
            "sample.num_inference_steps=2",
            *OVERRIDES.get(path.stem, ()),
            *(f"{key}={material / file}" for key, file in MORE.get(path.stem, {}).items()),
        ]
    )
    assert status == 0
    run = tmp_path / path.stem
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2]
    assert (run / "config.yaml").is_file()
    assert (run / "loss.png").is_file()
    assert (run / "before_after.png").is_file()
    assert (run / "samples" / "step00000000.png").is_file()
    assert (run / "samples" / "step00000002.png").is_file()
    values = parse(path.read_text(encoding="utf-8"))[0]
    networks = values.get("networks", {})
    if not networks and values["save"].get("format") == "single_file":
        assert (run / f"{path.stem}.safetensors").is_file()
    elif not networks:
        index = "config.json" if path.stem == "vae" else "model_index.json"
        assert (run / path.stem / index).is_file()
    trained = {name: each for name, each in networks.items() if each.get("train", True)}
    for name, network in trained.items():
        ending = WRITTEN.get(network["module"], ".safetensors")
        stem = path.stem if len(trained) == 1 else f"{path.stem}-{name}"
        assert (run / f"{stem}{ending}").is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_it_is_run(path, capsys):
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    command = f"#   python main.py {name} model.path=<model> {dataset_keys(path)[0]}=<dataset>"
    assert any(line.startswith(command) for line in text.splitlines()[:3])
    assert len(text.splitlines()) <= 50
    assert main.main([str(path)]) == 2
    advice = "??? stands for a value of yours; set it here or on the command line"
    first, *faults = capsys.readouterr().err.splitlines()
    assert first == f"{path} is not a valid config:"
    assert [fault.partition(" (line ")[0].strip() for fault in faults] == [
        "model.path",
        *dataset_keys(path),
        *MORE.get(path.stem, {}),
    ]
    assert all(fault.endswith(advice) for fault in faults)


def test_finetune_for_a_smaller_card(material, capsys):
    text = (ROOT / "config" / "finetune.yaml").read_text(encoding="utf-8")
    overrides = "model.trainable=[unet.up_blocks] train.learning_rate=1e-5"
    assert f"#   {overrides}\n" in text
    paths = [f"model.path={material / 'model'}", f"dataset.args.path={material / 'data'}"]
    sizes = ["sample.width=32", "sample.height=32"]
    path = str(ROOT / "config" / "finetune.yaml")
    assert main.main([path, *paths, *sizes, *overrides.split(), "--check"]) == 0


def test_inpainting_with_the_whole_unet(material):
    text = (ROOT / "config" / "inpainting.yaml").read_text(encoding="utf-8")
    overrides = "networks=null model.trainable=[unet] train.learning_rate=1e-5"
    assert f"#   {overrides}\n" in text
    paths = [f"model.path={material / 'inpainting'}", f"dataset.args.path={material / 'data'}"]
    sizes = ["sample.width=32", "sample.height=32"]
    path = str(ROOT / "config" / "inpainting.yaml")
    assert main.main([path, *paths, *sizes, *overrides.split(), "--check"]) == 0
