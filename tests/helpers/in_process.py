"""Images decoded in the test's own process, and boxes without a net: what is quick to start."""

from __future__ import annotations

from dataclasses import replace

from data_loader.band_image import gaps_of
from data_loader.decoder_process import Fitted
from data_loader.preprocess import Preprocess
from tests.helpers.masks_served import METADATA

BOXES = replace(METADATA, task="detection", output="boxes", thresholds={"score": 0.5, "nms_iou": 0.6})


class InProcess:
    """Stands in for the decoder processes, whose start takes longer than the few images here."""

    def __init__(self, preprocess: Preprocess, count: int) -> None:
        self._preprocess = preprocess

    def fit(self, source: str, max_pixels: int) -> Fitted:
        image = self._preprocess.decode(source)
        return Fitted(image, image.size, gaps_of([image]))

    def close(self) -> None:
        pass
