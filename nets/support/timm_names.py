"""The names of timm's nets as backbones, and whether timm is there. Needs no torch."""

from __future__ import annotations

import importlib.util

PREFIX = "timm:"  # of a backbone's name; without it torchvision's net is meant
NOT_INSTALLED = "timm's nets need a package that is not installed: pip install -r requirements-timm.txt"


def is_timm(model_type: str) -> bool:
    """Return whether a backbone's name is one of timm's, "timm:NAME"."""
    return model_type.startswith(PREFIX)


def is_installed() -> bool:
    """Return whether timm can be imported, without importing it."""
    return importlib.util.find_spec("timm") is not None
