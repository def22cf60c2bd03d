"""Laws that hold for any input: configs, YAML, buckets, captions, prompts, keys of files."""

from __future__ import annotations

import contextlib
import math
from functools import cache

import numpy as np
import pytest
import tiny
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.buckets import BucketIndex, assign, make_buckets
from modules.caption_text import CaptionProcessor
from modules.config import load, to_yaml
from modules.errors import ConfigError
from modules.prompt_options import PromptFaults, parse_line
from modules.sample_prompts import read_prompts
from modules.yaml_source import YamlSource, escape
from modules.yaml_text import dump, parse
from networks.foreign_names import split_key
from networks.keys import kohya_name, split_component
from networks.matching import known_names

few = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What a YAML file can hold: no control characters, no halves of a pair of UTF-16.
printable = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), max_size=20)
KEYS = (
    "model",
    "path",
    "train",
    "dataset",
    "args",
    "networks",
    "module",
    "save",
    "name",
    "optimizer",
)
keys = st.one_of(st.sampled_from(KEYS), printable)
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 1e308]))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    printable,
    st.sampled_from(["???", "***", "${a}", "${model.path}", "\\${x}", "${", "no", "1e-4", "."]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


def load_text(text: str | bytes, path) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        load(path)


@few
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_any_file_is_a_config_or_a_config_error(tmp_path, content):
    load_text(content, tmp_path / "config.yaml")


@few
@given(st.text("{}[]&*!|>'\"%@`:#-?,~${}.ab01 \n", max_size=80))
def test_anything_like_yaml_is_a_config_or_a_config_error(tmp_path, content):
    load_text(content, tmp_path / "config.yaml")


@few
@given(st.dictionaries(keys, values, max_size=5))
def test_any_values_are_a_config_or_a_config_error(tmp_path, content):
    load_text(yaml.safe_dump(content, allow_unicode=True), tmp_path / "config.yaml")


@few
@given(st.sampled_from(["model", "train", "save", "sample", "optimizer", "ema", "prior"]), values)
def test_any_section_is_one_or_a_config_error(write_config, section, content):
    path = write_config(networks={"lora": {"module": "networks.lora.LoRA"}})
    config = {**yaml.safe_load(path.read_text(encoding="utf-8")), section: content}
    load_text(yaml.safe_dump(config, allow_unicode=True), path)


@few
@given(st.lists(st.one_of(printable, st.text(max_size=30)), max_size=3))
def test_any_command_line_is_overrides_or_a_config_error(write_config, overrides):
    path = write_config(networks={"lora": {"module": "networks.lora.LoRA"}})
    for prefix in ("", "train.", "model.path=", "save.name=", "networks.lora.args="):
        with contextlib.suppress(ConfigError):
            load(path, *(f"{prefix}{each}" for each in overrides))


def same(one, two) -> bool:
    """Whether two plain values are equal; not a number is equal to itself."""
    if isinstance(one, float) and math.isnan(one):
        return isinstance(two, float) and math.isnan(two)
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


@few
@given(values)
def test_yaml_that_is_written_is_read_again(content):
    assert same(parse(dump(content))[0], content)


@few
@given(st.dictionaries(printable.filter(str.isidentifier), values, max_size=4))
def test_escaped_text_is_never_an_interpolation(content):
    source = YamlSource("config", escape(content), {})
    source.resolve()
    assert same(source.values, content) or "???" in repr(content)


@few
@given(printable)
def test_a_config_is_written_and_read_again(write_config, text):
    path = write_config(
        networks={"lora": {"module": "networks.lora.LoRA"}}, dataset={"args": {"path": "."}}
    )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["dataset"]["args"]["prefix"] = text.replace("${", "\\${")
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    try:
        first = load(path)
    except ConfigError:
        assert text in ("???", "***") or "$" in text
        return
    path.write_text(to_yaml(first), encoding="utf-8")
    assert load(path) == first


sides = st.integers(64, 2048)


@few
@given(sides, sides, sides, st.floats(1, 8), st.sampled_from([8, 32, 64]))
def test_buckets_keep_their_limits(resolution, one, two, max_ratio, step):
    low, high = sorted((one, two))
    buckets = make_buckets(
        resolution=resolution, min_length=low, max_length=high, max_ratio=max_ratio, step=step
    )
    square = resolution // step * step
    assert buckets == sorted(set(buckets))
    assert (square, square) in buckets
    assert {(height, width) for width, height in buckets} == set(buckets)
    for width, height in set(buckets) - {(square, square)}:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert low <= min(width, height) <= max(width, height) <= high
        assert max(width, height) / min(width, height) <= max_ratio


@few
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_an_image_goes_to_the_nearest_bucket(width, height):
    buckets = make_buckets(resolution=512, min_length=256, max_length=1024, max_ratio=3, step=64)
    chosen = assign(width, height, buckets)
    assert assign(height, width, buckets) == chosen[::-1]

    def distance(size):
        return abs(math.log(size[0] / size[1]) - math.log(width / height))

    assert distance(chosen) <= min(map(distance, buckets))
    assert assign(width, height, reversed(buckets)) in buckets


@few
@given(st.binary(max_size=80))
def test_any_bytes_are_buckets_or_a_value_error(tmp_path, content):
    (tmp_path / "buckets.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"buckets\.json"):
        BucketIndex.load(tmp_path / "buckets.json")


captions = st.lists(st.text("ab ,{}|[trigger].\n", max_size=30), min_size=1, max_size=3)


@few
@given(captions, st.integers(0, 3), st.booleans(), st.integers(0, 2**32))
def test_shuffling_keeps_the_tags_and_the_first_ones(texts, keep, wildcards, seed):
    process = CaptionProcessor(shuffle=True, keep_tokens=keep, wildcards=wildcards)
    drawn = process(texts, np.random.default_rng(seed))
    assert drawn == process(texts, np.random.default_rng(seed))
    if not wildcards and len(texts) == 1:
        tags = [tag for tag in map(str.strip, texts[0].split(",")) if tag]
        found = drawn.split(", ") if drawn else []
        assert found[:keep] == tags[:keep]
        assert sorted(found) == sorted(tags)
    if wildcards:
        assert "{}" not in drawn


@few
@given(captions, st.floats(0.01, 1), st.integers(0, 2**32))
def test_dropping_only_takes_away(texts, chance, seed):
    process = CaptionProcessor(tag_dropout=chance, prefix="<", suffix=">", caption_dropout=0.1)
    drawn = process(texts, np.random.default_rng(seed))
    if drawn:
        assert drawn.startswith("<")
        assert drawn.endswith(">")
        tags = {tag.strip() for text in texts for tag in text.split(",")}
        assert {tag for tag in drawn[1:-1].split(", ") if tag} <= tags
    assert CaptionProcessor(caption_dropout=1.0)(texts, np.random.default_rng(seed)) == ""
    assert CaptionProcessor().whole(texts) == texts[0]


@few
@given(st.text(max_size=60), st.lists(st.text("-nwhdlscbt 0123456789.x", max_size=8), max_size=4))
def test_any_line_is_a_prompt_or_a_fault(text, options):
    line = " ".join([text, *(f"--{option}" for option in options)])
    with contextlib.suppress(PromptFaults):
        assert parse_line(line, "prompts.0").prompt is not None


@few
@given(st.binary(max_size=80), st.sampled_from([".txt", ".json", ".toml"]))
def test_any_file_is_prompts_or_a_value_error(tmp_path, content, suffix):
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert read_prompts(str(path))


@cache
def models():
    return tiny.make_sd(), tiny.make_sdxl()


@pytest.mark.parametrize("number", [0, 1])
def test_names_in_files_lead_back_to_their_modules(number):
    model = models()[number]
    names = known_names(model)
    assert len(set(names.values())) > 50
    for name, path in names.items():
        component, inside = split_component(path)
        assert component in model.component_prefixes
        assert f"{component}.{inside}" == path
        key = split_key(f"{name}.lora_down.weight")
        assert (key.name, key.factor) == (name, "lora_down.weight")
    assert all(names[kohya_name(model, path)] == path for path in set(names.values()))


@few
@given(st.one_of(st.text(max_size=60), st.text("lora_unetA.down_weight0", max_size=60)))
def test_any_key_is_one_of_a_layer_or_none(key):
    found = split_key(key)
    assert found is None or (found.name and found.factor)
