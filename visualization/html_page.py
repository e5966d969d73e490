"""HTML pages that need no other file: one environment for their templates, and images as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visualization.raster import thumbnail


def render_page(template: Path, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """Return a Jinja template filled in. Values are escaped; a name that is not given raises jinja2.UndefinedError.

    `filters` are those of the page, beside `percent`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"percent": percent, **filters})
    return environment.get_template(template.name).render(values)


def thumbnail_data_uri(image: np.ndarray, side_px: int) -> str:
    """Return a uint8 image (H, W, C) that fits into a square as JPEG, or with few pixels as PNG, smaller and sharp."""
    small = thumbnail(image, side_px)
    buffer = io.BytesIO()
    if max(image.shape[:2]) * 2 <= side_px:
        small.save(buffer, format="PNG", optimize=True)
        return data_uri("image/png", buffer.getvalue())
    small.save(buffer, format="JPEG", quality=85)
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(media_type: str, content: bytes) -> str:
    """Return content as a URI that stands for a file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share from 0 to 1 in percent, and a dash for None."""
    return "–" if share is None else f"{share * 100:.{digits}f} %"
