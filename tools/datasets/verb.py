"""What the data set tools share: their flags, their end, and how they report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import FlagParser, run_program
from common.console import printable, printable_lines
from datasets.errors import DatasetError
from datasets.files import ANNOTATION, META, category_of, check_target, read_meta, source_files, write_annotations
from datasets.outcome import Outcome
from datasets.pictures import take_along
from datasets.records import Record, value


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
    may_overwrite: bool = True  # has --overwrite

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run it; return 0, 1 where something was left out, 2 after a mistake, 128 + n after a signal."""
        parser = VerbParser(prog=f"python -m tools.antgo {self.name}", description=self.description)
        if self.may_overwrite:
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
    print(printable_lines(summary))
    return outcome.exit_code


def add_tags(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --tags."""
    parser.add_argument("--tags", default="", metavar="A:0,B:1", help=what)


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add --no-pictures."""
    parser.add_argument("--no-pictures", action="store_true", help="leave images and paths as they are")


def check_source(text: str) -> Path:
    """Return the path of --src, one file; of a folder with several annotation.json. Raises DatasetError."""
    whole = Path(text) / ANNOTATION
    files = [whole] if text and whole.is_file() else source_files(text)
    if len(files) != 1:
        raise DatasetError(f'--src "{text}": it is {len(files)} files; name one')
    return files[0]


def check_elsewhere(source: Path, target: Path) -> None:
    """Raise DatasetError for a target that is the folder of the source file."""
    if target.resolve() == source.parent.resolve():
        raise DatasetError(f"--tgt {target}: it is the source's folder; name a folder elsewhere")


def check_classes(folder: Path, category: Sequence[str], overwrite: bool) -> dict[str, Any] | None:
    """Return the target's meta.json for a further file beside it, None where there is none yet.

    Raises DatasetError for a target that is a file, or whose classes are others and are not to be overwritten.
    """
    check_target(folder, overwrite=True)
    if not (folder / META).exists():
        return None
    meta = read_meta(folder / META)
    if category_of(meta) != list(category) and not overwrite:
        raise DatasetError(f"--tgt {folder}: its {META} has other classes; choose another folder or add --overwrite")
    return meta


def finish_records(
    args: argparse.Namespace,
    records: Sequence[Record],
    category: Sequence[str],
    source: Path,
    outcome: Outcome,
    meta: dict[str, Any] | None = None,
    *,
    name: str = ANNOTATION,
) -> int:
    """Write records, with their images unless --no-pictures, and report; return the exit code."""
    if not records:
        finish(f"{args.src}: no record is left", outcome)
        raise DatasetError(f"--src {args.src}: no record is left; nothing was written")
    if not args.no_pictures:
        records = take_along(records, source, args.tgt, outcome)
    path = write_annotations(args.tgt, records, category, meta, name=name)
    objects = sum(len(value(record, "bboxes")) for record in records)
    return finish(f"{path}: {len(records):,} records, {objects:,} objects, {len(category)} classes", outcome)


def config_line(key: str, content: object) -> str:
    """Return a line to paste into a config."""
    text = content.as_posix() if isinstance(content, Path) else content
    return f'  "{key}": {json.dumps(text, ensure_ascii=False)},'
