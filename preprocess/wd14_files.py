"""A WD14 tagger's files: found in a directory, or fetched from the Hugging Face hub, and read."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_MODEL = "model.onnx"
_TAGS = ("selected_tags.csv", "tags_info.csv")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w-][\w.-]*)*")

RATING, CHARACTER = 9, 4
"""Categories of tags; all others are general."""


@dataclass(frozen=True)
class Tag:
    """A row of selected_tags.csv; the tagger's outputs are in its rows' order."""

    name: str
    category: int


@dataclass(frozen=True)
class TaggerFiles:
    """Where a tagger is, and what it's called."""

    id: str
    model: Path
    tags: Path | None
    """Models that give features alone have none."""

    @cached_property
    def sha256(self) -> str:
        """Return the hash of the model's file."""
        with self.model.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read_tags(self) -> list[Tag]:
        """Return the tags in the order of the tagger's outputs.

        Raises:
            ValueError: there is no list of tags, or it can't be read.
        """
        if self.tags is None:
            raise ValueError(
                f"{self.model.parent}: has no {_TAGS[0]}, without which outputs have no names; "
                "name a tagger that has one"
            )
        try:
            with self.tags.open(encoding="utf-8-sig", newline="") as file:
                return [Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            reason = f"no column {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{self.tags}: is not a tagger's list of tags ({reason})") from error


def find_tagger(model: str) -> TaggerFiles:
    """Find a tagger's files: in a directory, as an .onnx file, or on the hub.

    On the hub `model` is an id, e.g. `SmilingWolf/wd-vit-tagger-v3`; a folder or an .onnx file of
    the repository may follow it after a slash. What was fetched once is used without the network.

    Raises:
        ValueError: there is no such tagger.
    """
    path = Path(model)
    if path.is_file():
        return _choose(path.resolve().stem, path.parent, os.listdir(path.parent), path.name)
    if path.is_dir():
        return _choose(path.resolve().name, path, os.listdir(path))
    if not _HUB_ID.fullmatch(model):
        raise ValueError(f"{model}: no such directory")
    owner, name, *inner = model.split("/")
    file = inner.pop() if inner and inner[-1].endswith(".onnx") else None
    repository, folder = f"{owner}/{name}", "/".join(inner)
    directory = _find_cached(repository) / folder
    if directory.is_dir():
        try:
            return _choose(model, directory, os.listdir(directory), file)
        except ValueError:
            pass  # fetched in part only
    return _fetch(model, repository, folder, file)


def _choose(
    tagger_id: str, directory: Path, names: Collection[str], file: str | None = None
) -> TaggerFiles:
    """Choose the model among a directory's files, unless one is named, and its list of tags."""
    models = sorted(name for name in names if name.endswith(".onnx"))
    if file is None:
        file = _MODEL if _MODEL in models or len(models) != 1 else models[0]
    if file not in names:
        found = f", but {', '.join(models)}; name one of them" if models else ""
        raise ValueError(f"{tagger_id}: holds no {file}{found}")
    tags = next((directory / name for name in _TAGS if name in names), None)
    return TaggerFiles(tagger_id, directory / file, tags)


def _find_cached(repository: str) -> Path:
    """Return the folder that holds what was fetched from a repository; it may not exist."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        commit = (cache / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        commit = "none"
    return cache / "snapshots" / commit


def _fetch(model: str, repository: str, folder: str, file: str | None) -> TaggerFiles:
    """Fetch the model and its list of tags, and nothing else, of a repository's folder."""
    from huggingface_hub import HfApi, hf_hub_download

    prefix = f"{folder}/" if folder else ""
    try:
        siblings = HfApi().model_info(repository, timeout=10).siblings or []
        names = [s.rfilename for s in siblings if s.rfilename.startswith(prefix)]
        names = [name.removeprefix(prefix) for name in names]
        chosen = _choose(model, Path(), names, file)
        wanted = [n for n in names if n.startswith(chosen.model.name)]  # external data too
        wanted += [chosen.tags.name] if chosen.tags else []
        paths = {name: Path(hf_hub_download(repository, prefix + name)) for name in wanted}
    except ValueError:
        raise
    except Exception as error:  # the hub's own errors, its HTTP library's, the system's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{model}: there is no such directory here, and the Hugging Face hub did not give a "
            f"tagger of that name ({reason}); name a directory that holds {_MODEL} and {_TAGS[0]}"
        ) from error
    tags = paths[chosen.tags.name] if chosen.tags else None
    return TaggerFiles(model, paths[chosen.model.name], tags)
