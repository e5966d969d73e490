"""The orientation that a camera writes, in files that other programs have read wrongly."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from PIL import Image

from data_loader.preprocess import Preprocess

XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # one tag: orientation 6


def jpeg(*segments: bytes) -> bytes:
    """Return a JPEG of 64x32 px, its left half red, with APP1 segments of this content."""
    image = Image.new("RGB", (64, 32), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 32, 32))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    content = file.getvalue()
    parts = [b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment for segment in segments]
    return content[:2] + b"".join(parts) + content[2:]


@pytest.mark.parametrize("segments", [(TURNED,), (XMP, TURNED), (TURNED, XMP)])
def test_the_orientation_is_found_among_other_segments(segments: tuple[bytes, ...], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(*segments))
    image = Preprocess(32, 32).decode(tmp_path / "a.jpg")
    assert image.size == (32, 64)
    assert image.getpixel((16, 10))[0] > 200 and image.getpixel((16, 54))[2] > 200  # the left half is at the top


@pytest.mark.parametrize(
    "segment",
    [
        b"Exif\0\0",
        b"Exif\0\0" + bytes(40),
        TURNED[:20],
        TURNED.replace(b"\0\x03\0\0\0\x01\0\x06", b"\0\x03\0\0\0\x01\0\x09"),  # there are eight orientations
        TURNED.replace(b"\0\x03\0\0\0\x01\0\x06", b"\0\x02\0\0\0\x026\0"),  # a text
    ],
    ids=["empty", "zeros", "cut short", "nine", "text"],
)
def test_a_damaged_orientation_leaves_the_image_as_it_is(segment: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(segment))
    image = Preprocess(32, 32).decode(tmp_path / "a.jpg")
    assert image.size == (64, 32) and image.getpixel((10, 16))[0] > 200
