"""Say what is in files: kind, family, ranks, how it was trained, trigger words, hashes.

    python tools/info.py cat.safetensors output/finetune/finetune --json

Files of all programs: LoRA and its kin, embeddings, hypernetworks, PFG, ControlNets, whole models
and diffusers' directories. Only headers are read, unless a file names a hash of its own.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.receipt_keys import BESIDE
from modules.safetensors_header import hash_legacy, hash_tensors, read_header
from tools.command import make_parser, run_command
from tools.file_kinds import Contents, identify
from tools.tensor_listing import Listing, list_tensors
from tools.training_notes import frequent_tags, receipt_note, training_settings, trigger_words

_WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".pth")
_CONFIG = "adapter_config.json"  # where PEFT says the alpha of the adapter beside it


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """What a file is and says."""

    path: str
    bytes: int
    contents: Contents
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    """Tensors by precision."""
    settings: Mapping[str, str]
    trigger_words: Sequence[str]
    tags: Sequence[tuple[str, int]]
    hashes: Mapping[str, bool]
    """Hashes that the file names, and whether they fit its bytes."""
    receipt: str | None
    metadata: Mapping[str, str]


def info(path: Path, *, check: bool = True) -> list[FileInfo]:
    """Describe a file, or the files in a directory; with `check` hashes are compared.

    Raises:
        ValueError: it can't be read, or is not there.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory")
    if not path.is_dir():
        listing = list_tensors(path)
        contents = identify(_with_config(listing, path))
        return [_describe(path, contents, listing, [path], check=check)]
    index, config = _read_json(path / "model_index.json"), _read_json(path / "config.json")
    files = [p for p in sorted(path.iterdir()) if p.suffix in _WEIGHTS]
    if index or config.get("_class_name"):
        return [_describe_directory(path, index or config, files, check=check)]
    if not files:  # of an adapter PEFT writes a folder for each piece
        folders = sorted(each.parent for each in path.glob(f"*/{_CONFIG}"))
        files = [p for folder in folders for p in sorted(folder.iterdir()) if p.suffix in _WEIGHTS]
    if not files:
        raise ValueError(f"{path}: has no weights in it that could be described")
    return [each for file in files for each in info(file, check=check)]


def show(found: FileInfo) -> str:
    """Write a description in lines."""
    return "\n".join([found.path, *(f"  {name:16} {text}" for name, text in _lines(found))])


def _with_config(listing: Listing, file: Path) -> Listing:
    """A listing with what PEFT says beside a file, as diffusers says it in the header."""
    config = _read_json(file.with_name(_CONFIG)) if file.stem == "adapter_model" else {}
    if not config:
        return listing
    header = {"lora_adapter_metadata": json.dumps(config)}
    return replace(listing, metadata={**listing.metadata, **header})


def _describe_directory(
    path: Path, index: Mapping[str, Any], files: Sequence[Path], *, check: bool
) -> FileInfo:
    """Describe a directory of diffusers, a model or one of its pieces."""
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    found = list(files) or [p for folder in folders for p in sorted(folder.iterdir())]
    weights = [p for p in found if p.suffix == ".safetensors" and "." not in p.stem]
    listings = [list_tensors(file) for file in weights]
    tensors = {f"{n}.{k}": t for n, own in enumerate(listings) for k, t in own.tensors.items()}
    first = next(iter(listings), Listing({}))
    unet = next((own for f, own in zip(weights, listings, strict=True) if "unet" in str(f)), first)
    beside = _read_json(path / BESIDE)
    listing = Listing(tensors, beside or first.metadata)
    kind = f"{index['_class_name']} as a directory of diffusers"
    contents = replace(identify(Listing(unet.tensors, listing.metadata)), kind=kind)
    hashed = weights if len(weights) == 1 and not beside else []
    return _describe(path, contents, listing, hashed, check=check, files=found)


def _describe(
    path: Path,
    contents: Contents,
    listing: Listing,
    hashed: Sequence[Path],
    *,
    check: bool,
    files: Sequence[Path] = (),
) -> FileInfo:
    metadata, tensors = listing.metadata, listing.tensors.values()
    return FileInfo(
        path=str(path),
        bytes=sum(file.stat().st_size for file in files or [path]),
        contents=contents,
        tensors=len(tensors),
        parameters=sum(tensor.count for tensor in tensors),
        dtypes=dict(Counter(tensor.dtype for tensor in tensors)),
        settings=training_settings(metadata),
        trigger_words=trigger_words(metadata),
        tags=frequent_tags(metadata),
        hashes=dict(_check_hashes(hashed[0], metadata)) if check and hashed else {},
        receipt=receipt_note(metadata),
        metadata=metadata,
    )


def _check_hashes(path: Path, metadata: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Yield each hash of its own that a file names, and whether it fits."""
    own = [key for key in ("sshs_model_hash", "modelspec.hash_sha256") if metadata.get(key)]
    tensors = hash_tensors(path) if own else ""
    for key in own:
        yield key, metadata[key].removeprefix("0x").lower() == tensors
    if metadata.get("sshs_legacy_hash"):
        header = read_header(path)
        yield "sshs_legacy_hash", metadata["sshs_legacy_hash"] == hash_legacy(path, header)


def _lines(found: FileInfo) -> Iterator[tuple[str, str]]:
    what = found.contents
    yield "kind", what.kind + (f", keys as {what.form}" if what.form else "")
    yield "family", f"{what.family} (by its {what.family_source})" if what.family else "not known"
    if what.layers:
        yield "layers", ", ".join(f"{count} of {piece}" for piece, count in what.layers.items())
        yield "rank", _counted(what.ranks) or "none"
        yield "alpha", _counted(what.alphas) or "none: applied as it is"
    precision = ", ".join(sorted(found.dtypes))
    yield "tensors", f"{found.tensors} in {precision or 'none'}, {found.parameters:,} numbers"
    yield "size", f"{found.bytes / 1e6:,.2f} MB"
    yield from found.settings.items()
    if found.trigger_words:
        yield "trigger words", ", ".join(found.trigger_words)
    if found.tags:
        yield "tags", ", ".join(f"{tag} ({count})" for tag, count in found.tags)
    for key, fits in found.hashes.items():
        verdict = "fits" if fits else "DOES NOT FIT the file: changed, or hashed in another way"
        yield key.rpartition(".")[2], f"{found.metadata[key][:14]}... {verdict}"
    if found.receipt:
        yield "receipt", found.receipt
    if not found.metadata:
        yield "metadata", "none"


def _counted(counts: Mapping[str, int]) -> str:
    """`16`, or `8 (of 12 layers), 16 (of 180)`."""
    if len(counts) < 2:
        return next(iter(counts), "")
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    shown = [f"{value} (of {count})" for value, count in ordered[:6]]
    return ", ".join(shown) + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="files or directories")
    parser.add_argument("--json", action="store_true", help="all of it, metadata too, as JSON")
    parser.add_argument(
        "--no_hash", action="store_true", help="don't compare hashes with the file's bytes"
    )
    options = parser.parse_args(argv)

    def job() -> str | None:
        found, faults = [], []
        for file in options.files:
            try:
                found += info(file, check=not options.no_hash)
            except (ValueError, OSError) as error:
                faults.append(str(error))
        told = "\n\n".join(map(show, found))
        if options.json:
            told = json.dumps([asdict(each) for each in found], ensure_ascii=False, indent=1)
        if not faults:
            return told
        if found:
            print(told)
        raise ValueError("\n".join(faults))

    return run_command(job)


if __name__ == "__main__":
    sys.exit(main())
