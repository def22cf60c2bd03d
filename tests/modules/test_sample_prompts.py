"""Prompts of validation images: every form in which people have them."""

from __future__ import annotations

import json

import pytest

from modules.prompt_options import PromptFaults, SamplePrompt, parse_line, parse_mapping
from modules.sample_prompts import read_prompts

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


def told(prompt: SamplePrompt) -> dict:
    """What a prompt says of itself."""
    return {k: v for k, v in vars(prompt).items() if v is not None and k != "where"}


@pytest.fixture
def pose(tmp_path):
    path = tmp_path / "my pose.png"
    path.write_bytes(b"")
    return str(path)


def test_a_line_of_sd_scripts(pose):
    line = (
        "masterpiece, 1girl --n low quality, bad --w 768 --h 512 --d 1 --l 7.5 --s 28 "
        f"--ss k_euler_a --cn {pose}"
    )
    assert told(parse_line(line, "")) == {
        "prompt": "masterpiece, 1girl",
        "negative_prompt": "low quality, bad",
        "width": 768,
        "height": 512,
        "seed": 1,
        "guidance_scale": 7.5,
        "num_inference_steps": 28,
        "sampler": "euler_a",
        "control_image": pose,
    }


def test_a_line_of_ai_toolkit():
    line = "a cat --m 0.8 --seed 42 --cfg 4 --steps 20 --W 64"
    assert told(parse_line(line, "")) == {
        "prompt": "a cat",
        "multiplier": 0.8,
        "seed": 42,
        "guidance_scale": 4.0,
        "num_inference_steps": 20,
        "width": 64,
    }


@pytest.mark.parametrize(
    "line", ["a cat", "a cat -- on a mat - 5", "a well--known cat", "猫、座る"]
)
def test_a_plain_line_is_a_prompt(line):
    assert told(parse_line(line, "")) == {"prompt": line}


def test_an_empty_negative_prompt_is_one():
    assert parse_line("a cat --n", "").negative_prompt == ""
    assert parse_line("--w 64", "") == SamplePrompt(prompt="", width=64)
    assert parse_line("a cat --d -1", "").seed is None


def test_every_fault_of_a_line_is_told():
    line = "a cat --w 5x --steps 0 --wdth 4 --ss eulr --cn no.png --l nan --q 1 --d 1 --seed 2"
    with pytest.raises(PromptFaults) as raised:
        parse_line(line, "p.txt, line 3")
    assert raised.value.faults == [
        "p.txt, line 3: --w wants a whole number, not '5x'",
        "p.txt, line 3: --steps 0 is too small; it must be at least 1",
        "p.txt, line 3: there is no option --wdth; did you mean 'width'?",
        "p.txt, line 3: --ss 'eulr' is no sampler; did you mean 'euler'?",
        "p.txt, line 3: --cn 'no.png' is not a file",
        "p.txt, line 3: --l wants a number, not 'nan'",
        "p.txt, line 3: there is no option --q; known: --n, --w, --h, --d, --l, --s, --ss, --cn, "
        "--m",
        "p.txt, line 3: --seed sets seed a second time; keep one",
    ]


def test_mappings_have_our_names_or_those_of_others(pose):
    ours = {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "width": 64,
        "height": 32,
        "seed": 3,
        "guidance_scale": 5.0,
        "num_inference_steps": 9,
        "sampler": "unipc",
        "control_image": pose,
        "multiplier": 0.5,
    }
    theirs = {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "width": 64,
        "height": 32,
        "seed": 3,
        "scale": 5,
        "sample_steps": 9,
        "sample_sampler": "unipc",
        "controlnet_image": pose,
        "network_multiplier": 0.5,
    }
    assert told(parse_mapping(ours, "")) == ours == told(parse_mapping(theirs, ""))


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({}, "x: prompt is missing"),
        ({"prompt": 5}, "x: prompt is 5, not text"),
        ({"prompt": "a", "width": True}, "x: width wants a whole number, not true"),
        ({"prompt": "a", "width": 1.5}, "x: width wants a whole number, not 1.5"),
        ({"prompt": "a", "seed": 2**63}, "x: seed wants a whole number, not 9223372036854775808"),
        ({"prompt": "a", "negative_prompt": 3}, "x: negative_prompt wants text, not 3"),
        ({"prompt": "a", "scale": [1]}, "x: scale wants a number, not [1]"),
    ],
)
def test_faults_of_mappings(values, fault):
    with pytest.raises(PromptFaults) as raised:
        parse_mapping(values, "x")
    assert raised.value.faults == [fault]


def prompts_of(path) -> list[str]:
    return [prompt.prompt for prompt in read_prompts(str(path))]


def test_a_text_file_has_a_prompt_in_each_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa red cat\n\n# not this\n  a dog --w 64\n", encoding="utf-8")
    assert prompts_of(path) == ["a red cat", "a dog"]
    assert read_prompts(str(path))[1].where == f"{path}, line 4"
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no prompt in it"):
        read_prompts(str(path))
    path.write_bytes("猫".encode("cp932"))
    with pytest.raises(ValueError, match="cannot be read as UTF-8 text"):
        read_prompts(str(path))


def test_json_and_toml_files_of_sd_scripts(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"prompt": "a cat", "scale": 4}, "a dog --w 64"]))
    assert [told(prompt) for prompt in read_prompts(str(path))] == [
        {"prompt": "a cat", "guidance_scale": 4.0},
        {"prompt": "a dog", "width": 64},
    ]
    path = tmp_path / "prompts.toml"
    path.write_text(
        '[prompt]\nwidth = 64\nnegative_prompt = "dog"\n'
        '[[prompt.subset]]\nprompt = "a cat"\n'
        '[[prompt.subset]]\nprompt = "a mat"\nwidth = 32\n'
    )
    assert [told(prompt) for prompt in read_prompts(str(path))] == [
        {"prompt": "a cat", "width": 64, "negative_prompt": "dog"},
        {"prompt": "a mat", "width": 32, "negative_prompt": "dog"},
    ]
    path.write_text('[prompt]\nprompt = "a cat"\n')
    assert prompts_of(path) == ["a cat"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", "{", "is no JSON file"),
        ("p.json", '{"a": "a cat"}', "is no list of prompts"),
        ("p.json", "[]", "has no prompt in it"),
        ("p.json", "[5]", r"p.json, prompt 1: 5 is neither text nor a mapping"),
        ("p.toml", "a", "is no TOML file"),
        ("p.toml", "width = 4", r"has no \[prompt\]"),
        ("p.toml", "[prompt]\nsubset = 4", r"write \[\[prompt.subset\]\]"),
        ("p.toml", "[prompt]\nwidth = 4", "prompt 1: prompt is missing"),
    ],
)
def test_files_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / name))


def test_faults_of_all_prompts_are_told_at_once():
    entries = ["a cat --w 5", "a dog --x 1", {"prompt": "a", "steps": "many"}, 7]
    with pytest.raises(ValueError, match="prompts:") as raised:
        read_prompts(entries)
    assert [line.split(":")[0].strip() for line in str(raised.value).splitlines()] == [
        "prompts",
        "prompts.1",
        "prompts.2",
        "prompts.3",
    ]


def test_the_config_has_prompts_of_every_form(write_config):
    from modules.config import load

    prompts = ["a cat --w 64", {"prompt": "a dog", "steps": 4}]
    config = load(write_config(networks=LORA, sample={"prompts": prompts}))
    assert config.sample.prompts == prompts
    config = load(write_config(networks=LORA, sample={"prompts": ["1girl", 5]}))
    assert config.sample.prompts == ["1girl", "5"]


def test_a_wrong_prompt_stops_before_anything_is_loaded(write_config):
    from modules.config import ConfigError, load
    from modules.trainer import Trainer

    sample = {"prompts": ["a cat --steps x", "a dog --size 4"]}
    config = load(write_config(model={"path": "no/such-model"}, networks=LORA, sample=sample))
    with pytest.raises(ConfigError) as raised:
        Trainer.from_config(config)
    assert "prompts.0: --steps wants a whole number, not 'x'" in str(raised.value)
    assert "prompts.1: there is no option --size" in str(raised.value)
    assert "no/such-model" not in str(raised.value)


def test_a_sampler_that_the_objectives_schedule_forbids_is_told_at_start(write_config):
    from modules.config import ConfigError, load
    from modules.trainer import Trainer

    zero = {"zero_terminal_snr": True}
    given = {"networks": LORA, "train": {"max_train_steps": 1}}
    objective = {"module": "modules.objectives.VPrediction", "args": zero}
    sample = {"prompts": ["a cat", "a dog --ss heun"], "width": 32, "height": 32}
    Trainer.from_config(load(write_config(**given, sample=sample)))
    with pytest.raises(ConfigError, match=r"sample: prompts\.1: sampler: heun can't draw"):
        Trainer.from_config(load(write_config(**given, objective=objective, sample=sample)))


def test_an_unknown_sampler_of_the_config_is_told(write_config):
    from modules.config import ConfigError, load

    with pytest.raises(ConfigError, match=r"sample.sampler.*'eulera'.*did you mean 'euler_a'\?"):
        load(write_config(sample={"sampler": "eulera"}))
