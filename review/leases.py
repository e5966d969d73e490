"""Leases: a record that a person looks at is theirs for ten minutes, so that two do not work on the same one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

LEASE_S = 600.0


class Leases:
    """Who has which records; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._holders: dict[int, tuple[str, float]] = {}  # with the end of the lease

    def look(self, records: Iterable[int], user: str) -> dict[int, str]:
        """Lease what nobody else has, and give up the person's others; return who has the rest."""
        wanted = set(records)
        now = self._clock()
        self._holders = {
            record: (holder, until)
            for record, (holder, until) in self._holders.items()
            if until > now and (holder != user or record in wanted)
        }
        return self.take(wanted, user)

    def take(self, records: Iterable[int], user: str) -> dict[int, str]:
        """Lease, or lease again, what nobody else has; return who has the rest."""
        wanted = list(records)
        others = self.others(wanted, user)
        until = self._clock() + LEASE_S
        self._holders.update({record: (user, until) for record in wanted if record not in others})
        return others

    def others(self, records: Iterable[int], user: str) -> dict[int, str]:
        """Return who else has records now."""
        now, free = self._clock(), ("", 0.0)
        found = ((record, self._holders.get(record, free)) for record in records)
        return {record: holder for record, (holder, until) in found if until > now and holder != user}

    def held_from(self, user: str) -> set[int]:
        """Return the records that other people have now."""
        return set(self.others(list(self._holders), user))
