"""What is wrong with what the platform handed over, one sentence a problem."""

from __future__ import annotations

from collections.abc import Sequence

from platforms.base import PlatformError


class RequestError(PlatformError):
    """Mistakes that were found together; `problems` holds a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))
