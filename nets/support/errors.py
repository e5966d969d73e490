"""Errors of nets."""

from __future__ import annotations


class NetError(ValueError):
    """A net that cannot be built, loaded or changed as asked; the message is one sentence for the user."""
