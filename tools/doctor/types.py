"""What the doctor's parts hand to each other."""

from __future__ import annotations

from typing import Any

Step = dict[str, Any]
