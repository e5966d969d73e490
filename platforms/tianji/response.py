"""What the platform's service says of an image, in the platform's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artifacts.metadata import ModelMetadata
from deploy.inference.prediction import Prediction
from deploy.service.routes import Route
from platforms.tianji.files import DIGITS, FGVC_PIM, MODULES

VISUAL_DATA, VISUAL_RESULT = "need_visual_data", "need_visual_result"


def entry(prediction: Prediction, metadata: ModelMetadata, switches: Mapping[str, bool]) -> dict[str, Any]:
    """Give an image's entry of `data`; PIM's class carries the score in `infer_data` too."""
    score = str(round(prediction.score, DIGITS))
    shown = f"{prediction.class_name}_{score}"
    is_pim = metadata.net["module"] == MODULES[FGVC_PIM]
    made: dict[str, Any] = {"infer_data": [shown if is_pim else prediction.class_name, score]}
    if switches[VISUAL_DATA]:
        made["visual_data"] = {"output_type": "text", "annotation_type": None, "data": shown}
    if switches[VISUAL_RESULT]:
        made["visual_result"] = shown
    return made


ROUTE = Route("/autotable/predict", {VISUAL_DATA: True, VISUAL_RESULT: True}, entry)
