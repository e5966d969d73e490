"""Who is at which page: a session for each browser, found by a cookie; requests that change something have a token."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SESSION_S = 12 * 3600.0  # since its last request
MOST_SESSIONS = 1000


@dataclass
class Session:
    """A browser's session; `source` is the file that it reviews, None until one is chosen."""

    user: str
    source: Path | None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    used_at: float = 0.0

    def has_token(self, token: str) -> bool:
        """Return whether a request's token is this session's."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())


class Sessions:
    """The open sessions, by the hash of the cookie's value; beyond MOST_SESSIONS the one longest unused ends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, user: str, source: Path | None) -> tuple[str, Session]:
        """Return a new session, and the value of its cookie."""
        value = secrets.token_urlsafe(32)
        session = Session(user, source, used_at=self._clock())
        self._of[_key(value)] = session
        while len(self._of) > MOST_SESSIONS:
            self._of.popitem(last=False)
        return value, session

    def find(self, value: str) -> Session | None:
        """Return the session of a cookie's value."""
        session = self._of.get(_key(value))
        if session is None:
            return None
        if self._clock() - session.used_at > SESSION_S:
            self.end(value)
            return None
        session.used_at = self._clock()
        self._of.move_to_end(_key(value))
        return session

    def end(self, value: str) -> None:
        """End a session."""
        self._of.pop(_key(value), None)


def _key(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "replace")).digest()
