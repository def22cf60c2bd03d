import dataclasses
import inspect

import pytest

from modules.config import Config
from modules.dataset import LatentDataset
from modules.foreign_names import FOREIGN_NAMES, FOREIGN_PLACES, PLACES
from modules.hints import key_hint, nearest
from modules.objectives import Diffusion
from modules.samplers import GridSampler
from modules.sections import EmaConfig, PriorConfig, TrainConfig, ValidationConfig
from networks.lora import LoRA

OPTIONAL = (PriorConfig, EmaConfig, ValidationConfig)


def test_nearest_names():
    assert nearest("AdamW8bit", ["Adam", "AdamW", "SGD"]) == "; did you mean 'AdamW'?"
    assert nearest("lora", ["LoRA", "nn"]) == "; did you mean 'LoRA'?"
    assert nearest("network_dim", ["rank", "dim"]) == "; did you mean 'rank'?"
    assert nearest("quite_different", ["rank"]) == ""


def test_every_hint_leads_to_a_name_that_exists():
    sections = [getattr(Config(), f.name) for f in dataclasses.fields(Config)]
    known = {f.name for s in sections if dataclasses.is_dataclass(s) for f in dataclasses.fields(s)}
    known |= {f.name for section in OPTIONAL for f in dataclasses.fields(section)}
    known |= {f.name for f in dataclasses.fields(Config)} | {"no", "fp16", "bf16"}
    for component in (LatentDataset, LoRA, Diffusion, GridSampler):
        known |= set(inspect.signature(component).parameters)
    assert {target for target in FOREIGN_NAMES.values() if target not in known} == set()
    arguments = known | {"betas", "weight_decay"}
    assert {name for name in PLACES if name not in arguments} == set()
    assert all(place.endswith(f".args.{name}") for name, place in PLACES.items())
    own = {f"validation.{f.name}" for f in dataclasses.fields(ValidationConfig)}
    assert {place for place in FOREIGN_PLACES.values() if place not in own} == set()


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("ip_noise_gamma", "objective.args.input_perturbation"),
        ("multires_noise_discount", "objective.args.pyramid_noise"),
        ("flip_aug", "dataset.args.flip"),
        ("loss_type", "objective.args.loss"),
        ("zero_terminal_snr", "objective.args.zero_terminal_snr"),
        ("scale_weight_norms", "networks.<name>.args.max_norm"),
        ("prior_loss_weight", "prior.loss_weight"),
        ("ema_decay", "ema.decay"),
        ("validation_split", "validation.split"),
        ("validate_every_n_steps", "validation.every_steps"),
        ("early_stopping_patience", "validation.patience"),
    ],
)
def test_other_trainers_options_of_training_are_known(key, place):
    assert key_hint(key, ("train",), TrainConfig, Config) == f"; did you mean '{place}'?"


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("min_snr_gama", "objective.args.min_snr_gamma"),
        ("use_ema", "ema"),
        ("use_emma", "ema"),
        ("network_dimm", "networks.<name>.args.rank"),
        ("learning_rat", "learning_rate"),  # the section's own comes first
    ],
)
def test_other_trainers_options_are_known_misspelt_too(key, place):
    assert key_hint(key, ("train",), TrainConfig, Config) == f"; did you mean '{place}'?"


def test_a_word_like_none_gets_the_list():
    assert key_hint("quite_different", ("train",), TrainConfig, Config).startswith("; allowed: ")
