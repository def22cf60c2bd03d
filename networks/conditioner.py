"""What a network that changes the denoiser's inputs needs besides: files, groups, defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules.batch import Batch, DenoiserInputs
from modules.verification import Comparison, Verified
from networks.files import read_named, write_tensors


class Conditioner(nn.Module):
    """A network beside the base: a subclass makes its parameters and says how it conditions.

    Parameters whose shape depends on the model are made in `attach`, others in the constructor.
    """

    requires: Sequence[str] = ()
    follows_dtype: bool = True

    def attach(self, model: Any) -> None:
        """Do nothing: all parameters are there."""

    def detach(self) -> None:
        """Do nothing: the base is as it was."""

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs:
        """Return the inputs as the denoiser is to see them; `dataclasses.replace` changes them."""
        raise TypeError(f"{type(self).__name__} does not say how it conditions")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"unet": list(self.parameters())}

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write all parameters to a .safetensors file, by their names in the module."""
        write_tensors(path, self.state_dict(), dtype=dtype, metadata=metadata)

    def verify(self, path: Path, *, dtype: torch.dtype) -> Verified:
        """Check that a written file holds the parameters as they are; raises ValueError if not."""
        comparison = Comparison()
        return comparison.result(keys=comparison.add_file(path, self.state_dict(), dtype=dtype))

    def load(self, path: Path) -> None:
        """Take over the parameters of a file.

        Raises:
            ValueError: the file can't be read, or holds other parameters than these.
        """
        device = next(self.parameters()).device  # `meta` where weights aren't wanted
        tensors = {key: value.float().to(device) for key, value in read_named(path).items()}
        try:
            self.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: is no {type(self).__name__}: {reason}") from error
