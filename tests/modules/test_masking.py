"""Secrets never get into files; what only looks like one does."""

from __future__ import annotations

import pytest

from modules.masking import mask_secrets

SECRETS = """
api_key apikey HF_TOKEN wandb-api-key token password accessKeyId secret aws_secret_access_key
private_key credentials clientSecret
"""


@pytest.mark.parametrize("key", SECRETS.split())
def test_a_secret_is_masked_wherever_it_stands(key):
    given = {"loggers": {"wandb": [{key: "abc"}, {"project": "cats"}]}}
    masked = mask_secrets(given, {})
    assert masked == {"loggers": {"wandb": [{key: "***"}, {"project": "cats"}]}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keep_tokens", 3),
        ("num_tokens", "10"),
        ("keep_tokens_separator", "|||"),
        ("tokens", {"<cat>": "cat", "my-token": "dog", "token": {"init": "cow"}}),
        ("max_token_length", 75),
        ("extras", {"key": "image"}),
        ("path", "/home/someone/models/sd.safetensors"),
        ("prompts", ["a token of love", "monkey"]),
        ("monkey", "business"),
        ("token", None),
        ("api_key", ""),
    ],
)
def test_settings_stay(key, value):
    assert mask_secrets({key: value}, {}) == {key: value}


def test_values_of_secret_variables_are_masked_under_any_key():
    environment = {"WANDB_API_KEY": "0123456789abcdef", "HOME": "/home/someone", "X_TOKEN": "short"}
    given = {"args": {"entity": "0123456789abcdef", "path": "/home/someone/short"}}
    masked = mask_secrets(given, environment)
    assert masked == {"args": {"entity": "***", "path": "/home/someone/short"}}


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ("hf_abcdefghijklmnopqrstuvwxyz", "***"),
        ("s3://key:secret@bucket/cats", "s3://***@bucket/cats"),
        ("https://me:word@host/a.safetensors", "https://***@host/a.safetensors"),
        ("s3://bucket/cats", "s3://bucket/cats"),
        ("a@b.c", "a@b.c"),
    ],
)
def test_tokens_of_known_forms_and_addresses(value, masked):
    assert mask_secrets({"path": value}, {}) == {"path": masked}


def test_a_key_is_masked_if_it_looks_like_one():
    assert mask_secrets({"key": "AKIDEXAMPLE0123456789"}, {}) == {"key": "***"}
