"""The benchmark against training scripts; the script itself is not part of the repository."""

import json
import sys

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from small_architectures import SMALL

from bench import report, training_scripts
from bench.processes import Taken, run_whole
from modules import models
from modules.dataset import LatentDataset

PAGE = "# Figures\n\n## Others\n\nAs they were.\n"


@pytest.fixture
def material(tmp_path):
    return training_scripts.write_material(tmp_path, SMALL, images=4)


def test_both_sides_see_the_same_pictures_and_captions(material, tmp_path):
    _, data = material
    dataset = LatentDataset(str(data), text_cache=True)
    lines = (tmp_path / "pictures" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    told = {each["file_name"][:-4]: each["text"] for each in map(json.loads, lines)}
    assert len(told) == 4
    assert {name: dataset.whole_caption(n) for n, name in enumerate(dataset.names)} == told
    assert dataset[0].latents.shape[-2:] == (8, 8)
    assert dataset[0].text


@pytest.mark.slow
def test_ours_trains_the_layers_that_the_script_does(material, tmp_path):
    model, data = material
    command = training_scripts.our_command(tmp_path, model, data)
    run_whole([part.replace("{steps}", "2") for part in command])
    with safe_open(tmp_path / "output" / "run" / "run.safetensors", "pt") as file:
        downs = [key for key in file.keys() if key.endswith(".lora_down.weight")]  # noqa: SIM118
        assert {min(file.get_slice(key).get_shape()[:2]) for key in downs} == {16}
        assert file.metadata()["ss_steps"] == "2"
        trained = {key.removesuffix(".lora_down.weight") for key in downs}
    unet = models.load(str(model)).denoiser
    unet.add_adapter(LoraConfig(r=16, target_modules=list(training_scripts.TARGETS)))
    theirs = {path for path, part in unet.named_modules() if isinstance(part, BaseTunerLayer)}
    assert trained == {"lora_unet_" + path.replace(".", "_") for path in theirs}


def test_a_step_costs_the_difference_of_two_runs():
    found = {
        "ours": [(Taken(4.0, 1.0, 100.0), Taken(6.0, 1.0, 300.0))] * 2,
        "peer": [
            (Taken(9.0, 1.0, 100.0), Taken(13.0, 1.0, 400.0)),
            (Taken(9.0, 1.0, 100.0), Taken(17.0, 1.0, 400.0)),
        ],
    }
    assert training_scripts.describe(found, steps=10) == [
        *("0.200", "0.600", "**0.38** (0.25 to 0.50)"),
        *("300", "400", "**0.75** (0.75 to 0.75)"),
    ]


def test_runs_alternate_and_are_told_their_steps(tmp_path):
    code = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + sys.argv[3] + ' ')"
    sides = {
        side: [sys.executable, "-c", code, str(tmp_path / "told"), side, "{steps}"]
        for side in ("a", "b")
    }
    found = training_scripts.alternate(sides, few=1, many=3, rounds=2)
    assert (tmp_path / "told").read_text() == "a1 b1 a1 a3 b1 b3 b1 b3 a1 a3 "
    assert [len(found[side]) for side in ("a", "b")] == [2, 2]


def test_without_the_script_the_section_says_so(tmp_path, monkeypatch, capsys):
    page = tmp_path / "benchmarks.md"
    page.write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(report.write_section, "__kwdefaults__", {"page": page})
    assert training_scripts.main(["--write"]) == 0
    assert capsys.readouterr().out.strip() == training_scripts.SKIPPED
    written = page.read_text(encoding="utf-8")
    assert written.startswith(PAGE)
    assert "## Against training scripts\n\n`python bench/training_scripts.py --write`" in written
    assert written.rstrip().endswith(training_scripts.SKIPPED)


def test_a_script_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        training_scripts.main(["--peer", "nowhere.py"])
    assert "--peer: nowhere.py: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [('check_min_version("0.40.0.dev0")\n', "0.40.0.dev0 or newer"), ("", "of any version")],
)
def test_what_a_script_asks_for(tmp_path, line, told):
    script = tmp_path / "script.py"
    script.write_text(f"import diffusers\n{line}", encoding="utf-8")
    assert training_scripts.wanted_version(script) == told
