"""What a file's metadata say of its training, in words: settings, trigger words, receipt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from modules import receipt_keys

SHOWN_TAGS = 10
"""So many of the most frequent tags are shown."""

_SETTINGS = {
    "title": "modelspec.title",
    "author": "modelspec.author",
    "description": "modelspec.description",
    "license": "modelspec.license",
    "usage hint": "modelspec.usage_hint",
    "date": "modelspec.date",
    "base model": "ss_sd_model_name",
    "steps": "ss_steps",
    "epochs": "ss_epoch",
    "images": "ss_num_train_images",
    "resolution": "ss_resolution",
    "batch size": "ss_total_batch_size",
    "learning rate": "ss_learning_rate",
    "of the UNet": "ss_unet_lr",
    "of text": "ss_text_encoder_lr",
    "schedule": "ss_lr_scheduler",
    "optimizer": "ss_optimizer",
    "precision": "ss_mixed_precision",
    "clip skip": "ss_clip_skip",
    "min-SNR gamma": "ss_min_snr_gamma",
    "noise offset": "ss_noise_offset",
    "seed": "ss_seed",
    "comment": "ss_training_comment",
}


def training_settings(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return settings by what they are called, as far as they are set."""
    found = {name: metadata.get(key, "None") for name, key in _SETTINGS.items()}
    return {name: value for name, value in found.items() if value not in ("None", "")}


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """Return what prompts are told to have: a phrase that the file names, or a token."""
    given = (metadata.get("modelspec.trigger_phrase"), metadata.get("ti_token"))
    return [word for word in given if word]


def frequent_tags(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return the most frequent tags of all folders with their counts."""
    counts: Counter[str] = Counter()
    for frequency in _frequencies(metadata):
        for own in frequency.values() if isinstance(frequency, dict) else ():
            for tag, count in own.items() if isinstance(own, dict) else ():
                counts[str(tag).strip()] += count if isinstance(count, int) else 0
    return counts.most_common(SHOWN_TAGS)


def receipt_note(metadata: Mapping[str, str]) -> str | None:
    """Say what the receipt holds; None if there is none."""
    if receipt_keys.CONFIG not in metadata:
        return None
    parts = ["config"]
    if receipt_keys.FILES in metadata:
        listed = "listed" if receipt_keys.MANIFEST in metadata else "in manifest.jsonl of the run"
        parts.append(f"{metadata[receipt_keys.FILES]} files of the dataset ({listed})")
    if receipt_keys.BASE in metadata:
        parts.append(f"base model {metadata[receipt_keys.BASE][:12]}")
    versions = _parsed(metadata.get(receipt_keys.PACKAGES, "{}"))
    if isinstance(versions, dict) and "torch" in versions:
        parts.append(f"torch {versions['torch']}")
    return ", ".join(parts)


def _frequencies(metadata: Mapping[str, str]) -> list[Any]:
    """The counts of tags, which sd-scripts also writes for each dataset."""
    found = [_parsed(metadata.get("ss_tag_frequency", "{}"))]
    if not found[0]:
        datasets = _parsed(metadata.get("ss_datasets", "[]"))
        several = datasets if isinstance(datasets, list) else []
        found = [each.get("tag_frequency") for each in several if isinstance(each, dict)]
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
