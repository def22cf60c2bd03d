"""All scripts of preprocess/ are asked for in the same words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.job import make_parser

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "preprocess").glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
ALIASES = {
    "-d": "-d DIRECTORY, --directory DIRECTORY, --input_dir DIRECTORY",
    "-o": "-o OUTPUT, --output OUTPUT, --output_dir OUTPUT, --output_path OUTPUT",
    "--num_workers": "--num_workers NUM_WORKERS, --threads NUM_WORKERS",
}
HEAVY = {"torch", "diffusers", "transformers", "onnxruntime", "cv2", "tqdm"}
# Runs every script with --help in one process; a module that one imports stays, so each is asked
# for what is there after it.
PROBE = """
import contextlib, io, json, runpy, sys
found = {}
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    found[script] = [text.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory):
    """Each script's help and the packages imported for it, asked for from another directory."""
    paths = {name: str(ROOT / "preprocess" / f"{name}.py") for name in SCRIPTS}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *paths.values()],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={"PATH": "", "COLUMNS": "200", "SYSTEMROOT": "C:\\Windows"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    found = json.loads(done.stdout)
    return {name: found[path] for name, path in paths.items()}


def test_the_scripts_are_there():
    assert {"bucketing", "latent", "create_mask", "draw_shapes"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_quick(helps, name):
    text, packages = helps[name]
    assert text.startswith(f"usage: {name}.py [-h] ")
    assert not HEAVY & set(packages)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_is_explained(helps, name):
    words = re.split(r"\n  (?=-)", helps[name][0].partition("options:\n")[2].rstrip())
    assert len(words) > 2
    for option in words:
        assert re.search(r"(?:\s{2,}|\n\s+)\S", option.strip()), option


@pytest.mark.parametrize("name", SCRIPTS)
def test_common_options_are_spelled_alike(helps, name):
    text = helps[name][0]
    wanted = {"-o"} if name in ("class_images", "draw_shapes") else {"-d", "-o"}
    wanted |= {option for option in ("--num_workers",) if option in text}
    for option in wanted:
        assert ALIASES[option] in text
    if "--batch_size" in text:
        assert re.search(
            r"--batch_size BATCH_SIZE\s+images at once; less takes less memory \(default: \d+\)",
            text,
        )


def test_options_without_words_are_left_out():
    def options(**words):
        parser = make_parser("Do it.", output="where to", **words)
        return [action.dest for action in parser._actions]

    assert options() == ["help", "directory", "output"]
    assert options(directory=None) == ["help", "output"]
    more = options(num_workers="threads", batch_size=4)
    assert more == ["help", "directory", "output", "batch_size", "num_workers"]
