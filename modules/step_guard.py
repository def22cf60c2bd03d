"""Steps whose loss or gradient is not finite change nothing, and too many in a row end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


class StepGuard:
    """Decides whether an optimizer steps.

    Fused optimizers skip a step by a flag on the device, so that nothing waits for it. Others need
    its value: one wait for the device in each optimizer step. Under fp16 the gradient scaler
    decides, by the same gradients.

    Args:
        most: so many steps in a row without a change are borne; then `is_over` tells.
    """

    def __init__(self, optimizer: Any, accelerator: Accelerator, *, most: int):
        self._most = most
        self._accelerator = accelerator
        self._raw = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper holds it
        self._skips_itself = bool(getattr(self._raw, "_step_supports_amp_scaling", False))
        device = accelerator.device
        self.is_bad = torch.zeros((), dtype=torch.bool, device=device)  # the last step
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        if device.type != "cpu" and not self._skips_itself and accelerator.scaler is None:
            logger.info(
                "%s waits for the device once a step, to leave out steps that are not finite; "
                "torch's optimizers with `fused: true` do without",
                type(self._raw).__name__,
            )

    @property
    def divides_itself(self) -> bool:
        """Whether the optimizer can divide its gradients on its way."""
        return self._skips_itself and self._accelerator.scaler is None

    def step(
        self,
        make_step: Callable[[], object],
        *,
        loss: Tensor,
        norm: Tensor,
        divisor: Tensor | None = None,
    ) -> None:
        """Let `make_step` step the optimizer if loss and gradient norm are finite on all ranks.

        `divisor`: of the gradients, where the optimizer divides them itself.
        """
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        if self._accelerator.num_processes > 1:
            is_bad = self._accelerator.reduce(is_bad.float(), "sum") > 0
        self.count(is_bad)
        if self._accelerator.scaler is not None:
            make_step()
        else:
            self.step_unless(is_bad, make_step, divisor=divisor)

    def count(self, is_bad: Tensor) -> None:
        """Note whether a step was left out."""
        self.is_bad = is_bad
        self._in_a_row = torch.where(is_bad, self._in_a_row + 1, 0)
        self._skipped += is_bad

    def step_unless(
        self, is_bad: Tensor, make_step: Callable[[], object], *, divisor: Tensor | None = None
    ) -> None:
        """Let `make_step` step the optimizer unless a flag on the device is set."""
        if self._skips_itself:
            self._raw.grad_scale, self._raw.found_inf = divisor, is_bad.float()
            try:
                make_step()
            finally:
                del self._raw.grad_scale, self._raw.found_inf
        elif not is_bad:
            make_step()

    def take_skipped(self) -> int:
        """How many steps were left out since the last call; waits for the device."""
        count = int(self._skipped)
        self._skipped.zero_()
        return count

    def is_over(self) -> bool:
        """Whether the last steps, as many as are borne, all changed nothing; waits likewise."""
        return int(self._in_a_row) >= self._most
