"""A run that reaches for no other machine."""

from __future__ import annotations

import os
import sys
from typing import Any

_VARIABLES = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def stay_offline() -> None:
    """Let this process, and those that it starts, take only what is on this machine.

    Models of the hub then come from its cache, or are an error; wandb writes into the run's folder.
    """
    os.environ.update(_VARIABLES)
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # which has read the variable already
        constants.HF_HUB_OFFLINE = True
