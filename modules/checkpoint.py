"""Everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modules.state_folder import check_state, write_state

if TYPE_CHECKING:
    from modules.trainer import Trainer

_WEIGHTS, _OPTIMIZER, _PROGRESS = "weights.safetensors", "optimizer.pt", "progress.json"


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state after an optimizer step.

    Random numbers are not in it: they follow from the step (`modules.randomness`), and so does the
    place in the dataset (`modules.loading`).
    """

    weights: Mapping[str, Tensor]  # all that is trained, and its average, by name
    engine: Mapping[str, Any]  # states of optimizer, learning-rate schedule and gradient scaler
    progress: Mapping[str, Any]  # how far the run is, plain values only

    @classmethod
    def of(cls, trainer: Trainer) -> TrainState:
        """What a trainer has come to; the tensors are its own, not copies."""
        average, scaler = trainer.average, trainer.accelerator.scaler
        return cls(
            weights=dict(trained_tensors(trainer)),
            engine={
                "optimizer": trainer.optimizer.state_dict(),
                "lr_scheduler": trainer.lr_scheduler.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "settings": trainer.settings,
            },
            progress={
                "step": trainer.step,
                "averaged": 0 if average is None else average.updates,
                "measured": trainer.step_log.pending(),
                **{name: part.state_dict() for name, part in trainer.stateful.items()},
                **trainer.identity(),
            },
        )

    def apply(self, trainer: Trainer) -> None:
        """Bring a fresh trainer to where this state was taken.

        Raises:
            ValueError: something else is trained there.
        """
        own = dict(trained_tensors(trainer))
        for name in sorted(own.keys() ^ self.weights.keys()):
            what = "is not in it" if name in own else "is not trained any more"
            raise ValueError(f"{name} {what}; resume with the networks that the run began with")
        with torch.no_grad():
            for name, tensor in own.items():
                if tensor.shape != self.weights[name].shape:
                    shapes = [tuple(each.shape) for each in (self.weights[name], tensor)]
                    raise ValueError(f"{name} has shape {shapes[0]} in it, now it has {shapes[1]}")
                tensor.copy_(self.weights[name])
        trainer.step = self.progress["step"]
        if trainer.average is not None:
            trainer.average.updates = self.progress["averaged"]
        for name, part in trainer.stateful.items():
            if name in self.progress:
                part.load_state_dict(self.progress[name])
        trainer.step_log.restore(self.progress["measured"], step=trainer.step)
        self._apply_engine(trainer)

    def _apply_engine(self, trainer: Trainer) -> None:
        fresh = [dict(settings) for settings in trainer.settings]
        trainer.optimizer.load_state_dict(self.engine["optimizer"])
        trainer.lr_scheduler.load_state_dict(self.engine["lr_scheduler"])
        if trainer.accelerator.scaler is not None and self.engine["scaler"] is not None:
            trainer.accelerator.scaler.load_state_dict(self.engine["scaler"])
        for number, (before, now) in enumerate(zip(self.engine["settings"], fresh, strict=True)):
            changed = {key: value for key, value in now.items() if before.get(key) != value}
            group = trainer.optimizer.param_groups[number]
            group.update({key: value for key, value in changed.items() if key != "lr"})
            if "lr" in changed:  # the schedule goes on from the new rate
                ratio = group["lr"] / before["lr"] if before["lr"] else 1.0
                group.update(lr=now["lr"] * ratio, initial_lr=now["lr"])
                trainer.lr_scheduler.base_lrs[number] = now["lr"]
        trainer.lr_scheduler._last_lr = [g["lr"] for g in trainer.optimizer.param_groups]

    def save(self, path: Path) -> None:
        """Write the state as a directory, whole or not at all.

        Raises:
            OSError: it can't be written; an earlier state is still there.
        """
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.weights.items()}
        text = json.dumps(self.progress, ensure_ascii=False, indent=1)
        write_state(
            path,
            {
                _WEIGHTS: partial(save_file, tensors),
                _OPTIMIZER: partial(torch.save, dict(self.engine)),
                _PROGRESS: lambda file: file.write_text(text, encoding="utf-8"),
            },
        )

    @classmethod
    def load(cls, path: Path) -> TrainState:
        """Read and check a directory that `save` has written.

        Raises:
            ValueError: it is no such directory, or a file of it was changed.
        """
        check_state(path)
        try:
            engine = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle raises kinds of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{path / _OPTIMIZER}: can't be read ({reason}); an optimizer whose state holds "
                "other objects than tensors and numbers can't be resumed"
            ) from error
        return cls(weights=load_file(path / _WEIGHTS), engine=engine, progress=read_progress(path))


def read_progress(path: Path) -> dict[str, Any]:
    """How far the run was whose state this is, and of what run; no tensor is read.

    Raises:
        ValueError: it is no state.
    """
    try:
        return dict(json.loads((path / _PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is no state of a run ({error})") from error


def trained_tensors(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """What training changes, by name: of the base, of networks, and the average of both."""
    for path, parameter in trainer.trained_base.items():
        yield f"base.{path}", parameter
    for name, network in trainer.networks.items():
        module: Any = network
        if any(parameter.requires_grad for parameter in module.parameters()):
            given = set(_constants(module))
            for key, tensor in module.state_dict(keep_vars=True).items():
                if key not in given:
                    yield f"networks.{name}.{key}", tensor
    if trainer.average is not None:
        for number, tensor in enumerate(trainer.average.tensors()):
            yield f"average.{number}", tensor


def _constants(network: Any) -> Iterator[str]:
    """Tensors that follow from a network's settings: its modules name them as `constants`."""
    for path, module in network.named_modules():
        for name in getattr(module, "constants", ()):
            yield f"{path}.{name}" if path else name


def is_finite(state: TrainState) -> bool:
    """Whether no weight is NaN or infinite; waits for the device once."""
    floats = [t.detach() for t in state.weights.values() if t.is_floating_point() and t.numel()]
    if not floats:
        return True
    largest = torch._foreach_norm(floats, float("inf"))
    return bool(torch.isfinite(torch.stack([each.float() for each in largest])).all())
