"""The platform's route: an image's prediction in the platform's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artifacts.metadata import ModelMetadata
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.prediction import Prediction
from deploy.service.routes import Route
from platforms.tianji.files import DIGITS, FGVC_PIM, MODULES

VISUAL_DATA, VISUAL_RESULT = "need_visual_data", "need_visual_result"


def entry(prediction: Prediction, metadata: ModelMetadata, switches: Mapping[str, bool]) -> dict[str, Any]:
    """Return an image's entry of `data`; for PIM the class in `infer_data` includes the score."""
    assert isinstance(prediction, ClassPrediction)  # the platform's models are classifiers
    score = str(round(prediction.score, DIGITS))
    label = f"{prediction.class_name}_{score}"
    is_pim = metadata.net["module"] == MODULES[FGVC_PIM]
    fields: dict[str, Any] = {"infer_data": [label if is_pim else prediction.class_name, score]}
    if switches[VISUAL_DATA]:
        fields["visual_data"] = {"output_type": "text", "annotation_type": None, "data": label}
    if switches[VISUAL_RESULT]:
        fields["visual_result"] = label
    return fields


ROUTE = Route("/autotable/predict", {VISUAL_DATA: True, VISUAL_RESULT: True}, entry)
