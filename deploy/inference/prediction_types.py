"""The table of prediction types: which one stands for the outputs that a net's metadata names."""

from __future__ import annotations

from deploy.backends.base import BackendError
from deploy.inference.box_prediction import BoxPrediction
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.mask_prediction import MaskPrediction
from deploy.inference.prediction import Prediction

PREDICTION_TYPES: dict[str, type[Prediction]] = {  # by `ModelMetadata.output`
    "logits": ClassPrediction,
    "mask_logits": MaskPrediction,
    "boxes": BoxPrediction,
}


def prediction_type(output: str) -> type[Prediction]:
    """Return the type for a net's output. Raises BackendError where there is none."""
    if output in PREDICTION_TYPES:
        return PREDICTION_TYPES[output]
    if output == "features":
        raise BackendError(
            "this net gives features, not classes: python -m tools.embed writes them, and a "
            "SimSiam_probe trained from it classifies"
        )
    raise BackendError(f"this net gives {output}, which no prediction type reads: {', '.join(PREDICTION_TYPES)}")
