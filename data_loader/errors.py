"""The error of an image that cannot be used."""

from common.errors import UserError


class ImageError(UserError):
    """An image that cannot be used; the message is the reason, without the path."""
