"""Commands of two words, such as `create mvp`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.cli import run_program
from common.errors import UserError
from common.formatting import did_you_mean
from tools.datasets.verb import Verb


class WordError(UserError):
    """A second word that is none; the message is one sentence for the user."""


@dataclass(frozen=True)
class Words:
    """The first word of some commands, whose second ones are the keys of `verbs`."""

    name: str
    verbs: Mapping[str, Verb]

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command by its second word, or list them; return its exit code."""
        words = list(sys.argv[1:] if argv is None else argv)
        if words and words[0] in self.verbs:
            return self.verbs[words[0]].main(words[1:])
        if words and words[0] not in ("-h", "--help"):
            return run_program(self.name, lambda: self._refuse(words[0]))
        print(f"python -m tools.antgo {self.name} WORD; each has --help")
        for name, verb in self.verbs.items():
            print(f"  {name:<22}{verb.description}")
        return 0

    def _refuse(self, word: str) -> int:
        hint = did_you_mean(word, self.verbs) or f"; it has {', '.join(self.verbs)}"
        raise WordError(f'"{self.name} {word}" is no command{hint}')
