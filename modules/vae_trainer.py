"""The trainer of a VAE: another loss in the same loop."""

from __future__ import annotations

from torch import Tensor

from modules.batch import Batch
from modules.protocols import VaeObjective
from modules.trainer import Trainer


class VaeTrainer(Trainer):
    """Trains what requires gradients of a VAE."""

    objective: VaeObjective  # type: ignore[assignment]

    def loss(self, batch: Batch) -> Tensor:
        """Reconstruction loss of one batch."""
        batch = batch.repeat(self.source.repeats)
        return batch.weigh(self.objective.reconstruction_loss(self.model.vae, batch)).sum()
