"""Numbers and sizes as text."""

from __future__ import annotations


def size_text(num_bytes: float) -> str:
    """Write a size as people do."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
