"""tf.train.Example, as TFRecord files hold it: features by name, each a list of bytes, floats or integers.

The wire format is protobuf's (Protocol Buffers, "Encoding"): few fields of two types, so that a large image that is not
asked for is stepped over without being read.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

Feature = Sequence[bytes] | Sequence[float] | Sequence[int]

BYTES, FLOATS, INTS = 1, 2, 3  # the fields of a Feature
VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5  # wire types
MOST_BITS = 64
WINDOW = 4096  # bytes


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """Return an Example with its features in the order of their names; an empty list is one of bytes."""
    return join_features({name: encode_feature(name, values) for name, values in features.items()})


def encode_feature(name: str, values: Feature) -> bytes:
    """Return one feature as it stands in an Example. A file's bytes are copied once."""
    parts = [_head(1, len(name.encode())), name.encode()]
    if len(values) == 1 and isinstance(values[0], bytes):
        item = values[0]
        heads = [_head(1, len(item))]
        for field in (BYTES, 2):
            heads.insert(0, _head(field, len(item) + sum(map(len, heads))))
        parts += [*heads, item]
    else:
        parts.append(_delimited(2, _encoded(values)))
    return b"".join((_head(1, sum(map(len, parts))), *parts))


def join_features(encoded: Mapping[str, bytes]) -> bytes:
    """Return an Example of encoded features by their names."""
    return b"".join((_head(1, sum(map(len, encoded.values()))), *(encoded[name] for name in sorted(encoded))))


def decode_example(data: bytes | memoryview, wanted: Collection[str] | None = None) -> dict[str, list[Any]]:
    """Return the features of an Example, or those that are wanted: lists of bytes, floats or ints.

    Raises ValueError for what is no Example.
    """
    found: dict[str, list[Any]] = {}
    names = None if wanted is None else {name.encode() for name in wanted}
    try:
        for _, features in _fields(memoryview(data)):
            for name, feature in _features(features, names):
                if names is None or name in names:
                    found[name.decode()] = _decoded(feature)
    except (IndexError, struct.error, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no tf.train.Example: {error}") from error
    return found


def without_features(data: memoryview, names: Collection[str]) -> bytes:
    """Return an Example without some of its features. Raises ValueError for what is no Example."""
    kept: dict[str, bytes] = {}
    try:
        for _, features in _fields(data):
            for name, feature in _features(features, None):
                if (text := name.decode()) not in names:
                    kept[text] = _delimited(1, _delimited(1, name) + _delimited(2, bytes(feature)))
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no tf.train.Example: {error}") from error
    return join_features(kept)


def find_text(data: memoryview, name: str, other: str) -> memoryview | None:
    """Return the text of a feature that has one, without reading the others, as `decode_example` does.

    It is found near the beginning by its name, with the sizes around it in agreement. None where it is not
    found so, or where a feature called `other` may be there.
    """
    head, mark = bytes(data[:WINDOW]), _mark(name)
    place = head.find(mark)
    try:
        feature, start = _read_varint(head, place + len(mark))
        texts, inner = _read_varint(head, start + 1)
        size, first = _read_varint(head, inner + 1)
    except IndexError:
        return None
    end = first + size
    before = _head(1, end - place)
    is_text = head[place - len(before) : place] == before and head[start] == head[inner] == BYTES << 3 | DELIMITED
    if place < 0 or not is_text or not start + feature == inner + texts == end <= len(data) <= end + WINDOW:
        return None
    return None if _mark(other) in head[:place] or _mark(other) in bytes(data[end:]) else data[first:end]


@functools.cache
def _mark(name: str) -> bytes:
    """Return what stands before the size of a feature's value."""
    return _delimited(1, name.encode()) + bytes([2 << 3 | DELIMITED])


def _features(data: memoryview, names: Collection[bytes] | None) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the names and contents of features: of all, or of those named and perhaps of others."""
    place, end = 0, len(data)
    while place < end:
        if names is not None:
            place += _stepped_over(bytes(data[place : place + WINDOW]), names)
            if place == end:
                return
        if data[place] != 1 << 3 | DELIMITED:
            raise IndexError(f"a field {data[place]} among the features")
        size, place = _read_varint(data, place + 1)
        entry, place = data[place : place + size], place + size
        if place > end:
            raise IndexError("it ends too early")
        name_size = entry[1] if size > 1 and entry[0] == 1 << 3 | DELIMITED else 128
        after = 2 + name_size
        if name_size < 128 and after < size and entry[after] == 2 << 3 | DELIMITED:
            content, start = _read_varint(entry, after + 1)
            if start + content == size:
                yield bytes(entry[2:after]), entry[start:]
                continue
        parts = dict(_fields(entry))  # a long name, or another order
        yield bytes(parts.get(1, b"")), parts.get(2, memoryview(b""))


def _stepped_over(window: bytes, names: Collection[bytes]) -> int:
    """Return the bytes of the small features at the beginning that are none of these: most of a record's, and fast."""
    field = 1 << 3 | DELIMITED
    wanted = tuple(names)
    sizes = {len(name) for name in names}
    place, end = 0, len(window)
    while place + 3 < end and window[place] == window[place + 2] == field:
        after = place + 2 + window[place + 1]
        is_large = after - place > 129 or after > end
        if is_large or (window[place + 3] in sizes and window.startswith(wanted, place + 4)):
            break
        place = after
    return place


def _encoded(values: Feature) -> bytes:
    first = values[0] if len(values) else b""
    if isinstance(first, bytes):
        return _delimited(BYTES, b"".join(_delimited(1, item) for item in values if isinstance(item, bytes)))
    if isinstance(first, float):
        return _delimited(FLOATS, _delimited(1, struct.pack(f"<{len(values)}f", *values)))
    return _delimited(INTS, _delimited(1, b"".join(_varint(int(item) & (2**64 - 1)) for item in values)))


def _decoded(feature: memoryview) -> list[Any]:
    values: list[Any] = []
    for kind, content in _fields(feature):
        for _, item in _fields(content):
            if kind == BYTES:
                values.append(bytes(item))
            elif kind == FLOATS:
                values += struct.unpack(f"<{len(item) // 4}f", item)
            elif isinstance(item, int):  # not packed
                values.append(_signed(item))
            else:
                values += _varints(item)
    return values


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        number, place = _read_varint(data, place)
        yield _signed(number)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and content of a message's fields. Raises IndexError where they end too early."""
    place, end = 0, len(data)
    while place < end:
        key, place = _read_varint(data, place)
        kind = key & 7
        if kind == VARINT:
            number, place = _read_varint(data, place)
            yield key >> 3, number
            continue
        if kind == DELIMITED:
            size, place = _read_varint(data, place)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise IndexError(f"a field of type {kind}")
        if place + size > end:
            raise IndexError("it ends too early")
        yield key >> 3, data[place : place + size]
        place += size


def _read_varint(data: memoryview | bytes, place: int) -> tuple[int, int]:
    byte = data[place]
    if byte < 128:
        return byte, place + 1
    number, shift = 0, 0
    while True:
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
        shift += 7
        if shift >= MOST_BITS + 6:
            raise IndexError("a number has too many bytes")


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def _delimited(field: int, content: bytes) -> bytes:
    return _head(field, len(content)) + content


def _head(field: int, size: int) -> bytes:
    """Return what stands before `size` bytes of a field."""
    return bytes([field << 3 | DELIMITED]) + _varint(size)
