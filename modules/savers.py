"""Weights on disk: networks as .safetensors, a trained base as a directory or one file."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from modules.errors import RunError
from modules.protocols import Network, Run
from modules.receipt_keys import BESIDE
from modules.schedule import Every
from modules.verification import Verified
from modules.verified_files import VerifiedFiles, tell

logger = logging.getLogger(__name__)

BASE_ENDINGS = {"diffusers": "", "single_file": ".safetensors"}
"""`save.format` -> what a trained base's name ends with; "" stands for a directory."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class WeightsSaver:
    """Writes everything that is trained, at due steps and at the end.

    The last save is `<name>.safetensors`, and where more than one network is trained
    `<name>-<network>.safetensors` and for the base the directory `<name>`; those on the way add
    `-step00001000`. Networks say themselves what their files end with.

    Args:
        every_epochs, every_steps: how often; with neither only at the end.
        keep_last: how many of those on the way are kept; None keeps all.
        dtype: fp32, fp16 or bf16.
        format: the base as a diffusers directory, or as single_file: `<name>.safetensors`.
    """

    def __init__(
        self,
        *,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        keep_last: int | None = None,
        dtype: str = "fp16",
        format: str = "diffusers",
    ):
        self._every = Every(steps=every_steps, epochs=every_epochs)
        self._keep_last = keep_last
        self._dtype = DTYPES[dtype]
        self._base_ending = BASE_ENDINGS[format]
        self._written: list[list[str]] = []  # names in the run's folder

    def save_if_due(self, run: Run, *, last: bool) -> None:
        """Save when due or asked; an earlier save is deleted only after the new one is whole.

        One on the way that can't be written costs a warning: the next may find the space.

        Raises:
            RunError: the last one can't be written, or a tensor is not finite.
        """
        due = self._every.is_due(run.step, steps_per_epoch=run.steps_per_epoch)
        if not (last or due or run.asks_for_save):
            return
        try:
            written = self.save(run, suffix="" if last else f"-step{run.step:08d}")
        except (OSError, SafetensorError) as error:
            if last:
                raise RunError(f"{run.directory}: can't be written ({error})") from error
            logger.warning("%s: can't be written (%s); training goes on", run.directory, error)
            return
        if due and not last:
            self._written.append([path.name for path in written])
            self._rotate(run.directory)

    def save(self, run: Run, *, suffix: str) -> list[Path]:
        """Write all trained networks and, if trained, the base; returns what was written.

        Everything is written and verified before anything takes its name.

        Raises:
            RunError: a tensor is not finite, or what was written is not what was trained; what was
                saved before stays.
        """
        written = self._write_versions(run, suffix)
        for path, verified in written.items():
            logger.info("saved %s", path)
            tell(path, verified)
        return list(written)

    def rehearse(self, run: Run) -> int:
        """Write and verify what the last save would be; returns how many saves are to come.

        Raises:
            RunError: as `save` does.
        """
        self._write_versions(run, "")
        size, end = run.steps_per_epoch, run.max_train_steps
        return 1 + self._every.count(after=run.step, to=end - 1, steps_per_epoch=size)

    def _write_versions(self, run: Run, suffix: str) -> dict[Path, Verified | None]:
        """Write the weights in all their versions, each verified."""
        with VerifiedFiles(self._dtype) as files:
            for name, weights in run.versions().items():
                with weights():
                    self._write(run, name + suffix, files)
        return files.written

    def _write(self, run: Run, suffix: str, files: VerifiedFiles) -> None:
        trained = {n: network for n, network in run.networks.items() if is_trained(network)}
        check_finite(run, trained, self._dtype)
        for name, network in trained.items():
            alone = len(trained) == 1 and not run.trained_base
            stem = network_stem(run.name, name, alone=alone) + suffix
            metadata = run.metadata.of_network(run, name, title=stem)
            for ending in suffixes_of(network):
                path = run.directory / (stem + ending)
                files.write(path, network, is_directory=not ending, metadata=metadata)
        if run.trained_base:
            path = run.directory / f"{run.name}{suffix}{self._base_ending}"
            options: dict[str, Any]
            if self._base_ending:
                metadata = run.metadata.of_base(run, title=path.stem)
                options = {"is_directory": False, "kind": "single_file", "metadata": metadata}
            else:
                metadata = run.metadata.of_base(run, title=path.name)
                text = json.dumps(dict(metadata), ensure_ascii=False, indent=1) + "\n"
                options = {"is_directory": True, "kind": "pretrained", "beside": {BESIDE: text}}
            files.write(path, run.model, **options)

    def state_dict(self) -> dict[str, Any]:
        """What `keep_last` has to know of earlier saves, for a run that is resumed."""
        return {"written": self._written}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._written = [list(names) for names in state["written"]]

    def _rotate(self, directory: Path) -> None:
        if self._keep_last is None:
            return
        while len(self._written) > self._keep_last:
            for path in (directory / name for name in self._written.pop(0)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def network_stem(run_name: str, network: str, *, alone: bool) -> str:
    """The name of a network's file: the run's, and if not it alone is trained its own behind it."""
    return run_name if alone else f"{run_name}-{network}"


def suffixes_of(network: Any) -> Sequence[str]:
    """The endings of the files that a network is written to; "" stands for a directory."""
    return getattr(network, "suffixes", (".safetensors",))


def output_names(
    run_name: str,
    trained: Mapping[str, Network],
    *,
    trains_base: bool,
    versions: Sequence[str] = ("",),
    base_ending: str = "",
) -> list[str]:
    """What the last save of a run is called; names of directories end with a slash.

    `versions` are the kinds of weights by what they add to a name: "-ema" for the average.
    """
    alone = len(trained) == 1 and not trains_base
    names = [
        network_stem(run_name, name, alone=alone) + version + (ending or "/")
        for version in versions
        for name, network in trained.items()
        for ending in suffixes_of(network)
    ]
    ending = base_ending or "/"
    return names + [f"{run_name}{version}{ending}" for version in versions if trains_base]


def is_trained(network: Any) -> bool:
    """Whether any parameter of a network takes part in training."""
    return any(parameter.requires_grad for parameter in network.parameters())


def check_finite(run: Run, networks: dict[str, Any], dtype: torch.dtype) -> None:
    """Raise RunError if a tensor that would be saved holds NaN, infinity, or more than `dtype` can.

    It names the first of them.
    """
    named = [(f"{n}.{key}", p) for n, net in networks.items() for key, p in net.named_parameters()]
    named += [(path, p) for path, p in run.trained_base.items()]
    faulty = [(name, p) for name, p in named if not torch.isfinite(p.detach().to(dtype)).all()]
    if not faulty:
        return
    name, parameter = faulty[0]
    if torch.isfinite(parameter).all():
        raise RunError(
            f"step {run.step}: {len(faulty)} of {len(named)} trained tensors have numbers beyond "
            f"fp16's {torch.finfo(dtype).max:.0f}, first {name} with {parameter.abs().max():.6g}; "
            "nothing was saved. Write save.dtype: bf16 or fp32"
        )
    raise RunError(
        f"step {run.step}: {len(faulty)} of {len(named)} trained tensors are not finite, first "
        f"{name}; nothing was saved. Lower the learning rate, or use bf16 instead of fp16"
    )
