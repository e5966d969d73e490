"""Images in other colour spaces than sRGB, against the CIE's formulas; and where their profiles are not used."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from artifacts.metadata import ModelMetadata, preprocess_of
from configs.schema import Config
from data_loader.cache import Fitting
from data_loader.colour_profiles import LARGEST
from data_loader.decoding import decode
from data_loader.preprocess import Preprocess, as_array
from deploy.service.image_decoder import ImageDecoder
from tests.helpers.images import png_file
from tests.helpers.profiles import (
    ADOBE_XY,
    D50_XY,
    D65_XY,
    P3_XY,
    PROPHOTO_XY,
    SRGB_CURVE,
    SRGB_XY,
    cmyk_profile,
    encoded,
    grey_profile,
    rgb_profile,
    to_srgb,
)
from tests.helpers.tiff_files import tiff_file

SPACES = {
    "Display P3": (P3_XY, D65_XY, SRGB_CURVE),
    "Adobe RGB": (ADOBE_XY, D65_XY, 563 / 256),
    "ProPhoto": (PROPHOTO_XY, D50_XY, 1.8),
}
P3 = rgb_profile(*SPACES["Display P3"])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def soft_colours() -> np.ndarray:
    """Return uint8 (64, 64, 3) whose colours sRGB has, whatever the space."""
    y, x = np.mgrid[0:64, 0:64] / 63
    return (255 * np.stack([0.35 + 0.3 * x, 0.35 + 0.25 * y, 0.4 + 0.2 * (1 - x) * y], -1)).astype(np.uint8)


def saved(image: Image.Image, kind: str, profile: bytes, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, icc_profile=profile, **options)
    return file.getvalue()


def off(data: bytes, wanted: np.ndarray, **options: Any) -> float:
    got = as_array(decode(data, **options)).astype(float)
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max())


@pytest.mark.parametrize("space", SPACES)
def test_colours_become_srgb(space: str) -> None:
    stored = soft_colours()
    profile, wanted = rgb_profile(*SPACES[space]), to_srgb(stored, *SPACES[space])
    assert np.abs(wanted - stored).max() > 8
    image = Image.fromarray(stored)
    assert off(saved(image, "PNG", profile), wanted) <= 1.5
    assert off(saved(image, "TIFF", profile, compression="tiff_lzw"), wanted) <= 1.5
    assert off(saved(image, "WEBP", profile, lossless=True), wanted) <= 1.5
    jpeg = saved(image, "JPEG", profile)
    assert off(jpeg, to_srgb(np.asarray(Image.open(io.BytesIO(jpeg))), *SPACES[space])) <= 1.5
    further = {34675: (1, list(profile))}
    assert off(tiff_file(stored.astype(np.uint16) * 257, 2, further=further), wanted) <= 1.5
    luma = (wanted @ [0.299, 0.587, 0.114])[..., None]  # ITU-R 601
    assert off(saved(image, "PNG", profile), luma, channels=1) <= 2


def test_a_reduced_jpeg_is_converted_too() -> None:
    colour = np.full((64, 64, 3), (120, 90, 140), np.uint8)
    data = saved(Image.fromarray(colour), "JPEG", P3, quality=100, subsampling=0)
    wanted = to_srgb(colour[:16, :16], *SPACES["Display P3"])
    assert off(data, wanted, at_least=(16, 16)) <= 3


def test_alpha_and_palettes_are_converted_before_they_lie_on_white() -> None:
    stored = soft_colours()
    alpha = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))[..., None]
    wanted = to_srgb(stored, *SPACES["Display P3"]) * (alpha / 255) + 255 - alpha.astype(float)
    assert off(saved(Image.fromarray(np.concatenate([stored, alpha], -1)), "PNG", P3), wanted) <= 2
    indexed = Image.fromarray(stored).quantize(64)
    colours = np.asarray(indexed.convert("RGB"))
    assert off(saved(indexed, "PNG", P3), to_srgb(colours, *SPACES["Display P3"])) <= 1.5


def test_grey() -> None:
    wanted = encoded((RAMP / 255.0) ** 1.0)[..., None]  # linear light
    profile = grey_profile(1.0)
    assert off(saved(Image.fromarray(RAMP), "PNG", profile), wanted, channels=1) <= 1.5
    assert off(saved(Image.fromarray(RAMP), "PNG", profile), np.repeat(wanted, 3, 2)) <= 1.5
    deep = saved(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG", profile)
    assert off(deep, wanted, channels=1) <= 1.5
    alpha = Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", RAMP.shape, 128)))
    assert off(saved(alpha, "PNG", profile), np.repeat(wanted * 128 / 255 + 127, 3, 2)) <= 2
    on_grey = saved(Image.fromarray(RAMP), "PNG", rgb_profile(SRGB_XY, D65_XY, 1.0))  # a colour profile on grey values
    assert off(on_grey, np.repeat(wanted, 3, 2)) <= 1.5


def test_cmyk_by_its_profile() -> None:
    """Black ink alone is L* = 30, which is 71 in sRGB; the plain formula makes it 0."""
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:4, :, 3] = 255
    wanted = np.full((8, 8, 3), 255.0)
    wanted[:4] = encoded(np.array(((30 + 16) / 116) ** 3))
    data = saved(Image.fromarray(inks, "CMYK"), "TIFF", cmyk_profile(30))
    assert off(data, wanted) <= 2
    wanted[:4] = 0
    assert off(data, wanted, icc_profiles="ignore") == 0


@pytest.mark.parametrize("profile", [SRGB, rgb_profile(SRGB_XY, D65_XY, SRGB_CURVE), grey_profile(SRGB_CURVE)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_srgb_changes_no_bit(profile: bytes, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    image = Image.fromarray(noise[..., 0] if profile == grey_profile(SRGB_CURVE) else noise)
    for channels in (1, 3):
        with_profile = as_array(decode(saved(image, kind, profile), channels))
        np.testing.assert_array_equal(with_profile, as_array(decode(saved(image, kind, b""), channels)))


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"no profile"),
        ("RGB", P3[:200]),
        ("RGB", P3[:140] + b"\xff" * 300),
        ("RGB", P3 + bytes(LARGEST)),
        ("RGB", grey_profile(1.0)),
        ("RGB", cmyk_profile(30)),
        ("L", cmyk_profile(30)),
        ("CMYK", P3),
    ],
)
def test_a_profile_that_cannot_be_used_is_ignored(mode: str, profile: bytes) -> None:
    image = Image.fromarray(soft_colours()).convert(mode)
    np.testing.assert_array_equal(
        as_array(decode(saved(image, "TIFF", profile))), as_array(decode(saved(image, "TIFF", b"")))
    )


def test_ignored_on_request_and_for_earlier_files() -> None:
    stored = soft_colours()
    data = saved(Image.fromarray(stored), "PNG", P3)
    convert = Preprocess(64, 64)
    ignore = replace(convert, icc_profiles="ignore")
    assert Preprocess.from_dict(convert.to_dict()) == convert and Preprocess.from_dict(ignore.to_dict()) == ignore
    earlier = {key: value for key, value in convert.to_dict().items() if key != "icc_profiles"}
    assert Preprocess.from_dict(earlier) == ignore and ignore.to_dict() == earlier  # so that they go on being compared
    np.testing.assert_array_equal(as_array(ignore.decode(data)), stored)
    assert np.abs(as_array(convert.decode(data)) - to_srgb(stored, *SPACES["Display P3"])).max() <= 1.5
    assert Fitting(convert).pixel_settings() != Fitting(ignore).pixel_settings()  # of the cache's file
    with pytest.raises(ValueError, match='icc_profiles must be convert or ignore, got "other"'):
        replace(convert, icc_profiles="other")


def test_the_config_the_metadata_and_the_service_agree() -> None:
    stored = soft_colours()
    data = saved(Image.fromarray(stored), "PNG", P3)
    required = {"model_module_name": "m", "model_net_name": "n", "num_classes": 2}
    roots = {"train_data_root_dir": "", "val_data_root_dir": ""}
    for value in ("convert", "ignore"):
        preprocess = preprocess_of(Config.model_validate({**required, **roots, "icc_profiles": value}))
        assert preprocess.icc_profiles == value
        net: dict[str, Any] = {"module": "m", "name": "n", "args": {}}
        metadata = ModelMetadata.from_dict(ModelMetadata(("a", "b"), preprocess, net).to_dict())
        with closing(ImageDecoder(metadata, 10**6, 10**9, 1, 60.0)) as decoder:
            shown = decoder.show(data, 10_000, may_be_large=False)
        assert shown is not None
        served = as_array(shown[0])
        np.testing.assert_array_equal(served, as_array(metadata.preprocess.decode(data)))
        assert np.array_equal(served, stored) == (value == "ignore")
    assert preprocess_of(Config.model_validate({**required, **roots})).icc_profiles == "convert"


def test_16_bit_png_colours() -> None:
    stored = soft_colours()
    data = png_file(stored.astype(np.uint16) * 257)
    assert off(data, stored.astype(float)) <= 1
