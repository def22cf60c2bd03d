"""The section `train`, as those in `modules.sections`: how long and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from modules.numbers import Count, Natural, NonNegative, Rate
from modules.schema import Within


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    learning_rate: Rate = 1e-4
    """Learning rate, or one for each part by module path: `{unet: 1e-4, text_encoders: 5e-5}`."""
    batch_size: Count = 1
    """Images of a batch, on each device."""
    max_train_steps: Count | None = None
    """Optimizer steps of the run; this or `max_train_epochs`."""
    max_train_epochs: Count | None = None
    """Passes over the dataset; this or `max_train_steps`."""
    gradient_accumulation_steps: Count = 1
    """Batches of one optimizer step."""
    gradient_checkpointing: bool | list[str] = False
    """Compute activations again in the backward pass: less memory, about a third more time. Or of
    these blocks alone: `[unet.down_blocks.0, unet.up_blocks]`."""
    minibatch_repeat: Count = 1
    """Each image stands so many times in its batch, with other noise and timesteps; `batch_size`
    counts the repeats."""
    tome_ratio: Annotated[float, Within(0, 0.75)] | None = None
    """Merge this part of the tokens in the UNet's self-attention: faster, a little less exact."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the computation; trained weights stay in float32."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are scaled down to this norm; 0 switches it off."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Attention kernels: PyTorch's own or xformers'."""
    channels_last: bool = False
    """Store the weights of convolutions with their channels last, as NVIDIA's tensor cores want
    them in half precision; on a CPU it gains nothing."""
    compile: bool = False
    """Compile the blocks that the denoiser repeats: fewer and larger kernels, after some minutes of
    compiling in the first steps."""
    cuda_graphs: Natural = 0
    """Launch the denoiser's passes as CUDA graphs, for so many shapes of batches: small batches
    don't wait for the host any more. Takes memory for each shape; 0 makes none."""
    seed: Natural = 0
    """Start of every random number of the run."""
    stop_text_encoders_after: Count | None = None
    """Optimizer steps after which text encoders rest; null trains them to the end."""
    text_memory_gib: NonNegative = 2.0
    """GiB of the machine's memory for outputs of text encoders that are not trained: each caption
    is encoded once where all fit; 0 encodes them in each step."""
    rehearse: bool | None = None
    """Try a step with the largest and the smallest bucket, an image and a save before training,
    and take all of it back; null does where over 500 steps are to come."""
    log_every: Count = 10
    """Optimizer steps between two lines of metrics."""
    max_nonfinite_steps: Count = 20
    """So many steps in a row with a loss or gradient that is not finite, which change nothing, end
    the run."""
    resume: str | None = None
    """Go on with a run: its folder, or `auto` for the newest of this name that can; without one
    `auto` begins anew."""
    accept_changes: list[str] = field(default_factory=list)
    """Keys that may differ from the run that is resumed: `[train.max_train_steps, dataset]`."""
