"""A run that may reach for no other machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import main

SCRIPT = """
import sys
{first}
from modules.offline import stay_offline
stay_offline()
import huggingface_hub.constants
print(huggingface_hub.constants.HF_HUB_OFFLINE, "torch" in sys.modules)
"""


def test_the_hub_is_left_alone_whether_it_is_imported_yet_or_not():
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    for first in ("", "import huggingface_hub.constants"):
        finished = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(first=first)],
            env=environment,
            cwd=Path(main.__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert finished.stdout.split() == ["True", "False"]
