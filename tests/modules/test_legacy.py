"""YAMLs in the key names of the original sd-trainer: what becomes of each key."""

import dataclasses
from typing import get_args, get_type_hints

import pytest
from old_config import BASE, make_place, read

from modules.config import Config, keep_translation, load
from modules.legacy import is_legacy
from modules.legacy_keys import Legacy
from modules.legacy_table import TABLE, WITHOUT_COUNTERPART
from modules.yaml_text import parse

NETWORK = "network: {module: networks.lora.LoRANetwork, args: {}}\n"
CONTROLNET = "controlnet: {resume: null}\n"
PFG = "pfg: {resume: null, args: {}}\n"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(make_place(tmp_path))


def value_at(config, key):
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else getattr(config, part, None)
    return config


EACH_KEY = [
    ("model.input_path=other", {"model.path": "other"}),
    ("model.output_name=cats", {"save.name": "cats", "save.directory": "output"}),
    ("model.output_name=a/b/cats", {"save.name": "cats", "save.directory": "output/a/b"}),
    ("model.v2=true", {"objective.module": None}),
    ("model.v_prediction=true", {"objective.module": "modules.objectives.VPrediction"}),
    ("model.v_prediction=false", {"objective.module": "modules.objectives.Epsilon"}),
    ("model.v_prediction=null", {"objective.module": None}),
    ("dataset.module=my_data.Mine", {"dataset.module": "my_data.Mine"}),
    ("dataset.args.metadata=b.json", {"dataset.args.metadata": "b.json"}),
    ("dataset.args.path=other", {"dataset.args.path": "other"}),
    ("dataset.args.mask=true", {"dataset.args.mask": True}),
    (
        "dataset.args.pfg=true",
        {"dataset.args.extras": {"pfg": "npz"}, "dataset.args.allow_missing_captions": True},
    ),
    ("dataset.args.pfg=false", {"dataset.args.extras": None}),
    (
        "dataset.args.control=true",
        {"dataset.args.extras": {"control": "image"}, "dataset.args.allow_missing_captions": None},
    ),
    ("dataset.args.prefix=anime, ", {"dataset.args.prefix": "anime,"}),
    ("dataset.args.prefix='anime, '", {"dataset.args.prefix": "anime, "}),
    ("dataset.args.prompt=a cat", {"dataset.args.prompt": "a cat"}),
    ("dataset.args.prompt=null", {"dataset.args.prompt": None}),
    ("dataset.args.shuffle=false", {"dataset.shuffle": False, "dataset.args.shuffle": None}),
    ("dataset.args.ucg=0.2", {"dataset.args.caption_dropout": 0.2}),
    ("dataset.loader.args.num_workers=8", {"dataset.num_workers": 8}),
    ("save.module=my_savers.Mine", {"save.module": "my_savers.Mine", "sample": None}),
    ("save.args.wandb_name=cats", {"loggers": {"wandb": {"project": "cats"}}}),
    ("save.args.wandb_name=null", {"loggers": {}}),
    ("save.args.over_write=true", {"save.keep_last": 1}),
    ("save.args.over_write=no", {"save.keep_last": None}),
    ("save.args.save_n_epochs=3", {"save.every_epochs": 3, "sample.every_epochs": 3}),
    (
        "save.args.save_n_steps=100",
        {
            "save.every_steps": 100,
            "save.every_epochs": None,
            "sample.every_steps": 100,
            "sample.every_epochs": None,
        },
    ),
    ("save.args.num_images=6", {"sample.num_images": 6, "sample.prompts": None}),
    ("save.args.num_images=0", {"sample": None}),
    ("save.args.resolution=768,512", {"sample.width": 768, "sample.height": 512}),
    ("save.args.resolution=768", {"sample.width": 768, "sample.height": 768}),
    ("save.args.prompt=a cat", {"sample.prompts": ["a cat"] * 4}),
    ("save.args.negative_prompt=blurry", {"sample.negative_prompt": "blurry"}),
    ("save.args.seed=7", {"sample.seed": 7}),
    ("train.train_unet=true", {"model.trainable": ["unet"]}),
    ("train.train_encoder=true", {"model.trainable": ["unet", "text_encoders"]}),
    ("train.lr='1e-5'", {"train.learning_rate": 1e-5}),
    ("train.lr=2e-5", {"train.learning_rate": 2e-5}),
    ("train.lr=5e-6,1e-5", {"train.learning_rate": 1e-5}),
    (
        "train.lr_scheduler=constant",
        {"lr_scheduler.name": "constant", "lr_scheduler.warmup_ratio": None},
    ),
    (
        "train.lr_scheduler=cosine",
        {"lr_scheduler.name": "cosine", "lr_scheduler.warmup_ratio": 0.05},
    ),
    ("train.epochs=3", {"train.max_train_epochs": 3, "train.max_train_steps": None}),
    ("train.batch_size=16", {"train.batch_size": 16}),
    ("train.amp=bfloat16", {"train.mixed_precision": "bf16"}),
    ("train.amp=float16", {"train.mixed_precision": "fp16"}),
    ("train.amp=true", {"train.mixed_precision": "fp16"}),
    ("train.amp=false", {"train.mixed_precision": "no"}),
    ("train.amp=off", {"train.mixed_precision": "no"}),
    ("train.gradient_checkpointing=true", {"train.gradient_checkpointing": True}),
    ("train.gradient_checkpointing=yes", {"train.gradient_checkpointing": True}),
    ("train.use_xformers=true", {"train.attention": "xformers"}),
    ("train.use_xformers=false", {"train.attention": "sdpa"}),
    ("train.seed=4545", {"train.seed": 4545}),
    ("train.seed=null", {"train.seed": 0}),
    ("train.tome_ratio=0.5", {"train.tome_ratio": 0.5}),
    ("train.tome_ratio=null", {"train.tome_ratio": None}),
    (
        "feature.minibatch_repeat=4",
        {
            "train.minibatch_repeat": 4,
            "train.max_train_epochs": 3,
            "save.every_epochs": 1,
            "sample.every_epochs": 1,
        },
    ),
    ("feature.up_only=true", {"model.trainable": ["unet.up_blocks"]}),
    ("feature.step_range=0.0,0.5", {"objective.args.timestep_range": [0.0, 0.5]}),
    ("feature.step_range=0.0,1.0", {"objective.args": {}}),
    ("feature.test_steps=10", {"train.max_train_steps": 10, "train.max_train_epochs": None}),
    ("feature.test_steps=-1", {"train.max_train_steps": None, "train.max_train_epochs": 10}),
    ("optimizer.module=torch.optim.SGD", {"optimizer.module": "torch.optim.SGD"}),
    ("optimizer.args.weight_decay=0.1", {"optimizer.args": {"weight_decay": 0.1}}),
    ("optimizer.args=null", {"optimizer.args": {}}),
    (
        "network.module=networks.lora.LoRANetwork",
        {
            "networks.lora.module": "networks.lora.LoRA",
            "networks.lora.args.rank": 4,
            "networks.lora.args.alpha": 1.0,
            "networks.lora.args.targets": ["unet", "unet.*.time_emb_proj"],
        },
    ),
    ("network.train=false", {"networks.lora.train": False}),
    ("network.resume=weights.pt", {"networks.lora.resume": "weights.pt"}),
    ("network.args.rank=16", {"networks.lora.args.rank": 16}),
    ("network.args.rank=dynamic", {"networks.lora.args.rank": "dynamic"}),
    (
        "network.args.conv_rank=8",
        {"networks.lora.args.conv_rank": 8, "networks.lora.args.targets": ["unet"]},
    ),
    ("network.args.conv_rank=null", {"networks.lora.args.conv_rank": None}),
    ("network.args.alpha=8", {"networks.lora.args.alpha": 8.0}),
    ("network.args.alpha=null", {"networks.lora.args.alpha": None}),
    ("network.args.multiplier=0.5", {"networks.lora.args.multiplier": 0.5}),
    ("network.args.module=loha", {"networks.lora.module": "networks.loha.LoHa"}),
    ("network.args.module=null", {"networks.lora.module": "networks.lora.LoRA"}),
    ("controlnet.resume=other", {"networks.controlnet.resume": "other"}),
    (
        "controlnet.train=false",
        {
            "networks.controlnet.module": "networks.controlnet.ControlNet",
            "networks.controlnet.train": False,
            "dataset.args.extras": {"control": "image"},
        },
    ),
    (
        "controlnet.global_average_pooling=true",
        {"networks.controlnet.args.global_average_pooling": True},
    ),
    ("pfg.resume=weights.pt", {"networks.pfg.resume": "weights.pt"}),
    (
        "pfg.train=false",
        {
            "networks.pfg.module": "networks.pfg.PFG",
            "networks.pfg.train": False,
            "dataset.args.extras": {"pfg": "npz"},
            "dataset.args.allow_missing_captions": True,
        },
    ),
    ("pfg.args.input_size=1024", {"networks.pfg.args.input_size": 1024}),
    ("pfg.args.num_tokens=5", {"networks.pfg.args.num_tokens": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), EACH_KEY)
def test_each_key(override, expected):
    """As an override in the original's names, which is taken into the file before it is read."""
    config = read(BASE, "train.batch_size=16", override)
    assert {key: value_at(config, key) for key in expected} == expected


def keys_of(section, prefix=""):
    for name, hint in get_type_hints(section).items():
        inner = [kind for kind in (get_args(hint) or (hint,)) if dataclasses.is_dataclass(kind)]
        if inner:
            yield from keys_of(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_no_key_of_the_original_is_forgotten():
    translated = {old for row in TABLE for old in row.old.split()}
    tested = {override.partition("=")[0] for override, _ in EACH_KEY}
    open_mappings = {"optimizer.args", "dataset.loader.args"}
    for key in keys_of(Legacy):
        if key not in WITHOUT_COUNTERPART and key not in open_mappings:
            assert key in translated, key
            assert key in tested, key


def test_what_the_original_did_where_a_file_says_nothing():
    config = read(BASE)
    assert (config.train.max_grad_norm, config.save.keep_last, config.save.every_epochs) == (
        0,
        1,
        1,
    )
    assert config.train.learning_rate == 1e-4
    sample = config.sample
    assert (sample.width, sample.height, sample.seed, sample.num_images) == (640, 896, 4545, 4)
    assert (sample.num_inference_steps, sample.guidance_scale, sample.at_start) == (50, 7.0, False)
    assert config.save.name == "old"
    assert config.dataset.module == "modules.dataset.LatentDataset"
    assert config.dataset.args == {"path": "data"}


@pytest.mark.parametrize(
    ("train", "sections", "base", "targets", "rates"),
    [
        ("train_unet: true", "", ["unet"], None, 1e-5),
        ("train_unet: true, train_encoder: true", "", ["unet", "text_encoders"], None, "both"),
        ("train_unet: false, train_encoder: true", "", ["text_encoders"], None, 5e-6),
        ("train_encoder: true", NETWORK, [], ["text_encoders"], "both"),
        ("train_unet: false", NETWORK, [], [], 1e-5),
        ("train_unet: true, train_encoder: true", NETWORK, ["unet"], ["text_encoders"], "both"),
        ("train_unet: false", CONTROLNET, [], None, 1e-5),
        ("train_unet: true", CONTROLNET, ["unet"], None, 1e-5),
        ("train_unet: false, train_encoder: true", PFG, ["text_encoders"], None, "both"),
        ("train_encoder: true", NETWORK + PFG + CONTROLNET, [], ["text_encoders"], "both"),
        ("train_unet: false", PFG + CONTROLNET, [], None, 1e-5),
        (
            "train_unet: true, train_encoder: true",
            NETWORK.replace("args", "train: false, args"),
            ["unet"],
            ["text_encoders"],
            1e-5,
        ),
        (
            "train_encoder: true",
            NETWORK.replace("args", "train: false, args") + CONTROLNET,
            [],
            ["text_encoders"],
            1e-5,
        ),
        ("train_unet: true", "network: null\npfg:\ncontrolnet: null\n", ["unet"], None, 1e-5),
    ],
)
def test_sections_together(train, sections, base, targets, rates):
    """What is trained, where the adapter attaches, and which rates are given; no more than that."""
    text = BASE.replace(
        "  train_unet: true\n  epochs: 10\n", f"  {{{train}, epochs: 2, lr: '5e-6,1e-5'}}\n"
    )
    config = read(text + sections)
    assert config.model.trainable == base
    names = [name for name in ("network", "pfg", "controlnet") if f"{name}: {{" in sections]
    assert list(config.networks) == ["lora" if name == "network" else name for name in names]
    if targets is not None:
        given = config.networks["lora"].args["targets"]
        assert given == ["unet", "unet.*.time_emb_proj", *targets]
    both = {"text_encoders": 5e-6, "unet": 1e-5}
    assert config.train.learning_rate == (both if rates == "both" else rates)


def test_up_only_is_for_the_adapter_too():
    config = read(BASE + NETWORK + "feature: {up_only: true}\n", "train.train_unet=false")
    assert config.networks["lora"].args["targets"] == [
        "unet.up_blocks",
        "unet.up_blocks.*.time_emb_proj",
    ]


@pytest.mark.parametrize(
    ("epochs", "saved", "repeat", "size", "expected"),
    [(10, 1, 4, 16, (3, 1, 16)), (10, 5, 4, 18, (3, 2, 16)), (4, 4, 4, 4, (1, 1, 4))],
)
def test_a_pass_with_repeats_counts_as_several_epochs(epochs, saved, repeat, size, expected):
    config = read(
        BASE,
        f"train.epochs={epochs}",
        f"save.args.save_n_epochs={saved}",
        f"feature.minibatch_repeat={repeat}",
        f"train.batch_size={size}",
    )
    train, save = config.train, config.save
    assert (train.max_train_epochs, save.every_epochs, train.batch_size) == expected


def test_classes_of_a_persons_own_keep_their_arguments():
    text = """\
model: {input_path: model}
dataset: {module: my_data.Mine, args: {path: data, ucg: 1, depth: 3}}
save: {module: my_savers.Mine, args: {place: here, seed: 1}}
network: {module: my_nets.Net, args: {width: 4, rank: 2}}
train: {train_unet: false, train_encoder: true, epochs: 1}
"""
    config = read(text)
    assert config.dataset.module == "my_data.Mine"
    assert config.dataset.args == {"path": "data", "ucg": 1, "depth": 3}
    assert (config.save.module, config.save.args) == (
        "my_savers.Mine",
        {"place": "here", "seed": 1},
    )
    assert config.networks["lora"].module == "my_nets.Net"
    assert config.networks["lora"].args == {"width": 4, "rank": 2}


def test_overrides_in_either_kind_of_names():
    config = read(
        BASE + NETWORK,
        "train.lr=3e-4",
        "network.args.rank=32",
        "networks.lora.args.alpha=5",
        "model.vae=null",
        "dataset.args.caption_dropout=0.3",
        "save.name=${train.mixed_precision}-cats",
        "train.amp=true",
        "train.mixed_precision=bf16",
    )
    assert config.train.learning_rate == 3e-4
    assert config.networks["lora"].args["rank"] == 32
    assert config.networks["lora"].args["alpha"] == 5
    assert config.dataset.args["caption_dropout"] == 0.3
    assert config.train.mixed_precision == "bf16"
    assert config.save.name == "bf16-cats"


def test_interpolations_and_text_that_looks_like_them():
    text = BASE + "save: {args: {prompt: '\\${x} ${train.epochs} cats', num_images: 1}}\n"
    assert read(text).sample.prompts == ["${x} 10 cats"]
    keep_translation("old.yaml")
    assert load("old.translated.yaml").sample.prompts == ["${x} 10 cats"]


@pytest.mark.parametrize(
    ("text", "legacy"),
    [
        (BASE, True),
        ("feature: {up_only: true}\n", True),
        ("network:\n", True),
        ("train: {lr: 1e-4}\n", True),
        ("", False),
        ("train: {batch_size: 2}\n", False),
        ("model: {path: model}\ntrain: {lr: 1e-4, epochs: 2, amp: true}\n", False),
        ("networks: {}\nmodel: {input_path: model}\n", False),
        (BASE + "sample: {seed: 1}\n", True),
    ],
)
def test_which_files_are_in_the_originals_names(text, legacy):
    assert is_legacy(parse(text)[0] or {}, Config) is legacy
