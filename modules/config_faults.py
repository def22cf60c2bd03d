"""Faults of a config that no type shows: missing paths, contradictions, settings without a goal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from modules.store import is_remote
from modules.value_words import quote
from modules.yaml_source import YamlSource

if TYPE_CHECKING:
    from modules.sections import Config

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)
_WEIGHT_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def check_meaning(config: Config, faults: YamlSource) -> None:
    """Note what the values of a well-typed config say wrong together."""
    _check_paths(config, faults)
    _check_length(config, faults)
    _check_batch(config, faults)
    _check_trained(config, faults)
    _check_validation(config, faults)
    timed = (("save", config.save), ("sample", config.sample), ("validation", config.validation))
    for section, value in timed:
        if value is not None and value.every_epochs and value.every_steps:
            faults.fault((section, "every_steps"), "is given beside every_epochs; keep one of them")
    scheduler = config.lr_scheduler
    if scheduler.warmup_steps is not None and scheduler.warmup_ratio is not None:
        faults.fault(
            ("lr_scheduler", "warmup_ratio"), "is given beside warmup_steps; keep one of them"
        )
    if config.save.name is not None and not _is_file_name(config.save.name):
        faults.fault(
            ("save", "name"), f"{config.save.name!r} is no file name; it may not have / \\ : * ? in"
        )
    for name, network in config.networks.items():
        has_file = network.resume is not None or faults.is_faulty(("networks", name, "resume"))
        if network.merge and (network.train or not has_file):
            faults.fault(
                ("networks", name, "merge"), "is for a network with train: false and a resume file"
            )
        if not _is_file_name(name):
            faults.fault(("networks", name), "the name becomes part of a file's name; use letters")


def _check_paths(config: Config, faults: YamlSource) -> None:
    if not faults.is_faulty(("model", "path")):
        of_vae = [pattern.partition(".")[0] == "vae" for pattern in config.model.trainable]
        marker = "config.json" if of_vae and all(of_vae) else "model_index.json"
        problem = _model_problem(config.model.path, marker, "a diffusers model")
        if problem:
            faults.fault(("model", "path"), problem)
    if config.model.vae is not None:
        problem = _model_problem(config.model.vae, "config.json", "a VAE")
        if problem:
            faults.fault(("model", "vae"), problem)
    for name, network in config.networks.items():
        resume = network.resume
        if resume is not None and not _is_file(resume) and not _is_dir(resume):
            faults.fault(
                ("networks", name, "resume"),
                f"{quote(resume)} is neither a file nor a directory{_near_path(resume)}",
            )
    sections = (("dataset", config.dataset), ("prior", config.prior))
    for name, section in (*sections, ("validation", config.validation)):
        for place, path in dataset_paths(section.args) if section and not config.prepare else ():
            if path != MISSING and not is_remote(path) and not _is_dir(path):
                faults.fault((name, "args", *place), _directory_problem(path))
    if _is_file(config.save.directory):
        faults.fault(("save", "directory"), f"{quote(config.save.directory)} is a file")
    thumbnail = config.save.metadata.thumbnail
    if thumbnail is not None and not _is_file(thumbnail):
        fault = f"{quote(thumbnail)} is not a file{_near_path(thumbnail)}"
        faults.fault(("save", "metadata", "thumbnail"), fault)
    if config.sample is not None and not faults.is_faulty(("sample", "prompts")):
        problem = _prompts_problem(config.sample.prompts)
        if problem:
            faults.fault(("sample", "prompts"), problem)
        for key, files in config.sample.extras.items():
            for file in files:
                if not _is_file(file):
                    fault = f"{quote(file)} is not a file{_near_path(file)}"
                    faults.fault(("sample", "extras", key), fault)


def _prompts_problem(prompts: list[Any] | str | None) -> str | None:
    if prompts is None:
        return None
    if not prompts:
        return "is empty; give a prompt or leave `sample` out"
    if isinstance(prompts, list) or _is_file(prompts):
        return None
    near = _near_path(prompts)
    advice = f"; for one prompt write a list, [{quote(prompts)}]"
    return f"{quote(prompts)} is not a file{near or advice}"


def _model_problem(path: str, marker: str, thing: str) -> str | None:
    """Why `path` can be no file of weights, directory with `marker` in it or hub id, or None."""
    local = Path(path)
    if not path:
        return "is empty; give a directory, a file or a hub id"
    is_weights = local.suffix.lower() in _WEIGHT_FILES
    if _is_file(path):
        endings = ", ".join(_WEIGHT_FILES)
        return None if is_weights else f"{quote(path)} is a file, but none of {endings}"
    if _is_dir(path):
        if (local / marker).is_file() or (local / "vae" / marker).is_file():
            return None
        found = ", ".join(sorted(entry.name for entry in local.iterdir())[:5]) or "nothing"
        return f"{quote(path)} is not {thing}: it has no {marker} (it has {found})"
    if hub_page := re.match(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)", path):
        return f"{quote(path)} is a web page; write its hub id, {hub_page[1]}"
    near = _near_path(path)
    is_here = near if local.parent == Path(".") else local.parent.is_dir()
    if _HUB_ID.fullmatch(path) and not is_weights and not is_here:
        return None
    if is_weights:
        return f"{quote(path)} is not there{near}"
    return f"{quote(path)} is neither a directory nor a hub id{near}"


def dataset_paths(args: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (key, directory) of a dataset's arguments, or of each entry of a mixture's."""
    entries = args.get("datasets")
    places: list[tuple[tuple[str, ...], Any]] = [((), args)]
    if isinstance(entries, list):
        places += [(("datasets", str(number)), entry) for number, entry in enumerate(entries)]
    for place, values in places:
        if isinstance(values, Mapping) and isinstance(values.get("path"), str):
            yield (*place, "path"), values["path"]


def _directory_problem(path: str) -> str:
    if not path:
        return "is empty; give a directory"
    if _is_file(path):
        return f"{quote(path)} is a file, not a directory"
    return f"{quote(path)} is not a directory{_near_path(path)}"


def _near_path(path: str) -> str:
    """What a path that is not there may be meant for."""
    if path.startswith("~"):
        return "; ~ is not replaced here, write the whole path"
    if any(character < " " for character in path):
        return "; a backslash became a line break or tab: use 'single quotes' or /"
    parent = Path(path).parent
    if not parent.is_dir():
        return f" ({quote(str(parent))} does not exist either)"
    name = Path(path).name
    there = [entry.name for entry in parent.iterdir() if entry.name != name]
    close = difflib.get_close_matches(name, there, n=1)
    return f"; did you mean {quote(str(parent / close[0]))}?" if close else ""


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long, or with a character that no path has
        return False


def _is_dir(path: str) -> bool:
    try:
        return bool(path) and Path(path).is_dir()
    except (OSError, ValueError):
        return False


def _check_length(config: Config, faults: YamlSource) -> None:
    train = config.train
    if any(faults.is_faulty(("train", key)) for key in ("max_train_steps", "max_train_epochs")):
        return
    if train.max_train_steps is None and train.max_train_epochs is None:
        faults.fault(("train",), "has no length; give max_train_epochs or max_train_steps")
    if train.max_train_steps is not None and train.max_train_epochs is not None:
        faults.fault(
            ("train", "max_train_steps"), "is given beside max_train_epochs; keep one of them"
        )


def _check_batch(config: Config, faults: YamlSource) -> None:
    size, repeats = config.train.batch_size, config.train.minibatch_repeat
    if any(faults.is_faulty(("train", key)) for key in ("batch_size", "minibatch_repeat")):
        return
    if size % repeats:
        faults.fault(
            ("train", "batch_size"),
            f"{size} is no multiple of minibatch_repeat {repeats}, and it counts the repeats",
        )


def _check_trained(config: Config, faults: YamlSource) -> None:
    for key in ("quantize", "offload_blocks") if config.model.trainable else ():
        if getattr(config.model, key) and not faults.is_faulty(("model", key)):
            named = ", ".join(config.model.trainable)
            fault = f"is for weights that are not trained, but model.trainable names {named}"
            faults.fault(("model", key), f"{fault}; keep one of them")
    if config.model.trainable or any(network.train for network in config.networks.values()):
        return
    if faults.is_faulty(("networks",)) or faults.is_faulty(("model", "trainable")):
        return
    faults.fault(
        ("model", "trainable"),
        "nothing is trained; add a network, or parts of the base as [unet]",
    )


def _check_validation(config: Config, faults: YamlSource) -> None:
    section = config.validation
    if section is None or faults.is_faulty(("validation", "split")):
        return
    if section.split is None and not section.args:
        faults.fault(
            ("validation",),
            "says of no image that it is held out; give split: 0.1, or a dataset of its own as "
            "args: {path: its directory}",
        )
    elif section.split is not None and section.args:
        faults.fault(("validation", "args"), "is given beside split; keep one of them")
    elif section.split is not None and not 0 < section.split < 1:
        faults.fault(
            ("validation", "split"),
            f"{section.split:g} leaves nothing to measure or to train; give a part such as 0.1",
        )


def _is_file_name(name: str) -> bool:
    """Whether a name may be a file's on every system, Windows with its devices too."""
    is_bad = re.search(r'[\\/:*?"<>|\x00-\x1f]', name) or name != name.rstrip(". ")
    return bool(name) and not is_bad and not _DEVICE.fullmatch(name) and len(name.encode()) <= 200
