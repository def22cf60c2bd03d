"""Packages: missing, too old, at odds with each other, or broken, and the pip line."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

from tools.findings import Finding
from tools.import_probe import import_faults
from tools.requirements import Requirement, as_numbers, installed_version, read_requirements

_NEEDED_FOR = {  # what the trainer does without
    "xformers": "train.attention: xformers",
    "tomesd": "train.tome_ratio",
    "wandb": "loggers.wandb",
    "tensorboard": "loggers.tensorboard",
    "matplotlib": "the loss curve, loss.png",
    "sentencepiece": "T5, the text encoder of DeepFloyd IF",
    "onnxruntime": "preprocess/tagger.py",
    "onnx": "preprocess/tagger_control.py",
    "opencv-python-headless": "preprocess/create_mask.py",
}
_OLDEST = {"torch": (2, 10, 0)}  # where another minor version is known to do
OPTIONAL = (
    *("bitsandbytes", "prodigyopt", "schedulefree", "lion-pytorch", "pytorch-optimizer"),
    *("torchao", "peft", "lycoris-lora", "s3fs", "gcsfs"),
)
_BELOW_ALL = ("numpy", "torch")
_STATEMENTS = {
    "diffusers": "from diffusers import AutoencoderKL, UNet2DConditionModel",
    "transformers": "from transformers import CLIPTextModel, CLIPTokenizer",
    "Pillow": "from PIL import Image",
    "PyYAML": "import yaml",
    "opencv-python-headless": "import cv2",
    "xformers": "import xformers.ops",
    "pytorch-optimizer": "import pytorch_optimizer",
    "lycoris-lora": "import lycoris",
}


def find_packages() -> Iterator[Finding]:
    """Yield a finding for each package that is amiss, one for all others, one for the optional."""
    requirements = read_requirements()
    versions = {r.name: installed_version(r.name) for r in requirements}
    options = {name: installed_version(name) for name in OPTIONAL}
    amiss = {r.name: f for r in requirements if (f := judge(r, versions[r.name]))}
    present = {name: v for name, v in {**versions, **options}.items() if v is not None}
    broken = dict(_broken(requirements, present))
    amiss.update(broken)
    good = [f"{name} {v}" for name, v in versions.items() if v and name not in amiss]
    yield Finding("ok", "packages", ", ".join(good) or "none")
    yield from amiss.values()
    yield from conflicts(list(present))
    here = [f"{name} {v}" for name, v in options.items() if v and name not in broken]
    absent = [name for name, v in options.items() if v is None]
    text = f"{', '.join(here) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    yield Finding("ok", "optional", text)


def judge(requirement: Requirement, version: str | None) -> Finding | None:
    """Compare what is installed of a requirement with what is tested; None if it will do."""
    name, mend = requirement.name, pip_line(requirement)
    purpose = _NEEDED_FOR.get(name)
    bad = "problem" if purpose is None else "warning"
    if version is None:
        return Finding(bad, name, "not installed" + (f"; for {purpose}" if purpose else ""), mend)
    given, tested = as_numbers(version), as_numbers(requirement.version)
    # By the rule of semantic versions: 1.x breaks with 2.0, 0.4 with 0.5.
    kept = 1 if tested[0] else 2
    if given < _OLDEST.get(name, (*tested[:kept], 0, 0)[:3]):
        return Finding(bad, name, f"{version} is too old; tested with {requirement.version}", mend)
    if given < tested:
        text = f"{version} is older than the tested {requirement.version}"
        return Finding("warning", name, text, mend)
    if given[:kept] > tested[:kept]:
        text = f"{version} is newer than the tested {requirement.version} and may differ"
        return Finding("warning", name, text, mend)
    return None


def pip_line(requirement: Requirement) -> str:
    """The command that installs it here; PyPI's torch for Windows has no CUDA."""
    line = requirement.pip_line
    if (
        requirement.name == "torch"
        and platform.system() == "Windows"
        and shutil.which("nvidia-smi")
    ):
        line += " --index-url https://download.pytorch.org/whl/cu130"
    return line


def conflicts(names: Sequence[str]) -> Iterator[Finding]:
    """Yield what these packages ask of others and do not get."""
    try:
        from packaging.requirements import Requirement as Asked
    except ImportError:  # then so much is missing that this tells nothing more
        return
    seen = set()
    for name in names:
        for line in metadata.requires(name) or ():
            asked = Asked(line)
            if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
                continue
            version = installed_version(asked.name)
            if version is not None and asked.specifier.contains(version, prereleases=True):
                continue
            wanted = f"{asked.name}{asked.specifier}"
            if wanted not in seen:
                seen.add(wanted)
                text = f"needs {wanted}; installed: {version or 'none'}"
                mend = f'pip install "{wanted}"'
                yield Finding("problem" if version is None else "warning", name, text, mend)


def _broken(
    requirements: Sequence[Requirement], present: Mapping[str, str]
) -> Iterator[tuple[str, Finding]]:
    """Yield the packages that are there but can't be imported."""
    pinned = {requirement.name: requirement for requirement in requirements}
    default = {name: f"import {name.lower().replace('-', '_')}" for name in present}
    statements = {name: _STATEMENTS.get(name, default[name]) for name in present}
    below = {name: statements.pop(name) for name in _BELOW_ALL if name in statements}
    faults = import_faults(below)
    if not faults and len(below) == len(_BELOW_ALL):  # else all others fail by them
        faults = import_faults({**below, **statements})
    for name, fault in faults.items():
        is_needed = name in pinned and name not in _NEEDED_FOR
        line = pip_line(pinned[name]) if name in pinned else f"pip install {name}"
        options = "--force-reinstall" + ("" if name == "torch" else " --no-deps")
        text = f"{present[name]} is installed but broken: {fault}"
        mend = line.replace("pip install", f"pip install {options}", 1)
        yield name, Finding("problem" if is_needed else "warning", name, text, mend)
