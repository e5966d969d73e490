"""What the outputs of a net are, by the names that its metadata gives them."""

from __future__ import annotations

from collections.abc import Callable

from artifacts.metadata import ModelMetadata

WITH_CLASSES = ("logits", "mask_logits", "boxes")  # outputs that have a part for each class, in the classes' order

INPUT_NAME = "images"  # of every file's one input

Shape = tuple[int | None, ...]  # None: any size; the first is the batch

OUTPUT_SHAPES: dict[str, Callable[[ModelMetadata], Shape]] = {
    "logits": lambda metadata: (None, metadata.num_classes),  # (N, K); their softmax gives the scores
    "features": lambda metadata: (None, None),  # (N, D)
    "mask_logits": lambda metadata: (  # (N, K, H, W); the class of a pixel is the largest of its K
        *(None, metadata.num_classes),
        *((None, None) if metadata.size_step else (metadata.preprocess.height, metadata.preprocess.width)),
    ),
    "boxes": lambda metadata: (None, None, 4 + metadata.num_classes),  # (N, A, 4 + K); see `artifacts.detections`
}


def input_shape(metadata: ModelMetadata) -> Shape:
    """Return the shape of what a net takes: float32 (N, C, H, W), uint8 (N, H, W, C)."""
    preprocess = metadata.preprocess
    sizes = (None, None) if metadata.size_step else (preprocess.height, preprocess.width)
    is_float = metadata.input == "float32 NCHW"
    return (None, preprocess.channels, *sizes) if is_float else (None, *sizes, preprocess.channels)


def output_shape(metadata: ModelMetadata) -> Shape | None:
    """Return the shape that a net's output must have; None for an output of any shape (N, ...)."""
    shape = OUTPUT_SHAPES.get(metadata.output)
    return shape(metadata) if shape else None


def output_name(metadata: ModelMetadata) -> str:
    """Return the name of a file's output; features are "logits", as in every file before outputs had names."""
    return "logits" if metadata.output == "features" else metadata.output
