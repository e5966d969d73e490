"""Commands of two words, such as `create mvp`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.cli import run_program
from common.errors import UserError
from common.formatting import did_you_mean
from tools.datasets.verb import Verb

Row = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]


class WordError(UserError):
    """A second word that is none; the message is one sentence for the user."""


@dataclass(frozen=True)
class Words:
    """The first word of some commands; `rows` has, by their second word, what each does, its flags and its function."""

    name: str
    rows: Mapping[str, Row]

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command by its second word, or list them; return its exit code."""
        words = list(sys.argv[1:] if argv is None else argv)
        if words and words[0] in self.rows:
            return Verb(f"{self.name} {words[0]}", *self.rows[words[0]], may_overwrite=False).main(words[1:])
        if words and words[0] not in ("-h", "--help"):
            return run_program(self.name, lambda: self._refuse(words[0]))
        print(f"python -m tools.antgo {self.name} WORD; each has --help")
        for name, (description, _, _) in self.rows.items():
            print(f"  {name:<22} {description}")
        return 0

    def _refuse(self, word: str) -> int:
        hint = did_you_mean(word, self.rows) or f"; it has {', '.join(self.rows)}"
        raise WordError(f'"{self.name} {word}" is no command{hint}')
