"""What benchmarks say that a process took."""

import sys

import pytest

from bench.processes import run_whole

PYTHON = sys.executable
SIZE = 200  # MiB


def test_time_is_of_the_processor_and_of_the_clock():
    busy = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(0.5)"
    taken = run_whole([PYTHON, "-c", busy])
    assert 0.5 <= taken.cpu < 0.9
    assert taken.wall >= 1.0


def test_children_count():
    child = "import time\nwhile time.process_time() < 0.5: pass"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}], check=True)"
    assert run_whole([PYTHON, "-c", code]).cpu >= 0.5


def test_memory_is_its_own():
    held = bytearray(SIZE * 2**20)  # by this process, which starts it
    assert run_whole([PYTHON, "-c", ""]).mib < 60
    taken = run_whole([PYTHON, "-c", f"held = bytearray({len(held)})"])
    assert SIZE < taken.mib < SIZE + 60


def test_input_and_variables(tmp_path):
    given = tmp_path / "given.txt"
    given.write_text("7\n", encoding="utf-8")
    code = "import os, sys\nassert sys.stdin.read() + os.environ['ADDED'] == '7\\n8'"
    run_whole([PYTHON, "-c", code], stdin=given, variables={"ADDED": "8"})


def test_one_that_fails_is_named_with_its_errors():
    with pytest.raises(RuntimeError, match=r"(?s)raise ValueError.* failed:.*ValueError: no more"):
        run_whole([PYTHON, "-c", "raise ValueError('no more')"])
