"""All commands of tools/ are asked in the same words and end alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.command import check_new, make_parser, run_command

ROOT = Path(__file__).parents[2]
TOOLS = sorted(
    path.stem
    for path in (ROOT / "tools").glob("*.py")
    if "\n    parser = make_parser(__doc__" in (text := path.read_text(encoding="utf-8"))
    and '__name__ == "__main__"' in text
)
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


def test_every_tools_help_is_quick_and_begins_with_what_it_does(tmp_path):
    """From any directory, without torch."""
    paths = {name: str(ROOT / "tools" / f"{name}.py") for name in TOOLS}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *paths.values()],
        cwd=tmp_path,
        env={"PATH": "", "COLUMNS": "200", "SYSTEMROOT": "C:\\Windows"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    found = json.loads(done.stdout)
    assert {"convert", "convert_ckpt", "convert_controlnet"} <= set(TOOLS)
    for name, path in paths.items():
        text, packages = found[path]
        assert text.startswith(f"usage: {name}.py [-h] ")
        assert f"python tools/{name}.py " in text
        assert not {"torch", "diffusers", "transformers", "safetensors"} & set(packages), name


def test_the_parser_has_what_is_described(capsys):
    parser = make_parser("Do it.\n\npython tools/do.py a -o b", input="this", output="that")
    options = parser.parse_args(["a", "-o", "b"])
    assert (options.input.name, options.output.name) == ("a", "b")
    assert set(vars(options)) == {"input", "output"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "Do it.\n\npython tools/do.py a -o b" in capsys.readouterr().out


@pytest.mark.parametrize(("default", "expected"), [("fp16", "fp16"), ("", None)])
def test_precision(default, expected):
    parser = make_parser("Do it.", dtype=default)
    assert parser.parse_args([]).dtype == expected
    assert parser.parse_args(["--dtype", "bf16"]).dtype == "bf16"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("a: is wrong"), 2, "a: is wrong\n"),
        (OSError("disk full"), 2, "disk full\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_what_goes_wrong_is_one_line(error, status, words, capsys):
    def job():
        raise error

    assert run_command(job) == status
    assert capsys.readouterr().err == words


def test_the_end_is_printed(capsys):
    assert run_command(lambda: "3 tensors") == 0
    assert run_command(lambda: None) == 0
    assert capsys.readouterr().out == "3 tensors\n"


def test_nothing_is_overwritten(tmp_path):
    check_new(tmp_path / "new")
    with pytest.raises(ValueError, match="exists already; give another name"):
        check_new(tmp_path)
    with pytest.raises(ValueError, match=r"a\.pt: would be a \.safetensors file"):
        check_new(tmp_path / "a.pt", suffix=".safetensors")


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can't be written") as told:
        check_new(tmp_path / "file" / "folder" / "new.safetensors")
    assert str(told.value).startswith(str(tmp_path / "file" / "folder" / "new.safetensors"))
    check_new(tmp_path / "not" / "there" / "yet.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
