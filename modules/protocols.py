"""What the trainer asks of the parts that a person may replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter

from modules.batch import Batch, DenoiserInputs

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from modules.run_metadata import RunMetadata


class Objective(Protocol):
    """What is noised, what is predicted, how it is weighted."""

    def sample_noise(self, clean: Tensor) -> Tensor: ...

    def sample_timesteps(self, batch_size: int, device: torch.device) -> Tensor: ...

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...

    def loss_weight(self, timesteps: Tensor) -> Tensor: ...  # (B,)

    def error(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Of each element, in the prediction's shape."""
        ...


class VaeObjective(Protocol):
    """How a VAE is trained; a class with this method makes the run one that trains the VAE."""

    def reconstruction_loss(self, vae: Any, batch: Batch) -> Tensor:
        """Of each image, (B,); `vae` is an AutoencoderKL of diffusers."""
        ...


@runtime_checkable
class Network(Protocol):
    """Something that is added to the base model, trained or only applied; a torch module.

    It may also have `suffixes`, the endings of its files ("" for a directory; else it is saved as
    .safetensors), `check_extras(extras)`, which raises ValueError if it can't use what the
    dataset gives, `describe(model)`, the metadata of its files, `file_kind`, what ModelSpec calls
    them ("lora"), `verify(path, *, dtype)`, which reads what `save` wrote again, raises ValueError
    if it is not what is live, and returns a `modules.verification.Verified`, `after_step()`, called
    after each optimizer step, `follows_dtype`, True if what it does inside of the denoiser's layers
    is right in half precision without autocast, and by pattern of its parameters' paths
    `rate_factors`, what their learning rate is multiplied by, and `undecayed`, those that are kept
    from weight decay.
    """

    requires: Sequence[str]  # keys of Batch.extras

    def attach(self, model: Any) -> None: ...

    def detach(self) -> None: ...

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs: ...

    def parameter_groups(self) -> Mapping[str, Sequence[Parameter]]:
        """Parameters by where they work: "unet", "text_encoders.0", or a path in it.

        Trained are those that require gradients.
        """
        ...

    def load(self, path: Path) -> None: ...

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None: ...


class Run(Protocol):
    """What savers and samplers see of a training run; `modules.trainer.Trainer` is one."""

    name: str
    directory: Path  # the run's folder
    step: int  # finished optimizer steps
    steps_per_epoch: int
    max_train_steps: int
    model: Any  # modules.models.base.DiffusionModel
    networks: dict[str, Network]
    trained_base: dict[str, Parameter]  # of the base model, by module path
    metadata: RunMetadata  # of what is written

    @property
    def epoch(self) -> int: ...

    @property
    def asks_for_save(self) -> bool:
        """Whether a person wants the weights of this step, due or not."""
        ...

    def versions(self) -> Mapping[str, Callable[[], AbstractContextManager]]:
        """What is saved: contexts in which the weights are so, by what their files' names add."""
        ...

    def sampled_weights(self) -> AbstractContextManager:
        """The weights as images are drawn with them."""
        ...

    def autocast(self) -> AbstractContextManager: ...

    def log_images(self, key: str, images: Sequence[Image], captions: Sequence[str]) -> None: ...

    def log_metrics(self, measured: Mapping[str, float]) -> None: ...


class Saver(Protocol):
    """Writes weights.

    It may also have `rehearse(run)`, which writes all that it would write at the end into the run's
    folder, raises if that fails, changes nothing of itself, and returns how many saves are to come.
    """

    def save_if_due(self, run: Run, *, last: bool) -> None: ...


class Sampler(Protocol):
    """Draws validation images.

    It may also have `rehearse(run)`, which draws one, keeps nothing and changes nothing of itself,
    and returns how many are to come.
    """

    def sample_if_due(self, run: Run, *, last: bool) -> None: ...
