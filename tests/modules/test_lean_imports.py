"""What is imported, each time in a process of its own."""

import subprocess
import sys

import pytest

CODE = """
import sys
{first}
from modules.lean_imports import import_diffusers
import_diffusers()
import modules.assembly, modules.models.stable_diffusion_xl
print("bitsandbytes" in sys.modules)
import bitsandbytes
print(bool(bitsandbytes.optim.AdamW8bit))
"""


@pytest.mark.parametrize("before", [False, True])
def test_packages_for_quantized_models_wait_until_they_are_asked_for(before):
    """Where diffusers is there already nothing is hidden from it."""
    pytest.importorskip("bitsandbytes")
    code = CODE.format(first="import diffusers.models" if before else "")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(before), "True"]


COLLECTING = """
import gc
{first}
from modules.lean_imports import import_diffusers, without_collecting
passes = []
gc.callbacks.append(lambda phase, details: passes.append(phase))
with without_collecting():
    import_diffusers()
    within = gc.isenabled()
    seen = len(passes)
print(within, seen > 0, gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("", "False False True True"),
        ("import diffusers; gc.set_threshold(1)", "True True True False"),
        ("gc.disable()", "False False False False"),
    ],
    ids=["the first imports", "diffusers is there", "a collector that is off"],
)
def test_the_first_imports_are_not_searched_for_garbage(first, told):
    code = COLLECTING.format(first=first)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == told


def test_what_imports_fail_with_leaves_the_collector_on():
    code = """
import gc
from modules.lean_imports import without_collecting
try:
    with without_collecting():
        raise ImportError
except ImportError:
    print(gc.isenabled())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True"
