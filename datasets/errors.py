"""The error of a data set tool."""

from common.errors import UserError


class DatasetError(UserError):
    """A mistake of the user's, or data that cannot be used; the message is one sentence for the user."""
