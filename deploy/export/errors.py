"""Errors of an export."""

from __future__ import annotations

from common.errors import UserError


class ExportError(UserError):
    """A wrong request, a net that a format cannot hold, or a full disk; the message is one sentence for the user."""
