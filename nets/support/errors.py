"""Errors of nets."""

from __future__ import annotations

from common.errors import UserError


class NetError(UserError):
    """A net that cannot be built, loaded or changed as asked; the message is one sentence for the user."""
