"""Write the YAML back that made a file, and say which data, base model or packages differ now.

    python tools/reproduce.py output/cat/cat.safetensors -o cat_again.yaml

Paths are looked for from the current directory, as a run does. The exit status is 1 if anything
differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules import receipt_keys as keys
from modules.file_hashes import FileHashes, find_weights, hash_weights
from modules.files import write_atomically
from modules.masking import MASK
from modules.package_versions import OURSELVES, package_versions
from modules.yaml_text import parse
from tools.command import check_new, make_parser, run_command
from tools.tensor_listing import list_tensors


@dataclass
class Comparison:
    """What made a file, held against what there is now."""

    config: str
    differing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Whether nothing that is known differs."""
        return not self.differing


def reproduce(file: Path, output: Path | None = None) -> Comparison:
    """Write the YAML of the run that made `file`, and compare; without `output` only compare.

    Raises:
        ValueError: the file can't be read or has no receipt, or `output` exists.
    """
    from tools.data_comparison import compare_data

    if output is not None:
        check_new(output)
    metadata = read_metadata(file)
    if keys.CONFIG not in metadata:
        raise ValueError(
            f"{file}: has no receipt; it was written by another program, or with "
            "save.metadata.content: minimal"
        )
    found = Comparison(metadata[keys.CONFIG])
    if output is not None:
        write_atomically(output, found.config)
    hashes = FileHashes()
    try:
        _compare_weights(found, metadata, hashes)
        compare_data(found, metadata, hashes, beside=file)
    finally:
        hashes.close()
    _compare_packages(found, metadata)
    for key in _masked(parse(found.config)[0]):
        found.unknown.append(f"{key}: was left out of the file; fill it in")
    if keys.DEVICES in metadata:
        device = metadata[keys.DEVICES]
        found.unknown.append(f"device: it was {device}; another one gives other last digits")
    return found


def read_metadata(path: Path) -> Mapping[str, str]:
    """Read the metadata of a file, or of a model's or network's directory.

    Raises:
        ValueError: it is not there, or can't be read.
    """
    if path.is_dir():
        if (path / keys.BESIDE).is_file():
            try:
                return json.loads((path / keys.BESIDE).read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path / keys.BESIDE}: is no JSON ({error})") from error
        inside = sorted(path.glob("*.safetensors"))
        if not inside:
            raise ValueError(f"{path}: has neither {keys.BESIDE} nor a .safetensors in it")
        path = inside[0]
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    metadata = list_tensors(path).metadata
    if not metadata and path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path}: holds no receipt; take the .safetensors of the same run")
    return metadata


def _compare_weights(found: Comparison, metadata: Mapping[str, str], hashes: FileHashes) -> None:
    values = parse(found.config)[0]
    recorded = json.loads(metadata.get(keys.WEIGHTS, "{}"))
    for key, path in _weight_paths(values):
        place = find_weights(path)
        if key not in recorded:
            found.unknown.append(f"{key}: {path}: its hash was not known")
        elif place is None:
            found.differing.append(f"{key}: {path} is not here")
        elif hash_weights(place, hashes) != recorded[key]:
            found.differing.append(f"{key}: {path} has changed")


def _compare_packages(found: Comparison, metadata: Mapping[str, str]) -> None:
    recorded = json.loads(metadata.get(keys.PACKAGES, "{}"))
    now = package_versions(recorded)
    for name, version in recorded.items():
        if name == OURSELVES and name not in now:
            found.unknown.append(f"{name}: it was {version}, and which one this is can't be told")
        elif now.get(name) != version:
            found.differing.append(f"{name}: {version} then, {now.get(name, 'not installed')} now")
    if OURSELVES not in recorded:
        found.unknown.append(f"{OURSELVES}: which version it was")
    elif recorded[OURSELVES].endswith("-dirty"):
        found.unknown.append(f"{OURSELVES}: had changes that no commit holds")


def _weight_paths(values: Mapping) -> Iterator[tuple[str, str]]:
    """Yield config key and path of what a run begins with."""
    for key in ("path", "vae"):
        if values["model"].get(key):
            yield f"model.{key}", values["model"][key]
    for name, network in values["networks"].items():
        if network.get("resume"):
            yield f"networks.{name}.resume", network["resume"]


def _masked(values: object, key: str = "") -> Iterator[str]:
    """Yield the keys of what was masked."""
    if isinstance(values, str) and MASK in values:
        yield key
    items = values.items() if isinstance(values, dict) else ()
    for name, value in items or enumerate(values if isinstance(values, list) else ()):
        yield from _masked(value, f"{key}.{name}" if key else str(name))


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, input="a .safetensors, or a directory that a run wrote")
    parser.add_argument("-o", "--output", type=Path, help="the YAML; without it only compare")
    options = parser.parse_args(argv)
    found: list[Comparison] = []

    def job() -> str:
        found.append(reproduce(options.input, options.output))
        lines = [f"wrote {options.output}"] if options.output else []
        lines += [f"differs: {line}" for line in found[0].differing] or ["nothing differs"]
        return "\n".join([*lines, *(f"not known: {line}" for line in found[0].unknown)])

    status = run_command(job)
    return status or int(not found[0].is_same)


if __name__ == "__main__":
    sys.exit(main())
