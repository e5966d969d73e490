"""The errors of a review."""

from common.errors import UserError


class ReviewError(UserError):
    """A review that cannot begin or go on; the message is one sentence for the user."""


class RefusedError(Exception):
    """A request that is refused: an HTTP status, and a sentence for the person at the page."""

    def __init__(self, status: int, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s
