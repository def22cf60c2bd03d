"""The validation loss over a run: its curve, the best weights, and when a run overfits."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modules.batch import collate
from modules.drawing import evaluation
from modules.errors import survived
from modules.guides import whole_sample
from modules.held_out import HeldOut
from modules.randomness import drawn_apart
from modules.schedule import Every

if TYPE_CHECKING:
    from modules.trainer import Trainer

logger = logging.getLogger(__name__)


class NoValidation:
    """The validation of a run that holds nothing out."""

    def measure_if_due(self, run: Trainer) -> None:
        """Measure nothing."""


class Validation:
    """Measures held-out images: before training, when due, and after the last step.

    Each time they have the same captions, noise and timesteps, so that the curve shows the weights
    alone: those with which images are drawn, the moving average if there is one. Several processes
    share the images.

    Args:
        losses: how an image is measured, see `modules.validation_losses`.
        patience: measurements without a new lowest loss after which a run is said to overfit.
        stops_early: the run then ends, as after its last step.
        writes: whether this process writes; of several one does.
    """

    def __init__(
        self,
        held_out: HeldOut,
        losses: Any,
        *,
        every: Every,
        keeps_best: bool = False,
        patience: int = 5,
        stops_early: bool = False,
        writes: bool = True,
    ):
        self.held_out = held_out
        self.losses = losses
        self._every = every
        self._keeps_best = keeps_best
        self._patience = patience
        self._stops_early = stops_early
        self._writes = writes
        # Two curves of the same can be compared.
        self._what = f"{held_out.digest()} {losses.labels} {losses.seed}"
        self.measured_at: int | None = None  # step of the last measurement
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.since_best = 0  # measurements

    def measure_if_due(self, run: Trainer) -> None:
        """Measure if due; the run's last step is this one if it stops early.

        A measurement that fails costs a warning, not the run.
        """
        due = self._every.is_due(run.step, steps_per_epoch=run.steps_per_epoch)
        last = run.step == run.max_train_steps
        if (due or last or run.step == 0) and self.measured_at != run.step:
            with survived("validation"), run.step_log.clock.stopped():
                self._measure(run)
        if self._stops_early and self.since_best >= self._patience:
            run.max_train_steps = run.step

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know of earlier measurements."""
        return {
            "what": self._what,
            "measured_at": self.measured_at,
            "best_step": self.best_step,
            "best_loss": self.best_loss if self.best_step is not None else None,
            "since_best": self.since_best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; losses of other images or timesteps begin anew."""
        if state["what"] != self._what:
            logger.warning("validation: other images or timesteps than before; the best is unknown")
            return
        self.measured_at, self.best_step = state["measured_at"], state["best_step"]
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        self.since_best = state["since_best"]

    def _measure(self, run: Trainer) -> None:
        losses = self.measure(run)  # (images, timesteps)
        loss = losses.mean().item()
        self.measured_at = run.step
        columns = losses.mean(0).tolist()
        measured = {"validation/loss": loss}
        if len(columns) > 1:
            named = zip(self.losses.labels, columns, strict=True)
            measured |= {f"validation/loss_{label}": value for label, value in named}
        if self._writes:
            run.log_metrics(measured)
        if run.step == 0:  # to compare with; nothing is trained yet that could be best
            logger.info("validation: loss %.4f before training", loss)
            return
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.since_best = loss, run.step, 0
            logger.info("validation: loss %.4f at step %d, the lowest so far", loss, run.step)
            if self._keeps_best and self._writes:
                self._keep(run)
            return
        self.since_best += 1
        logger.info(
            "validation: loss %.4f at step %d; the lowest was %.4f at step %s",
            *(loss, run.step, self.best_loss, self.best_step),
        )
        if self.since_best == self._patience:
            logger.warning(
                "validation: the loss has not fallen below that of step %s in %d measurements "
                "(%.4f then, %.4f now): the run overfits; %s",
                *(self.best_step, self.since_best, self.best_loss, loss),
                self._advice(),
            )

    def _advice(self) -> str:
        if self._stops_early:
            return "it ends here"
        if self._keeps_best:
            return "the weights of then are kept as the best"
        return "keep_best keeps the weights of then, stop_early ends the run"

    def _keep(self, run: Trainer) -> None:
        """Save the weights, also where no save is due; the former best stays until that is done."""
        saver: Any = run.saver
        with survived(f"validation.keep_best: step {run.step}"):
            saver.save(run, suffix="-best")

    @torch.no_grad()
    def measure(self, run: Trainer) -> Tensor:
        """The loss of each image at each timestep, (images, timesteps), on the CPU.

        Raises:
            RuntimeError: a process could not measure its images.
        """
        accelerator = run.accelerator
        rank, world_size = accelerator.process_index, accelerator.num_processes
        found = torch.zeros(len(self.held_out.measured), len(self.losses.labels))
        failure: Exception | None = None
        try:
            networks = list(run.networks.values())
            with run.sampled_weights(), evaluation(run.model, networks), run.autocast():
                for number in range(rank, len(found), world_size):
                    found[number] = self._measure_image(run, number).cpu()
        except Exception as error:
            failure = error
        if world_size > 1:  # even behind a failure: the others wait for it
            told = torch.cat([found.flatten(), torch.tensor([float(failure is not None)])])
            *values, failed = accelerator.reduce(told.to(accelerator.device), "sum").cpu()
            found = torch.stack(values).reshape(found.shape)
            if failed and failure is None:
                raise RuntimeError("another process could not measure its images")
        if failure is not None:
            raise failure
        return found.double()

    def _measure_image(self, run: Trainer, number: int) -> Tensor:
        """The loss of one image at each timestep; what it draws at random follows from it alone."""
        content, index = self.held_out.hashes[number], self.held_out.measured[number]
        with drawn_apart("validation", self.losses.seed, content):
            sample = whole_sample(self.held_out.dataset, index)
            batch = collate([sample]).to(run.accelerator.device)
            return self.losses.of(run, batch, content)
