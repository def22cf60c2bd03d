"""Faults of YAMLs in the original's key names are told in these names, with their lines."""

import pytest
from old_config import BASE, make_place, read

from modules.config import ConfigError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(make_place(tmp_path))


def faults(text, *overrides):
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    first, *lines = str(caught.value).split("\n  ")
    assert first == "old.yaml is not a valid config:"
    return lines


def test_faults_are_told_in_the_names_and_lines_of_the_file():
    text = """\
model:
  input_path: modl
  output_nme: cats
  v_prediction: 1
dataset:
  args: {path: dta, mask: maybe, uncg: 0.1}
save:
  args: {resolution: 640x896, save_n_epochs: 0, seeed: 3}
train:
  train_unet: true
  lr: "1e-5;1e-4"
  lr_scheduler: cosin
  epoch: 10
  batch_size: "16"
  amp: fp8
feature: {step_range: "0.5"}
optimizers: {}
network: {rank: 3, resume: gone.pt, args: {rnk: 3, module: locon}}
networks: {}
lr_scheduler: {}
"""
    assert faults(text, "train.seed=x", "train.lrr=3", "networks.lora.nme=3") == [
        "model.input_path (line 2): 'modl' is neither a directory nor a hub id; did you mean "
        "'model'?",
        "model.output_nme (line 3): no such key; did you mean 'output_name'?",
        "model.v_prediction (line 4): 1 is not true or false",
        "dataset.args.path (line 6): 'dta' is not a directory; did you mean 'data'?",
        "dataset.args.mask (line 6): 'maybe' is not true or false",
        "dataset.args.uncg (line 6): no such key; did you mean 'ucg'?",
        "save.args.resolution (line 8): '640x896' is no size; write width and height as '640,896'",
        "save.args.save_n_epochs (line 8): 0 is out of range; it must be at least 1",
        "save.args.seeed (line 8): no such key; did you mean 'seed'?",
        "train (line 9): has no length; give max_train_epochs or max_train_steps",
        "train.lr (line 11): '1e-5;1e-4' is no learning rate; write a number, or that of the text "
        "encoder and that of the UNet as '5e-6,1e-5'",
        "train.lr_scheduler (line 12): 'cosin' is not one of 'constant', 'constant_with_warmup', "
        "'linear', 'cosine', 'cosine_with_restarts', 'polynomial'; did you mean 'cosine'?",
        "train.epoch (line 13): no such key; did you mean 'epochs'?",
        "train.batch_size (line 14): '16' is not a whole number; write 16 without quotes",
        "train.amp (line 15): 'fp8' is not one of 'bfloat16', 'float16', true, false",
        "feature.step_range (line 16): '0.5' is no range of steps; write two parts of 1, as "
        "'0.0,0.5'",
        "optimizers (line 17): no such key; did you mean 'optimizer'?",
        "network.rank (line 18): no such key; did you mean 'network.args.rank'?",
        "network.resume (line 18): 'gone.pt' is neither a file nor a directory",
        "network.args.rnk (line 18): no such key; did you mean 'rank'?",
        "network.args.module (line 18): 'locon' is not one of 'loha'",
        "networks (line 19): is today's key in a file with the original's; what it says stands in "
        "network, pfg, controlnet there",
        "lr_scheduler (line 20): is today's key in a file with the original's; what it says stands "
        "in train there",
        "train.seed (command line): 'x' is not a whole number",
        "train.lrr (command line): no such key; did you mean 'lr'?",
        "networks.lora.nme (command line): no such key; allowed: module, args, learning_rate, "
        "train, resume, merge",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "overrides", "fault"),
    [
        (
            BASE.replace("model: {input_path: model}", "model: {output_name: x}"),
            (),
            "model.input_path: is missing; it has no default",
        ),
        (
            BASE.replace("input_path: model", "input_path: '???'"),
            (),
            "model.input_path (line 1): ??? stands for a value of yours; set it here or on the "
            "command line",
        ),
        (BASE, ("train.epochs=ten",), "train.epochs (command line): 'ten' is not a whole number"),
        (
            BASE,
            ("train.train_unet=false",),
            "train.train_unet (command line): nothing is trained; add a network, or parts of the "
            "base as [unet]",
        ),
        (
            BASE,
            ("model.output_name=a?b",),
            "model.output_name (command line): 'a?b' is no file name; it may not have / \\ : * ? "
            "in",
        ),
        (
            BASE + "prepare: []\n",
            (),
            "prepare (line 8): is today's key in a file with the original's; give it on the "
            "command line instead",
        ),
        (
            BASE + "  mixed_precision: bf16\n",
            (),
            "train.mixed_precision (line 8): is today's key in a file with the original's; the "
            "original's is 'train.amp'",
        ),
        (
            BASE,
            ("train.max_train_steps=5",),
            "train.max_train_steps (command line): is given beside max_train_epochs; keep one of "
            "them",
        ),
    ],
)
def test_single_faults(text, overrides, fault):
    assert faults(text, *overrides) == [fault]


def test_a_slip_in_one_of_todays_files_stays_one():
    text = "model: {path: model, trainable: [unet]}\n\ntrain: {max_train_epochs: 1, lr: 1}\n"
    assert faults(text) == ["train.lr (line 3): no such key; did you mean 'learning_rate'?"]
