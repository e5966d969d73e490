"""Calibration: the uncertainty score that accepts predictions, and the target that its thresholds were fitted to."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from typing import Any

SCORES = (
    "least_confidence",
    "entropy",
    "margin",
    "energy",
    "evidence",
)  # of the logits alone: every kind of file has them
FP32 = "fp32"  # what a checkpoint computes in
LONGEST_NAME = 64  # characters of `fitted_to`
ACCEPT, CONFORMAL = "accept", "conformal"  # keys of the metadata's thresholds
PIXEL_SCORE, MOST_WRONG = "pixel_score", "most_wrong"  # of masks: the least score of an accepted pixel, and its target
MOST_MISSED = "most_missed"  # of boxes: the target of the score threshold


@dataclass(frozen=True)
class Calibration:
    """The target that the thresholds `accept` and `conformal` of the same metadata were fitted to on a labelled list.

    The error rate of the accepted is under `target_risk` with probability `confidence`; the conformal set misses the
    true class with probability at most `conformal_risk`. Of `pictures` images the threshold accepted `accepted`, of
    which `wrong` were wrong; `risk_bound` is the upper bound of the error rate that follows.
    `fitted_to` names the outputs that it was fitted to, as `outputs_name` does: the target is met for those alone.
    """

    score: str
    target_risk: float
    confidence: float
    conformal_risk: float
    pictures: int
    accepted: int
    wrong: int
    risk_bound: float
    fitted_to: str = FP32

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; of a checkpoint's own outputs as older programs wrote and read them."""
        values = asdict(self)
        if self.fitted_to == FP32:
            del values["fitted_to"]
        return values

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """Return the calibration that `to_dict` wrote. Raises ValueError for anything else."""
        names = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or set(values) | {"fitted_to"} != set(names):
            raise ValueError(f"calibration must have {', '.join(names)}")
        calibration = cls(**values)
        wrong = [name for name, fits in calibration._fits().items() if not fits]
        if wrong:
            raise ValueError(f"calibration cannot have {', '.join(f'{name} {values[name]!r:.40}' for name in wrong)}")
        return calibration

    def _fits(self) -> dict[str, bool]:
        shares = ("target_risk", "confidence", "conformal_risk")
        counts = ("pictures", "accepted", "wrong")
        fits = {name: _is_number(value) and 0 < value < 1 for name, value in vars(self).items() if name in shares}
        fits |= {name: type(value) is int and value >= 0 for name, value in vars(self).items() if name in counts}
        return fits | {
            "score": self.score in SCORES,
            "risk_bound": _is_number(self.risk_bound) and 0 <= self.risk_bound <= 1,
            "fitted_to": isinstance(self.fitted_to, str) and 0 < len(self.fitted_to) <= LONGEST_NAME,
        }


def outputs_name(precision: str, runtime: str) -> str:
    """Return which outputs a net has: its precision, and of int8, which each runtime rounds in its own way, both."""
    return f"{precision} on {runtime}" if precision == "int8" else precision


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
