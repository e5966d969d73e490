"""The errors that are a user's mistake."""

from __future__ import annotations


class BenchmarkError(ValueError):
    """A measurement that cannot be made; the message is one sentence for the user."""
