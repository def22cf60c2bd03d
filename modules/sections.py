"""The sections of a config: frozen dataclasses, whose fields' documentation stands under them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from omegaconf import MISSING

from modules.numbers import Count, Fraction, Natural, NonNegative, Rate
from modules.sampler_names import SamplerName
from modules.save_section import SaveConfig
from modules.schema import Within
from modules.train_section import TrainConfig
from modules.validation_section import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class ComponentConfig:
    module: str = MISSING
    """Dotted path of a class or function: one of ours, of a package, or in a file of your own."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str = MISSING
    """Base model: a diffusers directory, one .safetensors or .ckpt file, or a hub id."""
    vae: str | None = None
    """Another VAE: a directory, a file or a hub id."""
    offline: bool = False
    """Reach for no other machine: a model of the hub must be in its cache, wandb stays here."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What a single file predicts; null asks its markers and its kind, and measures an SD2."""
    max_token_length: Literal[75, 150, 225] = 75
    """Tokens of a caption that are read: one, two or three chunks of CLIP's length."""
    clip_skip: Count | None = None
    """Layer at which text encoders are read, from their end; null is 1, for XL 2."""
    quantize: Literal["int8", "fp8", "nf4"] | None = None
    """Store frozen weights of denoiser and text encoders in 8 or 4 bits: less memory, less exact,
    a little slower. Nothing of the base can be trained then."""
    offload_blocks: Natural = 0
    """So many blocks of the denoiser, the largest, rest in the machine's memory and come to the
    card when they compute: less of its memory, more time. Nothing of the base can be trained."""
    trainable: list[str] = field(default_factory=list)
    """Parts of the base that are trained: module paths as `unet`, `unet.up_blocks`,
    `text_encoders`, `text_encoders.0`; `*` stands for anything. Or of the VAE: `vae.decoder`."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    module: str = "modules.dataset.LatentDataset"
    """Dotted path of the dataset's class."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments; `path` is the dataset's directory."""
    shuffle: bool = True
    """Draw the images in a new order each epoch."""
    num_workers: Natural = 0
    """Processes that read data; 0 reads in the training process, which suits cached latents."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    module: str = MISSING
    """Dotted path of the network's class."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""
    learning_rate: Rate | None = None
    """Its learning rate, or one for each part by module path; null takes
    `train.learning_rate`."""
    train: bool = True
    """false: applied, but not trained."""
    resume: str | None = None
    """A file of this network to begin with, of whatever program; of a ControlNet its directory."""
    merge: bool = False
    """With `train: false`: merge it into the base first, instead of keeping it beside."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    module: str = "modules.dataset.LatentDataset"
    """Dotted path of the dataset's class."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments; `path` is the directory of the class images."""
    loss_weight: NonNegative = 1.0
    """Weight of their loss beside that of the dataset's images."""
    num_workers: Natural = 0
    """Processes that read them."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    decay: Annotated[float, Within(0, 1)] = 0.999
    """How much of the average each step keeps; the first steps keep less."""
    save: Literal["beside", "instead"] = "beside"
    """Save the average beside the weights, as `<name>-ema`, or instead of them."""
    sample: bool = True
    """Draw validation images with the average, and measure held-out ones."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    module: str | None = None
    """Dotted path of the objective's class; null takes what the model was trained with."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments: `timestep_range`, `noise_offset`, `min_snr_gamma`."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    module: str = "torch.optim.AdamW"
    """Dotted path of the optimizer's class, of any package."""
    args: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments, except the learning rate."""
    fused_backward: bool = False
    """Each weight takes its step within the backward pass, as soon as its gradient is there, which
    is then let go: less memory for full fine-tuning. Needs `train.max_grad_norm: 0`."""


@dataclass(frozen=True, kw_only=True)
class LrSchedulerConfig:
    name: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
    ] = "constant"
    """How the learning rate moves over the run."""
    warmup_steps: Natural | None = None
    """Optimizer steps in which the learning rate rises from 0."""
    warmup_ratio: Fraction | None = None
    """The same as a fraction of all steps."""
    num_cycles: Count = 1
    """Cycles of `cosine_with_restarts`."""
    power: NonNegative = 1.0
    """Power of `polynomial`."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    prompts: list[str | dict[str, Any]] | str | None = None
    """Prompts of the validation images: a list, or a .txt file with one in each line, .json or
    .toml, each with settings of its own if you like; null takes captions of the dataset."""
    num_images: Count = 4
    """How many captions of the dataset are taken, or images where the VAE is trained."""
    extras: dict[str, list[str]] = field(default_factory=dict)
    """Files for what networks ask for, one for each prompt or one for all: `{control: [a.png]}`;
    without them the dataset's own serve."""
    negative_prompt: str = ""
    """What the images should not show."""
    width: Count | None = None
    """Width in pixels; null takes that of the images which the model was made for."""
    height: Count | None = None
    """Height in pixels, likewise."""
    num_inference_steps: Count = 25
    """Denoising steps of an image."""
    guidance_scale: NonNegative = 7.5
    """Classifier-free guidance; 1 switches it off."""
    sampler: SamplerName = "ddim"
    """How an image is drawn."""
    tome: bool = False
    """Merge tokens as `train.tome_ratio` says; false draws with all of them."""
    seed: Natural = 0
    """Seed of the first prompt; the second has one more, and so on."""
    every_epochs: Count | None = None
    """Epochs between two grids; the end of the run always gets one."""
    every_steps: Count | None = None
    """Optimizer steps between two grids."""
    at_start: bool = True
    """Draw a grid before training, to compare with."""
    as_saved: bool = False
    """Draw with what is trained rounded to `save.dtype`, as other programs will read it."""
    module: str = "modules.samplers.GridSampler"
    """Dotted path of the sampler's class; where the VAE is trained, reconstructions take the place
    of this one."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of a sampler of your own."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    """The base model."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    """The images and captions."""
    prepare: list[ComponentConfig] = field(default_factory=list)
    """Functions that are called before the dataset is read, in this order, as the preprocess
    scripts' own: `preprocess.bucketing.bucketing`."""
    prior: PriorConfig | None = None
    """Images of the subject's class beside those of the dataset, so that it isn't forgotten
    (Dreambooth's prior preservation)."""
    networks: dict[str, NetworkConfig] = field(default_factory=dict)
    """What is added to the base, by names of your own; the order is that of conditioning."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is noised, what is predicted, how it is weighted."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    lr_scheduler: LrSchedulerConfig = field(default_factory=LrSchedulerConfig)
    """The learning rate over the run."""
    ema: EmaConfig | None = None
    """An exponential moving average of what is trained; without this section there is none."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and how it is trained."""
    save: SaveConfig = field(default_factory=SaveConfig)
    """Where and when weights are written."""
    sample: SampleConfig | None = None
    """Validation images; without this section there are none."""
    validation: ValidationConfig | None = None
    """The loss of images that are not trained on; without this section none are held out."""
    loggers: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """Where metrics go besides metrics.jsonl: `tensorboard:`, `wandb: {project: cats}`."""
