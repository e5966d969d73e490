"""The audit of the calibration: accepted predictions drawn at random are labelled by people, and test the target risk.

The service draws, not the client: labels of images that somebody chose would say nothing about the others. Scores alone
are watched, too, as a warning: whether more images are set aside than at the calibration.
"""

from __future__ import annotations

import hmac
import logging
import math
import re
import secrets
import threading
from typing import Any

from artifacts.metadata import ModelMetadata
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.decision import ACCEPTED, SET_ASIDE
from deploy.inference.prediction import Prediction
from deploy.service.audit_file import AuditFile, LabelledPrediction
from deploy.service.request_parser import RequestError, quote
from deploy.service.risk_test import LEVEL, RiskTest
from deploy.service.routes import ServiceError

UNTESTED, HELD, EXCEEDED = "untested", "held", "exceeded"
MAX_LABELLED = 100_000  # whose ids are kept in memory, some 20 MB
BROKEN = "the risk among the accepted is above its target; calibrate the net anew on images of today"
ID = re.compile(r"([0-9a-f]{16})\.(0|[1-9][0-9]{0,8})\.([0-9a-f]{32})")

logger = logging.getLogger("service")


def check_audited(metadata: ModelMetadata) -> None:
    """Raise ServiceError for a net whose predictions have no target risk to test."""
    if metadata.calibration is None:
        raise ServiceError(
            "--audit tests the target risk of a calibrated classifier, and this net is none; calibrate it with: "
            "python inference_uncertain.py --weights CHECKPOINT --calibrate LIST"
        )


class Audit:
    """Draws accepted predictions, takes their labels, and knows whether the target risk still holds."""

    def __init__(self, file: AuditFile, metadata: ModelMetadata, share: float) -> None:
        assert metadata.calibration is not None
        self._file, self._names, self._share = file, metadata.class_names, share
        self._lock = threading.Lock()  # labels are written by threads, one after the other
        self._labels: dict[str, int | None] = {}
        self._risk = RiskTest(metadata.calibration.target_risk)
        self._set_aside = RiskTest(_set_aside_bound(metadata))
        self.drawn = 0  # since the start
        for row in file.rows:
            self._count(row)

    @property
    def status(self) -> str:
        """Whether the target risk holds: UNTESTED without a label, EXCEEDED with evidence against it, else HELD."""
        if self._risk.is_exceeded:
            return EXCEEDED
        return HELD if self._risk.count else UNTESTED

    @property
    def has_drifted(self) -> bool:
        """Whether more images are set aside, since the start, than at the calibration."""
        return self._set_aside.is_exceeded

    def metrics(self) -> dict[str, float]:
        """Return the numbers for GET /metrics, by name."""
        return {
            "drawn": self.drawn,
            "labelled": self._risk.count,
            "wrong": self._risk.events,
            "evidence": self._risk.evidence,
            "exceeded": self._risk.is_exceeded,
            "drift": self.has_drifted,
        }

    def mark(self, prediction: Prediction) -> dict[str, Any]:
        """Return what an entry of a response says beside its prediction; "audit_id" where it was drawn."""
        if not isinstance(prediction, ClassPrediction) or not prediction.decision:
            return {}
        self._set_aside.observe(prediction.decision == SET_ASIDE)
        marked: dict[str, Any] = {"calibration_target": self.status}
        is_full = len(self._labels) >= MAX_LABELLED
        if prediction.decision == ACCEPTED and not is_full and secrets.randbelow(10**9) < self._share * 10**9:
            self.drawn += 1
            marked["audit_id"] = self._new_id(prediction.label)
        return marked

    def take_label(self, audit_id: str, class_name: str | None) -> dict[str, Any]:
        """Count the true class of a drawn prediction, None for no class of the net; return what is known now.

        A repeated label changes nothing. Raises RequestError, also where the label cannot be written.
        """
        nonce, predicted = self._opened(audit_id)
        if class_name is not None and class_name not in self._names:
            raise RequestError(422, f"{quote(class_name)} is no class of this net; null stands for none of them")
        label = None if class_name is None else self._names.index(class_name)
        with self._lock:
            if nonce not in self._labels:
                self._add(LabelledPrediction(nonce, predicted, label))
            elif self._labels[nonce] != label:
                raise RequestError(409, "this prediction has another label already")
            return {"labelled": self._risk.count, "wrong": self._risk.events, "calibration_target": self.status}

    def _add(self, row: LabelledPrediction) -> None:
        if len(self._labels) >= MAX_LABELLED:
            raise RequestError(409, f"{MAX_LABELLED} labels are there already; begin a new file with --audit")
        try:
            self._file.append(row)
        except OSError as error:
            raise RequestError(503, f"the label cannot be written: {error.strerror or 'the disk is full'}") from error
        was = self.status
        self._count(row)
        if self.status == EXCEEDED != was:
            logger.warning("%s of %s audited predictions are wrong: %s", self._risk.events, self._risk.count, BROKEN)

    def _count(self, row: LabelledPrediction) -> None:
        self._labels[row.nonce] = row.label
        self._risk.observe(row.label != row.predicted)

    def _new_id(self, predicted: int) -> str:
        signed = f"{secrets.token_hex(8)}.{predicted}"
        return f"{signed}.{self._signature(signed)}"

    def _opened(self, audit_id: str) -> tuple[str, int]:
        """Return nonce and predicted label of an id. Raises RequestError for one that was never given."""
        found = ID.fullmatch(audit_id)
        if found is None or not hmac.compare_digest(found[3], self._signature(f"{found[1]}.{found[2]}")):
            raise RequestError(422, "this audit_id was not given for this net")
        return found[1], int(found[2])

    def _signature(self, text: str) -> str:
        return hmac.digest(self._file.key, text.encode(), "sha256").hex()[:32]


def _set_aside_bound(metadata: ModelMetadata) -> float:
    """Return a share that is above the true share set aside with confidence 1 - LEVEL (Hoeffding 1963)."""
    calibration = metadata.calibration
    assert calibration is not None
    share = 1 - calibration.accepted / max(calibration.pictures, 1)
    return min(share + math.sqrt(math.log(1 / LEVEL) / (2 * max(calibration.pictures, 1))), 0.99)
