"""Who may review, by name and password: passwords are kept as salted hashes, and tried ten times a minute at most."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from review.errors import ReviewError

FORM = "write ann:PASSWORD,bo:PASSWORD, or @FILE with name:password a line"
MOST_TRIES, MINUTE_S = 10, 60.0
LONGEST = 256  # of a name or password, in letters


class Users:
    """Names with the scrypt hashes of their passwords (RFC 7914; 16 MB and about 50 ms a hash)."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._hashes = {name: _salted(password) for name, password in passwords.items()}
        self._nobody = _salted(secrets.token_urlsafe())  # an unknown name takes as long as a known one

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: str) -> bool:
        return name in self._hashes

    def verify(self, name: str, password: str) -> bool:
        """Return whether a name has this password."""
        salt, expected = self._hashes.get(name, self._nobody)
        is_right = hmac.compare_digest(_hash(password, salt), expected)
        return is_right and name in self._hashes


class Attempts:
    """Counts tries by a key, such as a name or an address: at most MOST_TRIES within a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def wait_s(self, *keys: str) -> float:
        """Count a try of each key, and return 0; or where one has none left, count nothing, and return the seconds."""
        now = self._clock()
        self._times = {key: times for key, times in self._times.items() if times[-1] > now - MINUTE_S}
        found = [self._times.get(key) for key in keys]
        full = [times[0] for times in found if times and len(times) == MOST_TRIES and times[0] > now - MINUTE_S]
        if full:
            return max(full) + MINUTE_S - now
        for key in keys:
            self._times.setdefault(key, deque(maxlen=MOST_TRIES)).append(now)
        return 0.0


def parse_white_users(text: str) -> dict[str, str]:
    """Return the passwords by name of `ann:pw,bo:pw` or `@FILE`. Raises ReviewError, which holds no password."""
    if not text:
        return {}
    origin, entries = "--white-users", text.split(",")
    if text.startswith("@"):
        origin = text[1:]
        try:
            lines = Path(origin).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ReviewError(f"--white-users {text}: cannot read it: {reason}") from error
        entries = [line for line in lines if line.strip()]
    found: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        name, _, password = entry.partition(":")
        name = name.strip()
        if not name or len(name) > LONGEST or not name.isprintable():
            raise ReviewError(f"{origin}: user {number} has no name; {FORM}")
        if not password or len(password) > LONGEST:
            raise ReviewError(f'{origin}: user "{name}" has no password; {FORM}')
        if name in found:
            raise ReviewError(f'{origin}: user "{name}" is there twice')
        found[name] = password
    if not found:
        raise ReviewError(f"{origin}: no user in it; {FORM}")
    return found


def _salted(password: str) -> tuple[bytes, bytes]:
    salt = secrets.token_bytes(16)
    return salt, _hash(password, salt)


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, n=1 << 14, r=8, p=1)
