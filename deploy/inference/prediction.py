"""What a net predicts for an image: the base of the prediction types, of which each kind of output has its own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # a program's --help needs no numpy
    import numpy as np
    from PIL import Image

    from artifacts.metadata import ModelMetadata

NOT_FINITE = "the net's output is not finite (NaN or infinite logits)"


@dataclass(frozen=True)
class Prediction(ABC):
    """The prediction for one image, or in `error` why there is none.

    A type alone knows what its outputs mean: `decode` reads them, the other methods write one prediction. The table
    `PREDICTION_TYPES` names the type of an output. `measures` are further numbers by name, those of a `Measure`; `note`
    is what must be known of the net with each prediction.
    """

    is_slow: ClassVar[bool] = False  # whether `response` takes long enough to keep others waiting

    file: str
    second_file: str = field(default="", kw_only=True)  # the later image of a pair
    error: str = field(default="", kw_only=True)
    measures: tuple[tuple[str, float], ...] = field(default=(), kw_only=True)
    note: str = field(default="", kw_only=True)

    @classmethod
    @abstractmethod
    def decode(
        cls, outputs: np.ndarray, metadata: ModelMetadata, topk: int, sizes: Sequence[tuple[int, int]]
    ) -> Iterator[Prediction]:
        """Yield a prediction, without its file, for each row of float32 outputs (N, ...); NOT_FINITE is an error.

        Of classes the `topk` best are kept. `sizes` are the images' own (width, height).
        """

    @classmethod
    def example(cls, class_names: Sequence[str]) -> Prediction:
        """Return an invented prediction, which the service's documentation shows."""
        return cls("")

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Return plain values for JSON, without file and measures."""

    @classmethod
    @abstractmethod
    def csv_columns(cls, metadata: ModelMetadata, topk: int) -> tuple[str, ...]:
        """Return the names of the columns between the file and the measures."""

    @abstractmethod
    def csv_row(self) -> list[str | int]:
        """Return what stands in `csv_columns`."""

    @classmethod
    @abstractmethod
    def text_widths(cls, metadata: ModelMetadata) -> tuple[int, ...]:
        """Return how many terminal columns each of `texts` gets."""

    @abstractmethod
    def texts(self) -> tuple[str, ...]:
        """Return what a terminal line shows beside the file, column by column."""

    def without(self, gaps: np.ndarray) -> Prediction:
        """Return the prediction of an image some of whose pixels hold no data, `gaps` (H, W)."""
        return self

    @property
    def group(self) -> str:
        """The class whose folder a sorted copy goes to; empty where there is none."""
        return ""

    def caption(self) -> list[str]:
        """Return the lines below an annotated image, the most important first."""
        return ["  ".join(self.texts())]

    def annotate(self, image: Image.Image) -> Image.Image:
        """Return the image with the prediction in it: the caption in a strip below."""
        from visualization.raster import annotated  # late: fonts take a moment

        return annotated(image, self.caption())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: {"file", `values`, measures, "note" if any}, or {"file", "error"}.

        A pair has "second_file", too.
        """
        files = {"file": self.file} | ({"second_file": self.second_file} if self.second_file else {})
        return files | ({"error": self.error} if self.error else self._described(self.values()))

    def response(self) -> dict[str, Any]:
        """Return what the service answers for an image: {`values`, measures, "note" if any}."""
        return self._described(self.values())

    def _described(self, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, **dict(self.measures), **({"note": self.note} if self.note else {})}


def csv_text(value: Any) -> str:
    """Write a number to six digits, and a list, whose items may hold any character, as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
