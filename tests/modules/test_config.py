import dataclasses
import time

import pytest

from modules.config import ConfigError, load, to_yaml

BASE = """\
model:
  path: model
dataset:
  args: {path: data}
networks:
  lora:
    module: networks.lora.LoRA
train:
  max_train_steps: 2
"""
SECTIONS = (
    "allowed: model, dataset, prepare, prior, networks, objective, optimizer, lr_scheduler, ema, "
    "train, save, "
    "sample, validation, loggers"
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A directory with a model and a dataset that look right from outside."""
    for folder in ("model", "data", "empty", "vae"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "vae" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a cat\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text, *overrides):
    with open("cat.yaml", "w", encoding="utf-8") as file:
        file.write(text)
    return load("cat.yaml", *overrides)


def faults(text, *overrides):
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    first, *lines = str(caught.value).split("\n  ")
    assert first == "cat.yaml is not a valid config:"
    return lines


def test_defaults_and_name_of_the_file():
    config = read(BASE)
    assert config.model.path == "model"
    assert config.networks["lora"].module == "networks.lora.LoRA"
    assert config.train.max_train_steps == 2
    assert config.train.learning_rate == 1e-4
    assert config.optimizer.module == "torch.optim.AdamW"
    assert config.sample is None
    assert config.save.name == "cat"


def test_all_faults_at_once_in_the_order_of_the_file():
    text = BASE.replace("path: model", "pth: model").replace("path: data", "path: dta")
    text += "  lerning_rate: 1\n  batch_size: 0\nsave: {every_steps: 1, every_epochs: 1}\nrank: 3\n"
    assert faults(text, "lr_scheduler.nme=linear") == [
        "model.pth (line 2): no such key; did you mean 'path'?",
        "model.path: is missing; it has no default",
        "dataset.args.path (line 4): 'dta' is not a directory; did you mean 'data'?",
        "train.lerning_rate (line 10): no such key; did you mean 'learning_rate'?",
        "train.batch_size (line 11): 0 is out of range; it must be at least 1",
        "save.every_steps (line 12): is given beside every_epochs; keep one of them",
        "rank (line 13): no such key; did you mean 'networks.<name>.args.rank'?",
        "lr_scheduler.nme (command line): no such key; did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ("  lr: 1\n", "train.lr (line 10): no such key; did you mean 'learning_rate'?"),
        ("  epochs: 1\n", "train.epochs (line 10): no such key; did you mean 'max_train_epochs'?"),
        ("  amp: fp16\n", "train.amp (line 10): no such key; did you mean 'mixed_precision'?"),
        ("  rank: 4\n", "train.rank (line 10): no such key; did you mean "
         "'networks.<name>.args.rank'?"),
        (
            "  snr_gamma: 5\n",
            "train.snr_gamma (line 10): no such key; did you mean 'objective.args.min_snr_gamma'?",
        ),
        ("  warmup_steps: 5\n", "train.warmup_steps (line 10): no such key; did you mean "
         "'lr_scheduler.warmup_steps'?"),
        ("  guidance_scale: 5\n", "train.guidance_scale (line 10): no such key; did you mean "
         "'sample.guidance_scale'?"),
        ("batch_size: 5\n", "batch_size (line 10): no such key; did you mean 'train.batch_size'?"),
        ("traan: {}\n", "traan (line 10): no such key; did you mean 'train'?"),
        ("network: {}\n", "network (line 10): no such key; did you mean 'networks'?"),
        ("feature: {}\n", f"feature (line 10): no such key; {SECTIONS}"),
        ("on: 1\n", f"on (line 10): no such key; {SECTIONS}"),
    ],
)  # fmt: skip
def test_unknown_keys(extra, fault):
    assert faults(BASE + extra) == [fault]


def test_an_argument_beside_args_of_its_network():
    text = BASE.replace("LoRA\n", "LoRA\n    rank: 4\n")
    assert faults(text) == [
        "networks.lora.rank (line 8): no such key; did you mean 'networks.lora.args.rank'?"
    ]


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("batch_size: '4'", "'4' is not a whole number; write 4 without quotes"),
        ("batch_size: 1.5", "1.5 is not a whole number"),
        ("batch_size: [4]", "[4] is not a whole number"),
        ("batch_size: true", "true is not a whole number"),
        ("batch_size:", "has no value; it must be a whole number"),
        ("batch_size: -1", "-1 is out of range; it must be at least 1"),
        ("seed: .nan", "nan is not a finite number"),
        ("seed: 1e400", "inf is not a finite number"),
        ("seed: 1" + "0" * 400, "1" + "0" * 56 + "... is too large"),
        ("seed: 1" + "0" * 5000, "'1" + "0" * 55 + "... is not a whole number"),
        ("max_grad_norm: .inf", "inf is not a finite number"),
        ("max_grad_norm: -1", "-1.0 is out of range; it must be at least 0"),
        ("learning_rate: -1", "-1.0 is out of range; it must be at least 0"),
        (
            "learning_rate: '1e-2'",
            "'1e-2' is not a number or a mapping of names to values; write 0.01 without quotes",
        ),
        (
            "learning_rate: 1e-5,1e-4",
            "'1e-5,1e-4' is not a number or a mapping of names to values",
        ),
        ("gradient_checkpointing: yes", "'yes' is not true or false or a list; write true"),
        ("gradient_checkpointing: 1", "1 is not true or false or a list"),
        ("mixed_precision: false", "false is not one of 'no', 'fp16', 'bf16'"),
        (
            "mixed_precision: bfloat16",
            "'bfloat16' is not one of 'no', 'fp16', 'bf16'; did you mean 'bf16'?",
        ),
        (
            "mixed_precision: FP16",
            "'FP16' is not one of 'no', 'fp16', 'bf16'; did you mean 'fp16'?",
        ),
    ],
)
def test_wrong_values(value, fault):
    key = value.partition(":")[0]
    assert faults(f"{BASE}  {value}\n") == [f"train.{key} (line 10): {fault}"]


def test_a_fault_within_a_value():
    text = BASE + "  learning_rate: {unet: 1e-4, text_encoders: oops}\n"
    assert faults(text) == ["train.learning_rate.text_encoders (line 10): 'oops' is not a number"]


def test_values_that_are_right():
    config = read(
        BASE + "  mixed_precision: no\n  learning_rate: {unet: 1e-4}\n  batch_size: 4.0\n"
        "save: {name: 007}\nsample:\n  prompts: [a cat, 1:30, no, 12]\n"
    )
    assert config.train.mixed_precision == "no"
    assert config.train.learning_rate == {"unet": 1e-4}
    assert config.train.batch_size == 4
    assert config.save.name == "007"
    assert config.sample.prompts == ["a cat", "1:30", "no", "12"]


def test_empty_file_and_missing_keys():
    missing = [
        "model.path: is missing; it has no default",
        "train: has no length; give max_train_epochs or max_train_steps",
        "model.trainable: nothing is trained; add a network, or parts of the base as [unet]",
    ]
    assert faults("") == missing
    assert faults("# nothing yet\n") == missing
    text = (
        "model:\n  path: model\nnetworks:\n  lora: {}\nprepare:\n  - args: {}\nsample: {seed: 1}\n"
    )
    assert faults(text) == [
        "networks.lora.module: is missing; it has no default",
        "prepare.0.module: is missing; it has no default",
        "train: has no length; give max_train_epochs or max_train_steps",
    ]


def test_values_to_be_given():
    text = BASE.replace("path: model", "path: ???").replace("{path: data}", "\n    path: ???")
    advice = "??? stands for a value of yours; set it here or on the command line"
    assert faults(text) == [
        f"model.path (line 2): {advice}",
        f"dataset.args.path (line 5): {advice}",
    ]
    assert read(text, "model.path=model", "dataset.args.path=data").model.path == "model"


def test_keys_that_exclude_each_other():
    text = BASE + (
        "  max_train_epochs: 2\n"
        "save: {every_steps: 1, every_epochs: 1}\n"
        "lr_scheduler: {warmup_steps: 1, warmup_ratio: .1}\n"
        "sample: {every_steps: 1, every_epochs: 1, prompts: [a]}\n"
    )
    assert faults(text) == [
        "train.max_train_steps (line 9): is given beside max_train_epochs; keep one of them",
        "save.every_steps (line 11): is given beside every_epochs; keep one of them",
        "lr_scheduler.warmup_ratio (line 12): is given beside warmup_steps; keep one of them",
        "sample.every_steps (line 13): is given beside every_epochs; keep one of them",
    ]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("modl", "'modl' is neither a directory nor a hub id; did you mean 'model'?"),
        ("./modl", "'./modl' is neither a directory nor a hub id; did you mean 'model'?"),
        (
            "nowhere/else/model",
            "'nowhere/else/model' is neither a directory nor a hub id ('nowhere/else' does not "
            "exist either)",
        ),
        ("empty", "'empty' is not a diffusers model: it has no model_index.json (it has nothing)"),
        ("cat.yaml", "'cat.yaml' is a file, but none of .safetensors, .ckpt, .pt, .pth, .bin"),
        ("sd.safetensors", "'sd.safetensors' is not there"),
        (
            "https://huggingface.co/owner/sd/tree/main",
            "'https://huggingface.co/owner/sd/tree/main' is a web page; write its hub id, owner/sd",
        ),
        (
            "~/sd",
            "'~/sd' is neither a directory nor a hub id; ~ is not replaced here, write the whole "
            "path",
        ),
        (
            '"models\\new"',
            "'models\\new' is neither a directory nor a hub id; a backslash became a line break or "
            "tab: use 'single quotes' or /",
        ),
        ("D:\\weights\\sd15", "'D:\\weights\\sd15' is neither a directory nor a hub id"),
        ('""', "is empty; give a directory, a file or a hub id"),
        ("", "has no value; it must be text"),
    ],
)
def test_models_that_are_none(path, problem):
    assert faults(BASE.replace("path: model", f"path: {path}")) == [
        f"model.path (line 2): {problem}"
    ]


def test_a_number_for_validation_is_its_split():
    assert read(BASE + "validation: 0.1\n") == read(BASE + "validation: {split: 0.1}\n")
    assert read(BASE, "validation=0.25").validation.split == 0.25
    beyond = "1.5 is out of range; it must be from 0 to 1"
    assert faults(BASE + "validation: 1.5\n") == [f"validation.split (line 10): {beyond}"]
    no_part = "0 leaves nothing to measure or to train; give a part such as 0.1"
    assert faults(BASE, "validation=0") == [f"validation.split (command line): {no_part}"]
    no_section = "true is not a section with keys of its own"
    assert faults(BASE + "validation: true\n") == [f"validation (line 10): {no_section}"]


@pytest.mark.parametrize("path", ["owner/stable-diffusion-v1-5", "gpt2", "./model", "model/"])
def test_models_that_may_be(path):
    assert read(BASE.replace("path: model", f"path: {path}")).model.path == path


def test_other_paths():
    text = BASE.replace("path: model", "path: model\n  vae: empty").replace(
        "LoRA\n", "LoRA\n    resume: lora.safetensors\n"
    )
    assert faults(text + "save: {directory: cat.yaml}\nsample: {prompts: prompst.txt}\n") == [
        "model.vae (line 3): 'empty' is not a VAE: it has no config.json (it has nothing)",
        "networks.lora.resume (line 9): 'lora.safetensors' is neither a file nor a directory",
        "save.directory (line 12): 'cat.yaml' is a file",
        "sample.prompts (line 13): 'prompst.txt' is not a file; did you mean 'prompts.txt'?",
    ]
    for value, problem in [
        ("a cat", "'a cat' is not a file; for one prompt write a list, ['a cat']"),
        ("[]", "is empty; give a prompt or leave `sample` out"),
    ]:
        assert faults(f"{BASE}sample: {{prompts: {value}}}\n") == [
            f"sample.prompts (line 10): {problem}"
        ]
    for path, problem in [("cat.yaml", "'cat.yaml' is a file, not a directory"),
                          ('""', "is empty; give a directory")]:  # fmt: skip
        assert faults(BASE.replace("path: data", f"path: {path}")) == [
            f"dataset.args.path (line 4): {problem}"
        ]
    assert read(BASE + "sample: {prompts: prompts.txt}\n", "model.vae=vae").model.vae == "vae"


def test_a_dataset_that_will_be_prepared_may_be_missing():
    text = BASE.replace("path: data", "path: later")
    assert faults(text) == ["dataset.args.path (line 4): 'later' is not a directory"]
    read(text + "prepare:\n  - {module: a.b}\n")


def test_names_become_file_names():
    text = BASE.replace("  lora:", "  a/b:")
    assert faults(text + "save: {name: a/b}\n") == [
        "networks.a/b (line 6): the name becomes part of a file's name; use letters",
        "save.name (line 10): 'a/b' is no file name; it may not have / \\ : * ? in",
    ]


def test_nothing_is_trained():
    text = BASE.replace("LoRA\n", "LoRA\n    train: false\n")
    assert faults(text) == [
        "model.trainable: nothing is trained; add a network, or parts of the base as [unet]"
    ]
    assert read(text, "model.trainable=[unet]").model.trainable == ["unet"]
    assert faults(text, "model.trainable=unet") == [
        "model.trainable (command line): 'unet' is not a list; write ['unet']"
    ]


def test_sections_of_the_wrong_kind():
    assert faults(BASE.replace("train:\n  max_train_steps: 2\n", "train: 3\n")) == [
        "train (line 8): 3 is not a section with keys of its own",
    ]
    assert faults(BASE + "prepare: {module: a.b}\nloggers: [wandb]\n") == [
        "prepare (line 10): {'module': 'a.b'} is not a list",
        "loggers (line 11): ['wandb'] is not a mapping of names to values",
    ]


@pytest.mark.parametrize(
    "extra",
    [
        "",
        "sample:\n  prompts: [a cat, 'no', '1:30', '1e-4', '007', '???x', '2024', '', ' a ']\n",
        "sample:\n  prompts: ['$\\{x}', 'a \\${b} c', '\\\\${model.path}', '{a}']\n",
        "sample:\n  prompts: [一匹の猫, \"a\\tb\\nc\", 'it''s', 'a: b', '&a', '*a', '<<', '=']\n",
        "optimizer:\n  args: {betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0, fused: null}\n",
        "loggers: {tensorboard: , wandb: {project: cats, on: true}}\nprepare:\n  - module: a.b\n",
    ],
)  # fmt: skip
def test_the_resolved_config_reads_back_the_same(extra, place):
    config = read(BASE + extra)
    again = place / "again.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert load(again) == config
    assert dataclasses.asdict(load(again)) == dataclasses.asdict(config)


def test_interpolated_backslashes_are_what_they_were():
    config = read(BASE + "sample: {prompts: ['a \\${b}', '${train.max_train_steps} cats']}\n")
    assert config.sample.prompts == ["a ${b}", "2 cats"]


def test_a_faulty_file_is_answered_quickly():
    began = time.process_time()
    faults(BASE + "".join(f"  key{n}: 1\n" for n in range(200)))
    assert time.process_time() - began < 2
