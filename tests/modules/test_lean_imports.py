"""What is imported, each time in a process of its own."""

import subprocess
import sys

import pytest

pytest.importorskip("bitsandbytes")

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
    code = CODE.format(first="import diffusers.models" if before else "")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(before), "True"]
