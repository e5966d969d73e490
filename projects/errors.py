"""The error of the book-keeping."""

from common.errors import UserError


class ProjectError(UserError):
    """A mistake of the user's, or files of a project that cannot be used; the message is one sentence for the user."""
