"""What every process of `tests/kills.py` needs, imported once in the server that forks them."""

import diffusers  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import main  # noqa: F401
import modules.assembly
import modules.dataset  # noqa: F401
import networks.lora  # noqa: F401

torch.set_num_threads(1)
