"""What a net predicts for an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DECISION_COLUMNS = ("uncertainty", "decision", "conformal_set")


@dataclass(frozen=True)
class Prediction:
    """What the net says of one image, or in `error` why it says nothing.

    `top_k` holds the classes with the highest scores, best first; the first is the answer itself. `decision` is
    accept or set_aside where the net is calibrated, else empty, and `conformal_set` the classes that the image may
    show. `measures` are further numbers by name.
    """

    file: str
    label: int = -1
    class_name: str = ""
    score: float = 0.0
    top_k: tuple[tuple[str, float], ...] = ()
    error: str = ""
    uncertainty: float = 0.0
    decision: str = ""
    conformal_set: tuple[str, ...] = ()
    measures: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON: {"file", "label", "class", "score", "top_k"}, or {"file", "error"}.

        Where the net is calibrated DECISION_COLUMNS follow, and then the measures.
        """
        if self.error:
            return {"file": self.file, "error": self.error}
        return {
            "file": self.file,
            "label": self.label,
            "class": self.class_name,
            "score": self.score,
            "top_k": [[name, score] for name, score in self.top_k],
            **self._details(),
        }

    def _details(self) -> dict[str, Any]:
        decided = (self.uncertainty, self.decision, list(self.conformal_set)) if self.decision else ()
        return dict(zip(DECISION_COLUMNS, decided, strict=False)) | dict(self.measures)
