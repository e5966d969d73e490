"""What a data set tool has left out, each with its reason, and what it has changed or dropped on the way, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """`left_out` has names with reasons; `counts` has what was changed within records that were kept.

    With `overwrite` other files that are there already are replaced, else they are left alone, and told.
    """

    overwrite: bool = False
    left_out: list[tuple[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def leave_out(self, name: str, reason: str) -> None:
        """Note what has been left out, and why."""
        self.left_out.append((name, reason))

    @property
    def exit_code(self) -> int:
        """Return 1 where something was left out, else 0."""
        return 1 if self.left_out else 0

    def lines(self) -> list[str]:
        """Return a line for all that was left out, then the counts."""
        lines = [f"left out: {name}: {reason}" for name, reason in self.left_out]
        lines += [f"note: {count:,} {what}" for what, count in self.counts.items() if count]
        return [*lines, f"{len(self.left_out):,} left out"] if self.left_out else lines
