"""What the data set tools share: their flags, their end, and how they report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import FlagParser, run_program
from common.console import printable
from datasets.outcome import Outcome


class VerbParser(FlagParser):
    """A parser for which `--max_size` is `--max-size`, and that accepts `--cloud`, which means nothing."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the flags; exit with code 2 and a message for a mistake."""
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_args([dashed(word) for word in words if word != "--cloud"], namespace)


def dashed(word: str) -> str:
    """Return a flag with - for _; a value stays as it is."""
    flag, found, text = word.partition("=")
    return flag.replace("_", "-") + found + text if word.startswith("--") else word


@dataclass(frozen=True)
class Verb:
    """A data set tool: `python -m tools.antgo NAME`, or `python -m tools.datasets.MODULE`."""

    name: str
    description: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run it; return 0, 1 where something was left out, 2 after a mistake, 128 + n after a signal."""
        parser = VerbParser(prog=f"python -m tools.antgo {self.name}", description=self.description)
        parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
        self.add_flags(parser)
        args = parser.parse_args(argv)
        return run_program(self.name, lambda: self.run(args))


def add_source(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --src."""
    parser.add_argument("--src", required=True, metavar="PATH", help=what)


def add_target(parser: argparse.ArgumentParser, what: str = "folder to write into") -> None:
    """Add --tgt."""
    parser.add_argument("--tgt", required=True, type=Path, metavar="DIR", help=what)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another number, another draw (default 0)")


def finish(summary: str, outcome: Outcome) -> int:
    """Print what was left out to stderr, and the summary; return the exit code."""
    for line in outcome.lines():
        print(printable(line), file=sys.stderr)
    print(printable(summary))
    return outcome.exit_code
