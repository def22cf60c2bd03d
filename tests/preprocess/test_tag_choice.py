import numpy as np
import pytest
from tiny_tagger import TAGS

from preprocess.tag_choice import TagChoice, TagSettings
from preprocess.wd14_files import Tag


def settings(**changes):
    defaults = {"threshold": 0.35, "character_threshold": 0.85, "exclude": []}
    return TagSettings(**{**defaults, "rating": False, "keep_underscores": False, **changes})


def test_thresholds_are_by_category():
    tags = [Tag(*tag) for tag in TAGS]
    probabilities = np.full(len(TAGS), 0.6, dtype=np.float32)
    chosen = TagChoice(tags, settings(threshold=0.35, character_threshold=0.85))
    assert chosen.choose(probabilities) == [
        *("1girl", "long hair", "^_^", "(o)_(o)", "blue sky", "solo")
    ]
    chosen = TagChoice(tags, settings(threshold=0.7, character_threshold=0.5))
    assert chosen.choose(probabilities) == ["hatsune miku", "saber (fate)"]


def test_rating_underscores_and_excluded_tags(caplog):
    tags = [Tag(*tag) for tag in TAGS]
    probabilities = np.array([0.1, 0.3, 0.2, 0.1, 0.9, 0.95, 0.5, 0.4, 0.3, 0.99, 0.9, 0.8])
    rated = TagChoice(tags, settings(rating=True, keep_underscores=True))
    assert rated.choose(probabilities) == [
        *("sensitive", "solo", "long_hair", "1girl", "hatsune_miku", "^_^", "(o)_(o)")
    ]
    exclude = ["Long_Hair", "hatsune miku ", "^_^", "sensitive", "no such"]
    some = TagChoice(tags, settings(rating=True, exclude=exclude))
    assert some.choose(probabilities) == ["solo", "1girl", "(o)_(o)"]
    assert "exclude: the tagger has no tag 'no such'" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((e, e) for e in ("0_0", "+_-", "<|>_<|>", ">_<", "6_9", "@_@", "o_o", "|_|", "||_||")),
        *((e, e) for e in ("._.", "=_=", "3_3", ";_;", ">_o", "u_u", "x_x", "<o>_<o>")),
        ("high-waist_skirt", "high-waist skirt"),
        ("a_b_cd", "a b cd"),
        ("k_(ok)", "k (ok)"),
        ("猫_耳飾り", "猫 耳飾り"),
    ],
)
def test_underscores_of_emoticons_stay(name, text):
    assert TagChoice([Tag(name, 0)], settings()).choose(np.ones(1)) == [text]
