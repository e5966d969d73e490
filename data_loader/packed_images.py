"""The bytes of an image in a pack, by its name: of a shard on the disk, or of a streamed one."""

from __future__ import annotations

from typing import TypeVar

from data_loader.errors import ImageError
from data_loader.examples import decode_example, find_text
from data_loader.packs import open_shard, place_of
from data_loader.samples import ListError
from data_loader.streamed_packs import StreamError, stream_in

T = TypeVar("T")


def content_of(source: T) -> T | bytes:
    """Return the bytes of an image in a pack by its name; any other source as it is.

    Raises ImageError for a damaged record, or one without the image; StreamError for a shard that cannot be fetched.
    """
    if (place := place_of(source)) is None:
        return source
    path, index, feature = place
    shape = f"__{feature}_shape"
    try:
        data = _record(path, index)
        if (text := find_text(data, feature, shape)) is not None:
            return bytes(text)
        features = decode_example(data, (feature, shape))
    except StreamError:
        raise
    except (ListError, ValueError) as error:
        raise ImageError(str(error)) from error
    if not features.get(feature):
        raise ImageError(f"record {index} of {path} has no feature {feature}")
    content: bytes = features[feature][0]
    return _as_file(content, features[shape]) if shape in features else content


def _record(path: str, index: int) -> memoryview:
    folder, _, file = path.rpartition("/")
    if (stream := stream_in(folder)) is not None:
        return stream.record(file, index)
    shard = open_shard(path)
    if index >= len(shard):
        raise ImageError(f"{path} has {len(shard)} records, and no {index}")
    return shard.record(index)


def _as_file(content: bytes, shape: list[int]) -> bytes:
    """Return an image that is stored as an array uint8 (H, W), (H, W, 1) or (H, W, 3) in RGB as a file's bytes."""
    height, width, channels = (*shape, 1)[:3]
    if len(shape) not in (2, 3) or channels not in (1, 3) or height * width * channels != len(content):
        raise ImageError(f"an image of shape {shape} and {len(content)} bytes is not uint8 of 1 or 3 channels")
    return f"P{5 if channels == 1 else 6} {width} {height} 255\n".encode() + content
