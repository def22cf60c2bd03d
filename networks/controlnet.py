"""ControlNet: a copy of the UNet's first half that reads a guide image (arXiv:2302.05543)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ControlNetModel
from torch import Tensor

from modules.batch import Batch, DenoiserInputs
from modules.verification import Comparison, Verified
from networks.conditioner import Conditioner
from networks.files import write_tensors
from networks.key_rules import CONTROLNET_KEYS, check_keys

logger = logging.getLogger(__name__)

EMBEDDING_CHANNELS = (16, 32, 96, 256)
"""Of the guide image's embedding, each half the size of the one before; for a VAE factor of 8."""

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_DOWN, _MID = "down_block_additional_residuals", "mid_block_additional_residual"


class ControlNet(Conditioner):
    """Adds what a guide image says to the UNet's skip connections.

    A new one is a copy of the UNet and changes nothing; `resume` reads a diffusers ControlNet
    directory. Several in one run add up.

    Args:
        global_average_pooling: what is added is the mean over all positions, for guides that say
            what and not where; null takes what the resumed one was trained with, false for a new
            one.
        guide: the dataset's side input that holds the guide images: RGB, 0..1.
        multiplier: strength at which it is applied.
    """

    file_kind: ClassVar[str] = "controlnet"
    suffixes: ClassVar[Sequence[str]] = ("",)  # a directory
    net: ControlNetModel

    def __init__(
        self,
        *,
        global_average_pooling: bool | None = None,
        guide: str = "control",
        multiplier: float = 1.0,
    ):
        super().__init__()
        self.global_average_pooling = global_average_pooling
        self.guide = guide
        self.requires = (guide,)
        self.multiplier = multiplier

    def attach(self, model: Any) -> None:
        """Copy the first half of the model's UNet.

        Raises:
            ValueError: the model's latents are not of a size that a guide image can be brought to,
                or its UNet is of a kind that there are no ControlNets for.
        """
        levels = model.vae_scale_factor.bit_length()
        if levels > len(EMBEDDING_CHANNELS):
            raise ValueError(
                f"the VAE makes images {model.vae_scale_factor} times smaller; a ControlNet is for "
                f"at most {2 ** (len(EMBEDDING_CHANNELS) - 1)} times"
            )
        unet = model.denoiser
        try:
            with next(unet.parameters()).device:
                self.net = ControlNetModel.from_unet(
                    unet, conditioning_embedding_out_channels=EMBEDDING_CHANNELS[:levels]
                )
        except ValueError as error:
            raise ValueError(
                f"diffusers has no ControlNet for this model's UNet ({error}); take it out"
            ) from error
        _narrow(self.net, model.latent_channels)
        self.net.to(torch.float32)
        self._take_over_pooling()

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs:
        """Add the residuals of the guide images to those already there."""
        down, mid = self.net(
            inputs.sample,
            inputs.timestep,
            encoder_hidden_states=inputs.encoder_hidden_states,
            controlnet_cond=batch.extras[self.guide],  # (B, 3, H, W)
            conditioning_scale=self.multiplier,
            added_cond_kwargs=dict(inputs.added_cond_kwargs) or None,
            return_dict=False,
        )
        earlier = inputs.residuals
        if earlier:
            down = [a + b for a, b in zip(earlier[_DOWN], down, strict=True)]
            mid = earlier[_MID] + mid
        return replace(inputs, residuals={_DOWN: tuple(down), _MID: mid})

    def check_extras(self, extras: Mapping[str, Tensor]) -> None:
        """Check the guide of one image.

        Raises:
            ValueError: it is no RGB image.
        """
        shape = tuple(extras[self.guide].shape)
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(
                f"{self.guide!r} has shape {shape}, a guide image has (3, H, W); write "
                f"`{self.guide}: image` in dataset.args.extras, and name image files in "
                "sample.extras"
            )

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write a directory that diffusers' pipelines load."""
        path.mkdir(parents=True, exist_ok=True)
        self.net.save_config(path)
        write_tensors(path / _WEIGHTS, self.net.state_dict(), dtype=dtype, metadata=metadata)

    def verify(self, path: Path, *, dtype: torch.dtype) -> Verified:
        """Check that a written directory is a ControlNet of diffusers with these tensors."""
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if config.get("_class_name") != "ControlNetModel":
            raise ValueError(f"config.json: is of {config.get('_class_name')}")
        comparison, live = Comparison(), self.net.state_dict()
        check_keys(live, CONTROLNET_KEYS)
        keys = comparison.add_file(path / _WEIGHTS, live, dtype=dtype)
        return comparison.result(keys=keys)

    def load(self, path: Path) -> None:
        """Take over a ControlNet of a diffusers directory.

        Raises:
            ValueError: the directory is no ControlNet, or one for another kind of model.
        """
        fresh, net = self.net, read_controlnet(path)
        expected = {key: value.shape for key, value in fresh.state_dict().items()}
        found = {key: value.shape for key, value in net.state_dict().items()}
        if found != expected:
            key = next(k for k in {**expected, **found} if expected.get(k) != found.get(k))
            raise ValueError(
                f"{path}: is a ControlNet for another kind of model: {key} has shape "
                f"{_shape(found.get(key))}, this model's would have {_shape(expected.get(key))}"
            )
        self.net = net.to(next(fresh.parameters()).device)
        self._take_over_pooling()

    def _take_over_pooling(self) -> None:
        wanted = self.global_average_pooling
        if wanted is not None:
            self.net.register_to_config(global_pool_conditions=wanted)


def read_controlnet(path: Path) -> ControlNetModel:
    """Load a ControlNet of a diffusers directory in float32.

    Raises:
        ValueError: the directory is no ControlNet, or lacks some of its tensors.
    """
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path}: is no diffusers ControlNet directory (it has no config.json); a single "
            "file can be converted with tools/convert.py"
        )
    try:
        net = ControlNetModel.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except Exception as error:  # safetensors and pickle raise kinds of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: the ControlNet can't be read ({reason})") from error
    missing = [key for key, value in net.state_dict().items() if value.is_meta]
    if missing:
        raise ValueError(f"{path}: is no whole ControlNet, it has no {missing[0]}")
    return net


def _narrow(net: ControlNetModel, channels: int) -> None:
    """Take away input channels behind the sample's, which every reader leaves out for it."""
    net.conv_in.weight = torch.nn.Parameter(net.conv_in.weight[:, :channels].clone())
    net.conv_in.in_channels = channels
    net.register_to_config(in_channels=channels)


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(tuple(shape))
