"""The pieces of a checkpoint on disk: found, checked, loaded, written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

_WEIGHTS = (".safetensors", ".bin")
_ROOT = Path(__file__).resolve().parent.parent.parent


def find_directory(path: str, *, weights: bool = True) -> Path:
    """The local directory of a model; one from the hub is downloaded first.

    A relative path that the current directory doesn't have is looked for beside main.py.

    Raises:
        ValueError: it is neither here nor on the hub.
    """
    for directory in (Path(path), _ROOT / path):
        if directory.is_dir():
            return directory
    from huggingface_hub import snapshot_download

    try:
        if not weights:
            return Path(snapshot_download(path, allow_patterns=["*.json", "*.txt", "*.model"]))
        from diffusers import DiffusionPipeline

        return Path(DiffusionPipeline.download(path))
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path}: there is no such directory here, and the Hugging Face hub did not give a "
            f"model of that name ({reason})"
        ) from error


def read_index(directory: Path, path: str) -> dict[str, Any]:
    """The content of a model directory's model_index.json.

    Raises:
        ValueError: it is missing or not what diffusers writes.
    """
    index = directory / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{path}: not a diffusers model, it has no model_index.json")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index}: is not a JSON file ({error})") from error
    if not isinstance(content, dict) or "_class_name" not in content:
        raise ValueError(f"{index}: is no index of a diffusers model; it names no _class_name")
    return content


def check_pieces(directory: Path, names: Sequence[str]) -> None:
    """Check that every piece of a model has its folder with a config in it.

    Raises:
        ValueError: lists what is missing.
    """
    files = {
        "tokenizer": ("tokenizer.json", "vocab.json", "spiece.model"),
        "scheduler": ("scheduler_config.json",),
    }
    missing = []
    for name in names:
        wanted = files.get(name.partition("_")[0], ("config.json",))
        if not any((directory / name / file).is_file() for file in wanted):
            missing.append(f"{name}/{' or '.join(wanted)}")
    if missing:
        raise ValueError(f"{directory}: the model is incomplete, it has no {', no '.join(missing)}")


def load_piece(cls: Any, folder: Path, *, weights: bool = True) -> Any:
    """Load a diffusers or transformers model in float32; without weights it stays on `meta`.

    Raises:
        ValueError: the folder has no weights, or they or the config can't be read.
    """
    if not weights:
        try:
            return _load_empty(cls, folder)
        except Exception as error:  # a config is the arguments of a class, and may be any
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{folder}: its config.json can't be used ({reason})") from error
    files = [file.name for file in folder.iterdir() if file.suffix in _WEIGHTS]
    if not files:
        raise ValueError(f"{folder}: has no weights (.safetensors or .bin)")
    variant = "fp16" if all(".fp16." in name for name in files) else None
    try:
        return cls.from_pretrained(
            folder, variant=variant, dtype=torch.float32, local_files_only=True
        )
    except Exception as error:  # safetensors and pickle raise kinds of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder}: the weights can't be read ({reason})") from error


def _load_empty(cls: Any, folder: Path) -> Any:
    with torch.device("meta"):
        if hasattr(cls, "load_config"):
            return cls.from_config(cls.load_config(folder))
        return cls(cls.config_class.from_pretrained(folder))


def load_vae(
    path: str, *, weights: bool = True, config: Callable[[], dict[str, Any]] | None = None
) -> Any:
    """Load an AutoencoderKL in float32: from a VAE's or a model's directory or file, or the hub.

    A file with a VAE alone doesn't say its latents' scale: `config` gives that of the model's own.

    Raises:
        ValueError: `path` holds no VAE.
    """
    from diffusers import AutoencoderKL

    from modules.models.tensor_file import find_file
    from modules.models.vae_file import load_vae_file

    file = find_file(path)
    if file is not None:
        return load_vae_file(file, path, config=config() if config else {}, weights=weights)
    for folder in (Path(path), _ROOT / path):
        if folder.exists():
            own = folder / "vae" if (folder / "vae").is_dir() else folder
            if not (own / "config.json").is_file() or (own / "model_index.json").is_file():
                raise ValueError(
                    f"{path}: is neither a diffusers model with a VAE nor a VAE's folder"
                )
            return load_piece(AutoencoderKL, own, weights=weights)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f"{path}: no such directory")
    for subfolder in ("vae", ""):  # an id of the hub: a whole model, or a VAE alone
        try:
            if weights:
                return AutoencoderKL.from_pretrained(path, subfolder=subfolder, dtype=torch.float32)
            with torch.device("meta"):
                config = AutoencoderKL.load_config(path, subfolder=subfolder)
                return AutoencoderKL.from_config(config)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
    raise ValueError(f"{path}: the VAE can't be loaded ({reason})")


def has_vae(path: str) -> bool:
    """Whether a path may have a VAE: it is no whole model whose index lists none."""
    for directory in (Path(path), _ROOT / path):
        if directory.exists():
            is_alone = not (directory / "model_index.json").is_file()
            own = (directory / "vae").is_dir()
            return is_alone or own or "vae" in read_index(directory, path)
    from diffusers import DiffusionPipeline

    try:
        return "vae" in DiffusionPipeline.load_config(path)
    except (OSError, ValueError):  # a VAE alone, or nothing: `load_vae` says which
        return True


def save_piece(piece: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a diffusers model in `dtype` without changing the one in memory."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    piece.save_config(folder)
    tensors = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
        for key, value in piece.state_dict().items()
    }
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})


def write_json(path: Path, content: Any) -> None:
    """Write a config as diffusers does: indented, UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
