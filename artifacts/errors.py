"""Errors of files that hold a trained net."""

from __future__ import annotations

from common.errors import UserError


class ArtifactError(UserError):
    """An artefact that cannot be read, or that carries no metadata; the message is one sentence for the user."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written; the message names the file and the reason."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is no longer what was written; the message names a complete one, if there is one."""
