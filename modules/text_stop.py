"""Stop training the text encoders after a while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch.nn import Parameter

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel


def text_parameters(
    trained_base: Mapping[str, Parameter], networks: Iterable[Any]
) -> list[Parameter]:
    """Everything trained that the text encoders' outputs depend on."""
    base = [p for path, p in trained_base.items() if path.startswith("text_encoders")]
    for network in networks:
        for component, parameters in network.parameter_groups().items():
            if component.startswith("text_encoders"):
                base += [p for p in parameters if p.requires_grad]
    return base


def check_text_stop(
    after: int | None, trained: Iterable[Parameter], text: Iterable[Parameter]
) -> None:
    """Check that something is left to train when the text encoders rest.

    Raises:
        ValueError: nothing of what is `trained`, or all of it, is of the text encoders.
    """
    if after is None:
        return
    resting = {id(parameter) for parameter in text}
    if not resting:
        raise ValueError("stop_text_encoders_after: no text encoder is trained; take it out")
    if all(id(parameter) in resting for parameter in trained):
        raise ValueError(
            f"stop_text_encoders_after: nothing is left to train after step {after}; end the run "
            "there with max_train_steps"
        )


class TextStop:
    """Lets parameters rest from step `after` on; None: never.

    An optimizer leaves a parameter without gradient as it is. With one process the text encoders
    then also run without gradients, which saves their backward pass; with several the gradients
    have to be there for the others to go on.
    """

    def __init__(
        self,
        model: DiffusionModel,
        parameters: Iterable[Parameter],
        *,
        after: int | None,
        alone: bool = True,
    ):
        self._model = model
        self._parameters = list(parameters)
        self._after = after
        self._alone = alone

    def begin_step(self, step: int) -> None:
        """Switch the text encoders' gradients off if they are not wanted in this step."""
        if self._is_over(step) and self._alone:
            self._model.text_needs_gradients = False

    def drop_gradients(self, step: int) -> None:
        """Take away what gradients there are, before they are clipped and applied."""
        if self._is_over(step):
            for parameter in self._parameters:
                parameter.grad = None

    def _is_over(self, step: int) -> bool:
        return self._after is not None and step > self._after
