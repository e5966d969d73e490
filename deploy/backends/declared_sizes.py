"""The sizes that a file declares of its input and output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from artifacts.metadata import ModelMetadata
from artifacts.outputs import Shape, input_shape, output_shape
from deploy.backends.base import BackendError


def check_declared(path: Path, metadata: ModelMetadata, declared: Sequence[Shape | None]) -> None:
    """Compare the shapes that a file declares of its input and output (None: not declared) with its metadata.

    Raises BackendError.
    """
    expected: dict[str, Shape | None] = {
        f"takes images ({metadata.input})": input_shape(metadata),
        f"returns {metadata.output}": output_shape(metadata),
    }
    if len(declared) != len(expected):
        raise BackendError(f"{path}: its net must have one input and one output")
    for (what, wanted), sizes in zip(expected.items(), declared, strict=True):
        if sizes is not None and wanted is not None and not shapes_agree(sizes, wanted):
            own, other = (", ".join("N" if size is None else str(size) for size in part) for part in (sizes, wanted))
            raise BackendError(f"{path}: its net {what} ({own}), its metadata says ({other}): they are not of one net")


def sizes_of(shape: Iterable[object]) -> Shape:
    """Return the sizes of a declared shape; what is no number from 0 is free."""
    return tuple(size if isinstance(size, int) and size >= 0 else None for size in shape)


def shapes_agree(sizes: Shape, wanted: Shape) -> bool:
    """Return whether two shapes can be of one tensor; a size that is free in either agrees with any."""
    pairs = zip(sizes, wanted, strict=False)
    return len(sizes) == len(wanted) and all(None in pair or pair[0] == pair[1] for pair in pairs)
