"""Cached outputs of the text encoders: text/<name>.npz, and an index of their captions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from modules.dataset_files import list_names, read_arrays
from modules.journal import Journal
from modules.shard import Shard

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel
    from modules.prepared_dataset import PreparedDataset

logger = logging.getLogger(__name__)

TEXT_PIECES = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""What a checkpoint's text encoders are called."""

EMPTY = ".empty"
"""Stands for the empty caption; images are never hidden files, so that none has this name."""


def open_text_cache(dataset: PreparedDataset) -> TextCache | None:
    """Open a dataset's cached text; None, with a warning, if it can't serve all its captions.

    Raises:
        ValueError: there is no cache.
    """
    directory, names, captions = dataset.path / "text", dataset.names, dataset.captions
    chances = captions.chances()
    if chances:
        logger.warning(
            "text_cache: has no effect, all captions are encoded while training, since %s makes "
            "them differ from time to time",
            " and ".join(chances),
        )
        return None
    cache = TextCache(directory)
    if not cache.journal.exists:
        raise ValueError(f"{directory}: holds no cached text; run preprocess/latent.py --text")
    misfits = cache.describe_misfits(
        {name: captions.whole(number) for number, name in enumerate(names)}
    )
    if not misfits:
        logger.info("text_cache: the text encoders' outputs are read from %s", directory)
        return cache
    logger.warning(
        "%s: is not used, all captions are encoded while training, since %s; run "
        "preprocess/latent.py --text, with the prefix and prompt of the run",
        directory,
        misfits,
    )
    return None


class TextCache:
    """What `encode_text` of a model gave for the captions of a dataset, one file for each image."""

    def __init__(self, directory: Path, shard: Shard | None = None) -> None:
        self.directory = directory
        self.journal = Journal(directory / "index.jsonl", shard)

    def path(self, name: str) -> Path:
        """Return the file of an image's caption."""
        return self.directory / f"{name}.npz"

    def find(self, name: str) -> dict[str, Any] | None:
        """Return the entry of an image's caption if its file is there."""
        entry = self.journal.entries.get(name)
        return entry if entry is not None and self.path(name).is_file() else None

    def read(self, name: str, caption: str) -> dict[str, Tensor]:
        """Return the outputs, without a batch dimension; an empty caption's if it was dropped."""
        return read_arrays(self.path(name if caption else EMPTY))

    def describe_misfits(self, captions: Mapping[str, str]) -> str:
        """Say which images' captions are missing or others; nothing if all are as they should be.

        `captions` are final ones, by name.
        """
        missing, changed = [], []
        for name, caption in {**captions, EMPTY: ""}.items():
            entry = self.find(name)
            if entry is None:
                missing.append(name)
            elif entry.get("caption") != caption:
                changed.append(name)
        kinds = {"missing": missing, "not the cached ones": changed}
        return "; ".join(
            f"{len(names)} of {len(captions)} captions are {kind}: {list_names(names)}"
            for kind, names in kinds.items()
            if names
        )

    def check(self, model: DiffusionModel, networks: Mapping[str, Any]) -> None:
        """Check that these are the outputs that `model` with `networks` would give.

        Raises:
            ValueError: a text encoder is trained or changed, or the model is another one.
        """
        advice = "its outputs can't be cached; set text_cache: false"
        for number, encoder in enumerate(model.text_encoders):
            if any(parameter.requires_grad for parameter in encoder.module.parameters()):
                raise ValueError(f"text_cache: text_encoders.{number} is trained, {advice}")
        for name, network in networks.items():
            for path in network.parameter_groups():
                if path.startswith("text_encoders"):
                    changed = ".".join(path.split(".")[:2])
                    raise ValueError(f"text_cache: networks.{name} changes {changed}, {advice}")
        weights = (p for encoder in model.text_encoders for p in encoder.module.parameters())
        if any(parameter.is_meta for parameter in weights):
            return  # a trial without weights
        fingerprint = model.text_fingerprint()
        if any(entry.get("text") != fingerprint for entry in self.journal.entries.values()):
            raise ValueError(
                f"text_cache: {self.directory} is of other text encoders than those of "
                f"{model.path}; run preprocess/latent.py --text again with this model"
            )
