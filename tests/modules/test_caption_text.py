"""What becomes of captions: each option alone, together, and with nothing left to chance."""

from __future__ import annotations

import numpy as np
import pytest

from modules.caption_text import CaptionProcessor


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def results(process: CaptionProcessor, *captions: str, count: int = 60) -> set[str]:
    return {process(captions, rng(seed)) for seed in range(count)}


def test_prefix_and_nothing_else_by_default():
    assert CaptionProcessor(prefix="anime, ")(["b,a , c"], rng()) == "anime, b,a , c"
    assert CaptionProcessor(suffix=", best")(["b,a"], rng()) == "b,a, best"


def test_shuffle_keeps_the_first_tags_and_loses_none():
    process = CaptionProcessor(prefix="x, ", shuffle=True, keep_tokens=2)
    tags = list("abcdefgh")
    found = results(process, ", ".join(tags))
    assert len(found) > 30
    for result in found:
        assert result.startswith("x, a, b, ")
        assert sorted(result.removeprefix("x, ").split(", ")) == tags


def test_a_separator_keeps_what_stands_around_it():
    process = CaptionProcessor(shuffle=True, keep_tokens_separator="|||")
    assert results(process, "a, b ||| c, d ||| e") == {"a, b, c, d, e", "a, b, d, c, e"}
    assert results(process, "a ||| b, c") == {"a, b, c", "a, c, b"}
    assert results(process, "b, c") == {"b, c", "c, b"}
    quiet = CaptionProcessor(keep_tokens_separator="|||")
    assert quiet(["a ||| b, c"], rng()) == quiet.whole(["a ||| b, c"]) == "a, b, c"


def test_tags_may_have_another_separator():
    process = CaptionProcessor(shuffle=True, tag_separator=";")
    assert results(process, "a, b; c") == {"a, b; c", "c; a, b"}
    spaces = CaptionProcessor(shuffle=True, tag_separator=" ")
    assert results(spaces, "a b") == {"a b", "b a"}


def test_tag_dropout_drops_each_tag_as_often_as_said_but_for_kept_ones():
    process = CaptionProcessor(tag_dropout=0.25, keep_tokens=1, prefix="x, ")
    generator = rng()
    found = [process(["a, b, c"], generator) for _ in range(2000)]
    assert all(result.startswith("x, a") for result in found)
    for tag in "bc":
        share = sum(tag in result.split(", ") for result in found) / 2000
        assert share == pytest.approx(0.75, abs=0.03)


def test_dropout_empties_the_whole_caption_as_often_as_said():
    process = CaptionProcessor(prefix="x, ", suffix="!", trigger_word="sks", caption_dropout=0.3)
    generator = rng()
    found = [process(["cat"], generator) for _ in range(2000)]
    assert set(found) == {"", "x, sks, cat!"}
    assert found.count("") / 2000 == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of [trigger], smiling", "a photo of sks, smiling"),
        ("a photo", "sks, a photo"),
        ("sks, a photo", "sks, a photo"),
        ("", "sks"),
    ],
)
def test_the_trigger_word_is_in_every_caption_once(caption, expected):
    assert CaptionProcessor(trigger_word="sks")([caption], rng()) == expected


def test_a_trigger_word_that_is_put_in_front_stays_there():
    process = CaptionProcessor(trigger_word="sks", shuffle=True, tag_dropout=0.5)
    assert all(found.startswith("sks") for found in results(process, "a, b, c"))


def test_each_of_several_captions_is_drawn_as_often():
    process = CaptionProcessor()
    generator = rng()
    found = [process(["a", "b", "c"], generator) for _ in range(3000)]
    assert [found.count(x) / 3000 for x in "abc"] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_wildcards_within_wildcards():
    process = CaptionProcessor(wildcards=True)
    assert results(process, "a {red|{light|dark} blue} cat") == {
        "a red cat",
        "a light blue cat",
        "a dark blue cat",
    }
    assert process.whole(["a {red|blue} {cat|dog}"]) == "a red cat"
    assert CaptionProcessor()(["a {red|blue} cat"], rng()) == "a {red|blue} cat"


def test_what_is_left_to_chance_is_named():
    captions = [["a, b"], ["c", "d"], ["{x|y}"]]
    assert CaptionProcessor().chances(captions) == ["several captions"]
    assert CaptionProcessor(caption_dropout=0.5, prefix="p").chances([["a"]]) == []
    every = CaptionProcessor(wildcards=True, shuffle=True, tag_dropout=0.1)
    assert every.chances(captions) == [
        "several captions",
        "wildcards",
        "shuffle_caption",
        "tag_dropout",
    ]
    kept = CaptionProcessor(shuffle=True, tag_dropout=0.1, keep_tokens=2)
    assert kept.chances([["a, b"]]) == []
    assert CaptionProcessor(shuffle=True).chances([["a"]]) == []


def test_nothing_is_left_to_chance_in_a_whole_caption():
    process = CaptionProcessor(
        shuffle=True, tag_dropout=1.0, caption_dropout=1.0, prefix="p ", suffix=" s"
    )
    assert process.whole(["a, b", "c"]) == "p a, b s"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_dropout": 1.1}, "caption_dropout: 1.1 is not within 0 and 1"),
        ({"tag_dropout": -0.1}, "tag_dropout: -0.1 is not within 0 and 1"),
        ({"keep_tokens": -1}, "keep_tokens: -1 is negative"),
        ({"tag_separator": ""}, "tag_separator: is empty"),
        ({"keep_tokens": 1, "keep_tokens_separator": "|||"}, "keep_tokens: is another way"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        CaptionProcessor(**options)
