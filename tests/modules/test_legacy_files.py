"""The translations of YAMLs in the original's key names: where they are kept, and that they run."""

from pathlib import Path

import pytest
import tiny
import torch
from old_config import BASE, EXAMPLES, make_place, read
from safetensors.torch import load_file

import main
from modules import legacy
from modules.config import keep_translation, load

CASES = {
    "lora": ["cats.safetensors"],
    "loha": ["loha.safetensors"],
    "finetune": ["output/model_index.json"],
    "controlnet": ["output-controlnet/config.json", "output/model_index.json"],
    "pfg": ["output.pt", "output.safetensors"],
    "all_sections": [
        "together-controlnet/config.json",
        "together-lora.safetensors",
        "together-pfg.pt",
    ],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(make_place(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def side_inputs(tmp_path_factory):
    """A dataset with guide images, masks and image features."""
    return tiny.save_dataset(tmp_path_factory.mktemp("legacy") / "data", side_inputs=True)


@pytest.fixture
def run(tmp_path, monkeypatch, model_directory, side_inputs):
    """Run an example in a directory of its own, with overrides in the original's names."""
    monkeypatch.chdir(tmp_path)

    def run(name, *overrides):
        (tmp_path / f"{name}.yaml").write_bytes((EXAMPLES / f"{name}.yaml").read_bytes())
        given = [f"model.input_path={model_directory}", f"dataset.args.path={side_inputs}"]
        return main.main([f"{name}.yaml", *given, "sample.num_inference_steps=1", *overrides])

    return run


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_examples_train(name, run, tmp_path):
    assert run(name) == 0
    (metrics,) = tmp_path.glob("output/**/metrics.jsonl")
    assert all((metrics.parent / file).is_file() for file in CASES[name])
    (samples,) = (
        metrics.parent.glob("samples/step*1.png")
        if name == "finetune"
        else (metrics.parent.glob("samples/step*2.png"))
    )
    assert samples.is_file()


def test_the_adapter_is_the_originals(run, tmp_path):
    assert run("lora") == 0
    tensors = load_file(tmp_path / "output" / "cats" / "cats.safetensors")
    assert {float(value) for key, value in tensors.items() if key.endswith(".alpha")} == {1.0}
    names = {key.partition(".")[0] for key in tensors}
    assert "lora_unet_mid_block_resnets_0_time_emb_proj" in names
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in names
    assert not any("conv1" in name for name in names)


def test_a_frozen_network_of_a_pt_file(run, tmp_path, capsys):
    assert run("lora") == 0
    weights = load_file(tmp_path / "output" / "cats" / "cats.safetensors")
    torch.save(weights, tmp_path / "earlier.pt")
    resume = ["network.resume=earlier.pt", "network.train=false", "train.train_unet=true"]
    assert run("lora", *resume, "--check") == 0
    assert run("lora", *resume, "model.output_name=later") == 0
    assert (tmp_path / "output" / "later" / "later" / "model_index.json").is_file()
    (tmp_path / "earlier.pt").write_bytes(b"no tensors")
    assert run("lora", *resume) == 2
    assert "networks.lora: earlier.pt: is no .pt file of tensors" in capsys.readouterr().err


def test_the_line_that_says_where_the_translation_is(run, tmp_path, capfd):
    assert run("pfg", "--check") == 0
    assert "a run writes their translation to pfg.translated.yaml" in capfd.readouterr().out
    assert not (tmp_path / "pfg.translated.yaml").exists()
    assert run("pfg") == 0
    said = "pfg.yaml has the key names of the original sd-trainer; it was translated to "
    assert capfd.readouterr().out.splitlines()[0] == f"{said}pfg.translated.yaml"
    assert run("pfg", "train.epochs=x") == 2


@pytest.fixture
def keep(caplog):
    """Keep the translation of old.yaml; returns what was said."""

    def keep(*overrides, **options):
        caplog.clear()
        with caplog.at_level("INFO", logger="modules.legacy"):
            keep_translation("old.yaml", *overrides, **options)
        return caplog.messages

    return keep


def test_the_translation_is_kept_and_means_the_same(keep, place):
    text = (EXAMPLES / "all_sections.yaml").read_text(encoding="utf-8")
    config = read(text, "dataset.args.path=data", "train.lr=1e-3")
    assert keep("dataset.args.path=data", "train.lr=1e-3") == [
        "old.yaml has the key names of the original sd-trainer; it was translated to "
        "old.translated.yaml"
    ]
    again = ("dataset.args.path=data", "train.learning_rate=1e-3", "save.name=together")
    assert load("old.translated.yaml", *again) == config
    text = Path("old.translated.yaml").read_text(encoding="utf-8")
    assert text.startswith(
        "# Translated from old.yaml, which has the key names of the original sd-trainer.\n"
    )
    assert "#   pfg.args.cross_attention_dim: the model says it\n" in text


def test_no_file_of_a_person_is_overwritten(keep, place):
    read(BASE)
    for _ in range(2):
        assert keep()[0].endswith(" translated to old.translated.yaml")
    assert len(list(Path().glob("*.yaml"))) == 2
    Path("old.translated.yaml").write_text("mine\n", encoding="utf-8")
    for _ in range(2):
        assert keep()[0].endswith(" translated to old.translated-2.yaml")
    assert len(list(Path().glob("*.yaml"))) == 3
    assert Path("old.translated.yaml").read_text(encoding="utf-8") == "mine\n"


def test_a_check_writes_nothing(keep, place):
    read(BASE)
    assert keep(check=True) == [
        "old.yaml has the key names of the original sd-trainer; a run writes their translation to "
        "old.translated.yaml"
    ]
    assert len(list(Path().glob("*.yaml"))) == 1


def test_todays_files_are_left_alone(keep, place):
    Path("old.yaml").write_text("model: {path: model}\n", encoding="utf-8")
    assert keep() == []
    assert len(list(Path().glob("*.yaml"))) == 1


def test_a_folder_that_cannot_be_written_to(place, caplog, monkeypatch):
    """The current directory takes the file; where that can't be written to, the run goes on."""
    folder = place / "shared"
    folder.mkdir()
    (folder / "old.yaml").write_text(BASE, encoding="utf-8")
    closed = [folder]
    write = legacy.write_atomically

    def refuse(path, text):
        if path.parent in closed:
            raise PermissionError(13, "Permission denied")
        write(path, text)

    monkeypatch.setattr(legacy, "write_atomically", refuse)
    with caplog.at_level("INFO", logger="modules.legacy"):
        keep_translation(folder / "old.yaml")
        assert caplog.messages[-1].endswith("; it was translated to old.translated.yaml")
        assert Path("old.translated.yaml").is_file()
        Path("old.translated.yaml").unlink()
        closed.append(Path())
        keep_translation(folder / "old.yaml")
        assert caplog.messages[-1].endswith(
            "; their translation can't be written here or beside it"
        )


def test_a_file_that_is_valid_with_overrides_only(keep, place):
    text = BASE.replace("epochs: 10", "epochs: ten")
    read(text, "train.epochs=3")
    keep("train.epochs=3", "save.name=cats")
    assert load("old.translated.yaml").train.max_train_epochs == 3
    assert load("old.translated.yaml").save.name == "old"
