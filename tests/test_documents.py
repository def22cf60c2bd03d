"""README and notebook: their commands parse, their links lead somewhere."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.ja.md")
NOTEBOOK = ROOT / "sd_trainer_tutorial.ipynb"


def commands(text: str) -> list[list[str]]:
    """Every `python ...` command of a document, split as a shell does."""
    found = []
    for line in text.splitlines():
        for part in re.split(r"&&|;", line.strip().lstrip("!").strip("`")):
            if part.strip().startswith("python "):
                found.append(shlex.split(part.strip()))
    return found


def documents() -> dict[str, str]:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in READMES}
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    texts["notebook"] = "\n".join("".join(cell["source"]) for cell in cells)
    return texts


@pytest.mark.parametrize("name", [*READMES, "notebook"])
def test_scripts_and_configs_of_the_commands_exist(name):
    found = commands(documents()[name])
    assert len(found) >= 4
    for command in found:
        if command[1] == "-m":
            assert command[2] == "pytest"
            continue
        assert (ROOT / command[1]).is_file(), command
        for word in command[2:]:
            if word.startswith("config/"):
                assert (ROOT / word).is_file(), command


@pytest.mark.parametrize("name", READMES)
def test_the_readmes_training_command_is_valid(name, model_directory, dataset_directory, capfd):
    import main

    command = next(c for c in commands(documents()[name]) if "config/lora.yaml" in c)
    words = [ROOT / word if word.startswith("config/") else word for word in command[2:]]
    given = [f"model.path={model_directory}", f"dataset.args.path={dataset_directory}"]
    kept = [w for w in map(str, words) if not w.startswith(("model.path=", "dataset.args.path="))]
    sizes = ["sample.width=32", "sample.height=32"]
    assert main.main([*kept, *given, *sizes, "--check"]) == 0
    assert "optimizer steps" in capfd.readouterr().out


@pytest.mark.parametrize("name", READMES)
def test_preprocess_commands_parse(name, capsys):
    found = [c for c in commands(documents()[name]) if c[1].startswith("preprocess/")]
    assert len(found) == 8
    for command in found:
        script = importlib.import_module(command[1].removesuffix(".py").replace("/", "."))
        with pytest.raises(SystemExit) as stopped:  # --help, after the words before it were read
            script.main([*command[2:], "--help"])
        assert stopped.value.code == 0
        capsys.readouterr()


def test_commands_of_the_distributed_runs(capsys):
    text = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    found = commands(re.sub(r"CUDA_VISIBLE_DEVICES=\d (.*) &", r"\1", text))
    assert len(found) == 5
    for command in found:
        script = importlib.import_module(command[1].removesuffix(".py").replace("/", "."))
        assert "--shard" in command or "bucketing" in command[1]
        with pytest.raises(SystemExit) as stopped:
            script.main([*command[2:], "--help"])
        assert stopped.value.code == 0
        capsys.readouterr()
    launches = re.findall(r"(main\.py) (config/\S+\.yaml)", text)
    assert len(launches) == 5
    assert all((ROOT / file).is_file() for launch in launches for file in launch)


@pytest.mark.parametrize(
    "name", [*READMES, "CONTRIBUTING.md", "config/README.md", "CHANGELOG.md", "docs/large_data.md"]
)
def test_local_links_lead_somewhere(name):
    path = ROOT / name
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8"))
    for target in targets:
        assert (path.parent / target).exists(), target


def test_the_commands_for_large_data_parse():
    from bench import large_data
    from preprocess import pack

    scripts = {"preprocess/pack.py": pack, "bench/large_data.py": large_data}
    found = commands((ROOT / "docs/large_data.md").read_text(encoding="utf-8"))
    assert {command[1] for command in found} == {*scripts, "main.py"}
    for _, script, *words in found:
        if script in scripts:
            with pytest.raises(SystemExit) as stopped:
                scripts[script].main([*words, "--help"])
            assert stopped.value.code == 0


def test_both_readmes_show_the_same_commands():
    texts = documents()
    assert commands(texts["README.md"]) == commands(texts["README.ja.md"])


def test_the_notebook_has_no_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
