"""`from aiUtils import aiUtils`, as users' scripts for the PIE-Engine platform have it, outside the platform.

This folder on PYTHONPATH is all that such a script needs. See docs/pie-engine.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)  # last: a script's own modules go first

from platforms.pie_engine.access import DatasetAccess  # noqa: E402


class aiUtils:
    """The platform's own class of this name, as far as scripts use it."""

    s3GetImg = DatasetAccess
