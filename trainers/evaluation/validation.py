"""A validation as the training loop knows it: a loss, the measure that decides, and further numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Measure:
    """The number of a validation that decides which epoch's net is the best.

    `key` is its name in `Validation.scalars`, in checkpoints, report.json and TensorBoard; `name` is for people. A
    share, from 0 to 1, is shown in percent.
    """

    key: str
    name: str
    higher_is_better: bool = True
    is_share: bool = False

    def is_better(self, value: float, than: float) -> bool:
        """Return whether one value beats another; NaN never does."""
        return value > than if self.higher_is_better else value < than

    def beats(self, point: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
        """Return whether a point {key: value, "loss": loss} beats another: of equal values, by the lower loss."""
        value, than = point[self.key], best[self.key]
        return self.is_better(value, than) or (value == than and point["loss"] < best["loss"])

    def text_of(self, validation: Validation) -> str:
        """Return a validation's value for people."""
        return self.text(validation.scalars()[self.key])

    def text(self, value: float | None) -> str:
        """Return a value for people, such as "91.23%" or "0.0312"."""
        if value is None:
            return "-"
        return f"{value:.2%}" if self.is_share else f"{value:.4f}"


@dataclass(frozen=True)
class Validation(ABC):
    """One validation. A task's own has its numbers as further fields of plain values."""

    loss: float

    @abstractmethod
    def scalars(self) -> dict[str, float]:
        """Return the numbers beside the loss, by key, for checkpoints, report and TensorBoard; one is the measure."""

    def parts(self) -> dict[str, float]:
        """Return further numbers for TensorBoard alone, by key."""
        return {}

    def report_rows(self) -> Sequence[tuple[str, str]]:
        """Return further figures for the report of the best epoch, as pairs of name and value."""
        return []

    def report_fields(self) -> dict[str, Any]:
        """Return the fields of a TrainingReport that are this kind of validation's alone."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` was made of. Raises TypeError for other values."""
        return cls(**values)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Keep a net in eval mode inside, and put it back into its mode afterwards."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)
