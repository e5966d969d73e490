"""The prediction of a classifier: classes with their scores, and where it is calibrated the decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifacts.metadata import ModelMetadata
from common.console import text_columns
from deploy.inference.decision import decide
from deploy.inference.prediction import NOT_FINITE, Prediction, csv_text
from deploy.inference.uncertainty_scores import softmax

DECISION_COLUMNS = ("uncertainty", "decision", "conformal_set")
MAX_CLASS_COLUMNS, SCORE_COLUMNS = 28, 6  # of a terminal


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The class of one image.

    `top_k` holds the classes with the highest scores, best first; the first is the predicted one. `decision` is accept
    or set_aside where the net is calibrated, else empty, and `conformal_set` the classes that the image may show.
    """

    label: int = -1
    class_name: str = ""
    score: float = 0.0
    top_k: tuple[tuple[str, float], ...] = ()
    uncertainty: float = 0.0
    decision: str = ""
    conformal_set: tuple[str, ...] = ()

    @classmethod
    def decode(
        cls, outputs: np.ndarray, metadata: ModelMetadata, topk: int, sizes: Sequence[tuple[int, int]]
    ) -> Iterator[ClassPrediction]:
        """Yield the class of each row of logits (N, K), by the softmax over the metadata's temperature."""
        names = metadata.class_names
        decisions = decide(outputs, metadata)
        for scores, decision in zip(softmax(outputs, metadata.temperature or 1.0), decisions, strict=True):
            if np.isnan(scores).any():
                yield cls("", error=NOT_FINITE)
                continue
            order = np.argsort(-scores, kind="stable")[:topk]  # of equal scores the lower label comes first
            top_k = tuple((names[label], float(scores[label])) for label in order)
            decided: tuple[Any, ...] = ()
            if decision is not None:
                members = tuple(names[label] for label in decision.conformal_set)
                decided = (decision.uncertainty, decision.decision, members)
            yield cls("", int(order[0]), *top_k[0], top_k, *decided)

    @classmethod
    def example(cls, class_names: Sequence[str]) -> ClassPrediction:
        """Return a prediction of the first class."""
        first, second = class_names[:2]
        return cls("", 0, first, 0.9, ((first, 0.9), (second, 0.1)))

    def values(self) -> dict[str, Any]:
        """Return {"label", "class", "score", "top_k"}, and where the net is calibrated DECISION_COLUMNS."""
        return {
            "label": self.label,
            "class": self.class_name,
            "score": self.score,
            "top_k": [[name, score] for name, score in self.top_k],
            **self._decided(),
        }

    @classmethod
    def csv_columns(cls, metadata: ModelMetadata, topk: int) -> tuple[str, ...]:
        """Return label, class, score, then class_2, score_2 and so on to `topk`, then DECISION_COLUMNS."""
        ranks = range(2, min(topk, metadata.num_classes) + 1)
        others = (f"{column}_{rank}" for rank in ranks for column in ("class", "score"))
        return ("label", "class", "score", *others, *(DECISION_COLUMNS if metadata.calibration else ()))

    def csv_row(self) -> list[str | int]:
        """Return what stands in `csv_columns`."""
        ranked = (text for name, score in self.top_k for text in (name, f"{score:.6f}"))
        return [self.label, *ranked, *map(csv_text, self._decided().values())]

    @classmethod
    def text_widths(cls, metadata: ModelMetadata) -> tuple[int, ...]:
        """Return the columns of the longest class name, MAX_CLASS_COLUMNS at most, and of a score."""
        return min(max(map(text_columns, metadata.class_names), default=0), MAX_CLASS_COLUMNS), SCORE_COLUMNS

    def texts(self) -> tuple[str, ...]:
        """Return class and score."""
        return self.class_name, f"{self.score:.4f}"

    @property
    def group(self) -> str:
        """The predicted class."""
        return self.class_name

    def caption(self) -> list[str]:
        """Return the three best classes with their scores."""
        return [f"{name}  {score:.4f}" for name, score in self.top_k[:3]]

    def _decided(self) -> dict[str, Any]:
        if not self.decision:
            return {}
        values = (self.uncertainty, self.decision, list(self.conformal_set))
        return dict(zip(DECISION_COLUMNS, values, strict=True))
