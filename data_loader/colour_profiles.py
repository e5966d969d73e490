"""Images with an ICC profile, converted to sRGB."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

TOLERANCE = 2  # of 255, up to which a profile counts as sRGB: the profiles of that name differ by 1
LARGEST = 4_000_000  # bytes of a profile that is used; those of printers have up to 3 MB
CACHED = 8  # profiles: the images of a training hold few, and uploads must not fill the memory
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "F")
CONVERTED, UNUSABLE = "converted", "unusable"


def profile_use(image: Image.Image) -> str:
    """Return what the ICC profile of an image means for its values: CONVERTED, UNUSABLE, or "" for sRGB and none.

    A profile is unusable where it is damaged, or of another colour space than the values.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return ""
    space = profile_space(profile) if len(profile) <= LARGEST else ""
    if space == "sRGB" and image.mode != "CMYK":
        return ""
    fits = {"RGB": image.mode != "CMYK", "GRAY": image.mode in GREY_MODES, "CMYK": image.mode == "CMYK"}
    return CONVERTED if fits.get(space, False) else UNUSABLE


def to_srgb(image: Image.Image) -> Image.Image:
    """Return an image (L, LA, RGB, RGBA, CMYK) whose profile can be used in sRGB, never CMYK; others as they are."""
    if profile_use(image) != CONVERTED:
        return image
    profile: bytes = image.info["icc_profile"]
    if profile_space(profile) == "GRAY":
        grey = image.getchannel(0).point(_grey_table(profile))
        return grey if image.mode == "L" else Image.merge("LA", (grey, image.getchannel("A")))
    if profile_space(profile) == "RGB" and image.mode in ("L", "LA"):
        image = image.convert("RGB" if image.mode == "L" else "RGBA")
    return _transform(profile, image.mode).apply(image)


@functools.lru_cache(CACHED)
def profile_space(profile: bytes) -> str:
    """Return the colour space of an ICC profile: "sRGB", "RGB", "GRAY", "CMYK", another, or "" where it is damaged."""
    try:
        space = str(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space).strip()
        if space == "CMYK":
            _transform(profile, space)
        elif space in ("RGB", "GRAY"):
            steps = np.indices((9, 9, 9)).reshape(3, 27, 27).transpose(1, 2, 0) * 31  # colours of 0, 31, ... 248
            if space == "RGB":
                change = np.asarray(_transform(profile, space).apply(Image.fromarray(steps.astype(np.uint8)))) - steps
            else:
                change = np.array(_grey_table(profile)) - np.arange(256)
            return "sRGB" if np.abs(change).max() <= TOLERANCE else space
        return space
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return ""


@functools.lru_cache(CACHED)
def _grey_table(profile: bytes) -> list[int]:
    """Return the sRGB value of each grey value; LittleCMS's optimisation, a grid of 33, is off by 10 in the dark."""
    exact = _transform(profile, "L", ImageCms.Flags.NOOPTIMIZE)
    return [int(value) for value in np.asarray(exact.apply(Image.linear_gradient("L")))[:, 0, 1]]


@functools.lru_cache(2 * CACHED)
def _transform(profile: bytes, mode: str, flags: ImageCms.Flags = ImageCms.Flags.NONE) -> ImageCms.ImageCmsTransform:
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return ImageCms.buildTransform(own, srgb, mode, "RGBA" if mode == "RGBA" else "RGB", flags=flags)
