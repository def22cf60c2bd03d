"""Prompts of validation images: from the config, or from a file as people have them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.prompt_options import PromptFaults, SamplePrompt, parse_line, parse_mapping
from modules.value_words import show


def read_prompts(prompts: str | Sequence[Any] | None) -> list[SamplePrompt]:
    """The prompts of a config's list, or of a .txt, .json or .toml file.

    Each is a line with options behind the prompt, or a mapping; see `modules.prompt_options`.

    Raises:
        ValueError: the file can't be read, has no prompt, or lists all that is wrong with them.
    """
    if prompts is None:
        return []
    if isinstance(prompts, str):
        entries, name = _read_file(Path(prompts)), prompts
    else:
        entries, name = [(f"prompts.{n}", entry) for n, entry in enumerate(prompts)], str(prompts)
    if not entries:
        raise ValueError(f"prompts: {name} has no prompt in it")
    found, faults = [], []
    for where, entry in entries:
        try:
            found.append(_parse(entry, where))
        except PromptFaults as wrong:
            faults += wrong.faults
    if len(faults) == 1:
        raise ValueError(faults[0])
    if faults:
        raise ValueError("prompts:" + "".join(f"\n    {fault}" for fault in faults))
    return found


def _parse(entry: Any, where: str) -> SamplePrompt:
    if isinstance(entry, Mapping):
        return parse_mapping(entry, where)
    if isinstance(entry, str):
        return parse_line(entry, where)
    raise PromptFaults([f"{where}: {show(entry)} is neither text nor a mapping with a prompt"])


def _read_file(path: Path) -> list[tuple[str, Any]]:
    """The prompts of a file as they stand there, each with its place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts: {path} cannot be read as UTF-8 text ({error})") from error
    suffix = path.suffix.lower()
    if suffix not in (".json", ".toml"):
        return list(_lines(path, text))
    try:
        content = json.loads(text) if suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"prompts: {path} is no {suffix[1:].upper()} file ({error})") from error
    entries = content if suffix == ".json" else _subsets(path, content)
    if not isinstance(entries, list):
        raise ValueError(f'prompts: {path} is no list of prompts; write [{{"prompt": "a cat"}}]')
    return [(f"{path}, prompt {number}", entry) for number, entry in enumerate(entries, start=1)]


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Lines that are neither empty nor comments."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.strip().startswith("#"):
            yield f"{path}, line {number}", line.strip()


def _subsets(path: Path, content: Mapping[str, Any]) -> list[Any]:
    """The `[[prompt.subset]]`s, each over what `[prompt]` says for all of them."""
    shared = content.get("prompt")
    if not isinstance(shared, Mapping):
        raise ValueError(f"prompts: {path} has no [prompt]; prompts are its [[prompt.subset]]s")
    common = {key: value for key, value in shared.items() if key != "subset"}
    subsets = shared.get("subset", [{}])
    if not isinstance(subsets, list):
        raise ValueError(f"prompts: {path}: write [[prompt.subset]], in double brackets")
    return [{**common, **subset} if isinstance(subset, Mapping) else subset for subset in subsets]
