"""CLIP's tokenizer from the repository's own file: ids, padding, and other vocabularies."""

from __future__ import annotations

import pytest
import tiny
from transformers import CLIPTokenizer

from modules.models.clip_tokenizer import clip_vocabulary, make_tokenizer, tokenizer_settings
from modules.models.fingerprint import hash_tokenizer

SD1 = {"model_max_length": 77, "pad_token": "<|endoftext|>"}
SD2 = {"model_max_length": 77, "pad_token": "!"}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(CLIPTokenizer, SD1)


def test_ids_are_clips(tokenizer):
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("").input_ids == [49406, 49407]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)


def test_upper_case_and_other_scripts_are_read(tokenizer):
    assert tokenizer("A Photo  OF a cat").input_ids == tokenizer("a photo of a cat").input_ids
    ids = tokenizer("猫の写真 é").input_ids
    assert max(ids[1:-1]) < 49406
    assert tokenizer.decode(ids[1:-1]).replace(" ", "") == "猫の写真é"


@pytest.mark.parametrize(("settings", "pad"), [(SD1, 49407), (SD2, 0)])
def test_padding_is_the_text_encoders_own(settings, pad):
    ids = make_tokenizer(CLIPTokenizer, settings)("a cat", padding="max_length").input_ids
    assert len(ids) == 77
    assert set(ids[4:]) == {pad}


def test_the_vocabulary_has_no_doubles():
    tokens, merges = clip_vocabulary()
    assert len(set(tokens)) == len(tokens) == 49408
    assert len(merges) == 48894


def test_settings_of_clips_own_are_short_and_complete(tokenizer):
    assert tokenizer_settings(tokenizer) == SD1
    assert tokenizer_settings(make_tokenizer(CLIPTokenizer, SD2)) == SD2


def test_another_vocabulary_travels_with_its_settings():
    other = tiny.make_tokenizer()
    again = make_tokenizer(CLIPTokenizer, tokenizer_settings(other))
    assert hash_tokenizer(again) == hash_tokenizer(other)
    assert again.model_max_length == 16
    assert again("a red cat").input_ids == other("a red cat").input_ids
