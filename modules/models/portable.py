"""Text encoders and tokenizers on disk as older transformers and slow tokenizers read them.

transformers 5.6 took `text_model.` out of CLIPTextModel's names and writes tokenizer.json only;
readers before it would silently take random weights, or crash on the missing vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel


def save_text_encoder(encoder: Any, directory: Path, dtype: torch.dtype) -> None:
    """Write a text encoder with the field's tensor names; of shared weights the first alone."""
    directory.mkdir(parents=True, exist_ok=True)
    config = encoder.config.to_dict()
    config["architectures"] = [type(encoder).__name__]
    config["dtype"] = config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config.pop("_name_or_path", None)
    text = json.dumps(config, indent=2, sort_keys=True)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    tensors = {
        classic_name(encoder, key): value.detach().to("cpu", dtype).contiguous()
        for key, value in encoder.named_parameters()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def classic_name(encoder: nn.Module, path: str) -> str:
    """A path within a text encoder as all programs know it: CLIP's is below `text_model.`."""
    is_flat = isinstance(encoder, CLIPTextModel) and not hasattr(encoder, "text_model")
    return f"text_model.{path}" if is_flat else path


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write a tokenizer, with the files that slow tokenizers read beside it.

    Those of BPE are vocab.json and merges.txt, of SentencePiece its model, where there is one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        source = Path(getattr(tokenizer, "vocab_file", None) or "")
        if source.is_file() and source.suffix == ".model":
            shutil.copyfile(source, directory / source.name)
        return
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (directory / "vocab.json").write_text(vocabulary, encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    text = "\n".join(["#version: 0.2", *merges])
    (directory / "merges.txt").write_text(text + "\n", encoding="utf-8")
