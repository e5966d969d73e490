"""Turn a folder with one folder a class into training, validation and test lists.

    python -m tools.make_lists --images data/flowers --output data/lists --split 0.8,0.1,0.1 --stratify

Writes train.txt, val.txt (and test.txt for three shares) with paths relative to --images, and classes.txt in the
order of the labels. The same arguments give the same lists on every machine.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from common.atomic_io import write_atomic
from common.cli import FlagParser, run_program
from common.console import text_columns
from common.errors import UserError
from common.formatting import is_utf8
from data_loader.image_files import LeftOut
from data_loader.samples import read_class_folders

SPLIT_NAMES = ("train", "val", "test")
Entry = tuple[str, int]  # path relative to the images folder, label

_TABLE_WIDTH = 80
_COUNT_WIDTH = 9


class ToolError(UserError):
    """A mistake of the user's; the message is one sentence for the user."""


@dataclass(frozen=True)
class Images:
    """The labelled images of one folder, in natural order."""

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    left_out: LeftOut


def main(argv: Sequence[str] | None = None) -> int:
    """Write the lists; return 0, or 2 after a mistake in the arguments or the folder."""
    args = _parse_args(sys.argv[1:] if argv is None else argv)
    return run_program("make_lists", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Write the lists and print their counts; return 0. Raises ToolError, ListError."""
    shares = parse_shares(args.split)
    separator = check_separator(args.separator)
    pattern = compile_group(args.group) if args.group else None
    output = Path(args.output)
    refuse_existing(output, args.overwrite)
    images = find_images(args.images)
    splits = split_images(images.entries, shares, args.seed, stratify=args.stratify, pattern=pattern)
    write_lists(output, splits, images.class_names, separator)
    notes = _list_notes(images, splits, pattern) + _remove_stale_test(output, splits)
    print(format_table(splits, images.class_names))
    print(notes, end="")
    print(f"\nLines for the config:\n{config_lines(args.images, output, splits, images.class_names, separator)}")
    return 0


def parse_shares(text: str) -> list[Fraction]:
    """Return two or three shares from text such as `0.9,0.1` or `1/2,1/4,1/4`, as exact fractions."""
    try:
        shares = [Fraction(part.strip()) for part in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise ToolError(f'--split "{text}" is not a list of numbers; write shares such as 0.9,0.1') from error
    if len(shares) not in (2, 3):
        raise ToolError(f'--split "{text}" has {len(shares)} shares; allowed are two (train,val) or three with test')
    if min(shares) <= 0:
        raise ToolError(f'--split "{text}" has a share of {float(min(shares)):g}; every share must be above 0')
    if sum(shares) != 1:
        raise ToolError(f'the shares of --split "{text}" sum to {float(sum(shares)):g}; they must sum to 1')
    return shares


def check_separator(text: str) -> str:
    r"""Return the separator of path and label, where `\t` is a tab. Raises ToolError."""
    separator = text.replace("\\t", "\t")
    if not separator or re.search(r"[0-9\r\n]", separator):
        raise ToolError(f'--separator "{text}" is not distinct from a label; use ---- or another text without digits')
    return separator


def find_images(folder: str) -> Images:
    """Return the images in the class folders of a folder. Raises ToolError for a path that no list can hold."""
    found = read_class_folders(folder)
    start = len("" if found.root == "." else found.root.rstrip("/") + "/")
    entries = tuple((sample.path[start:], sample.label) for sample in found.samples)
    for class_name in found.class_names:
        if class_name != class_name.strip():
            raise ToolError(f"the class folder {class_name!r} begins or ends with a space; rename it")
    for path, _ in entries:
        if "\n" in path or "\r" in path:
            raise ToolError(f"the name {path!r} has a line break, which a list cannot hold; rename it")
        if not is_utf8(path):
            raise ToolError(f"the name {path!r} is not UTF-8, which a list must be; rename it")
    return Images(entries, found.class_names, found.left_out)


def split_images(
    entries: Sequence[Entry],
    shares: Sequence[Fraction],
    seed: int,
    *,
    stratify: bool = False,
    pattern: re.Pattern[str] | None = None,
    keys: Sequence[str] = (),
) -> dict[str, list[Entry]]:
    """Return random splits by name; within a split the entries keep their order.

    Counts are the shares rounded by largest remainder, of all entries or, stratified, of each class. With a pattern,
    entries with the same match stay in one split and the counts come as near as the sizes of the groups allow; so do,
    with `keys` for all entries, those of the same key but "".
    Raises ToolError if a split is left empty.
    """
    generator = random.Random(seed)
    if pattern is not None:
        chosen = _assign_groups(entries, shares, generator, stratify, _find_groups(entries, pattern))
    elif any(keys):
        grouped = _grouped(key or None for key in keys)
        chosen = _assign_groups(entries, shares, generator, stratify, list(grouped.values()))
    else:
        chosen = _assign_entries(entries, shares, generator, stratify)
    splits: dict[str, list[Entry]] = {name: [] for name in SPLIT_NAMES[: len(shares)]}
    for entry, split in zip(entries, chosen, strict=True):
        splits[SPLIT_NAMES[split]].append(entry)
    for name, share in zip(splits, shares, strict=True):
        if not splits[name]:
            how = " class by class" * stratify + " without dividing groups" * (pattern is not None or any(keys))
            raise ToolError(
                f"{name}.txt would be empty: a share of {float(share):g} of {len(entries)} images{how} is none; "
                "use more images or another --split"
            )
    return splits


def round_shares(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Return a total divided by largest remainder, so that the parts sum to it; of equal remainders the first wins."""
    exact = [total * share for share in shares]
    counts = [int(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raise ToolError if the folder already has lists and they are not to be overwritten."""
    names = [f"{name}.txt" for name in (*SPLIT_NAMES, "classes") if (output / f"{name}.txt").exists()]
    if names and not overwrite:
        raise ToolError(f"{output} already has {', '.join(names)}; choose another --output or add --overwrite")


def write_lists(
    output: Path, splits: Mapping[str, Sequence[Entry]], class_names: Sequence[str], separator: str
) -> list[Path]:
    """Write the files of render_lists; return the paths of those that changed. Raises ToolError."""
    texts = render_lists(splits, class_names, separator)
    return [output / name for name, text in texts.items() if write_file(output / name, text.encode())]


def render_lists(splits: Mapping[str, Sequence[Entry]], class_names: Sequence[str], separator: str) -> dict[str, str]:
    """Return the text of NAME.txt for each split and of classes.txt, by file name."""
    texts = {f"{name}.txt": list_text(entries, separator) for name, entries in splits.items()}
    return texts | {"classes.txt": "".join(f"{name}\n" for name in class_names)}


def list_text(entries: Sequence[Entry], separator: str) -> str:
    """Return the text of a list, one entry per line."""
    return "".join(f"{path}{separator}{label}\n" for path, label in entries)


def write_file(path: Path, data: bytes) -> bool:
    """Write a file, complete or not at all; return False if it already had this content. Raises ToolError."""
    try:
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, durable=False)  # one of up to 70,000, which can be written again
    except OSError as error:
        raise ToolError(f"cannot write {path}: {error.strerror}; choose a folder that can be written to") from error
    return True


def format_table(splits: Mapping[str, Sequence[Entry]], class_names: Sequence[str]) -> str:
    """Return a table of class by split with sums, at most 80 columns wide."""
    counts = {name: Counter(label for _, label in entries) for name, entries in splits.items()}
    name_width = min(max(map(text_columns, [*class_names, "class"])), _TABLE_WIDTH - _COUNT_WIDTH * (len(splits) + 1))
    rows = [(name, [counts[split][label] for split in splits]) for label, name in enumerate(class_names)]
    rows.append(("all", [len(entries) for entries in splits.values()]))
    head = _fit("class", name_width) + "".join(f"{text:>{_COUNT_WIDTH}}" for text in [*splits, "all"])
    lines = [
        _fit(name, name_width) + "".join(f"{count:>{_COUNT_WIDTH}}" for count in [*row, sum(row)]) for name, row in rows
    ]
    return "\n".join([head, *lines])


def config_lines(
    images: str, output: Path, splits: Mapping[str, Sequence[Entry]], class_names: Sequence[str], separator: str
) -> str:
    """Return the lines about this data to paste into a config."""
    root = Path(images).as_posix()
    values: dict[str, str | int] = {"num_classes": len(class_names), "file_label_separator": separator}
    values["class_names_file"] = (output / "classes.txt").as_posix()
    for name in SPLIT_NAMES[:2]:
        if name in splits:
            values[f"{name}_data_root_dir"] = root
            values[f"{name}_data_file"] = (output / f"{name}.txt").as_posix()
    return "\n".join(f'  "{key}": {json.dumps(value, ensure_ascii=False)},' for key, value in values.items())


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = FlagParser(prog="python -m tools.make_lists", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with one folder a class")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the lists")
    parser.add_argument("--split", default="0.9,0.1", help="shares of train,val or train,val,test (default 0.9,0.1)")
    parser.add_argument("--stratify", action="store_true", help="split each class by the shares")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another number, another draw (default 0)")
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="keep images together whose relative paths give the same match (or the same first group), for example "
        r"several photographs of one object: --group '(obj\d+)_'",
    )
    parser.add_argument("--separator", default="----", help="between path and label (default ----)")
    parser.add_argument("--overwrite", action="store_true", help="replace lists that are already there")
    return parser.parse_args(_bind_separator(argv))


def _bind_separator(argv: Sequence[str]) -> list[str]:
    """Join `--separator ----` to one word, because argparse reads a value of dashes as a flag."""
    words = list(argv)
    if "--separator" in words[:-1]:
        index = words.index("--separator")
        words[index : index + 2] = [f"--separator={words[index + 1]}"]
    return words


def compile_group(regex: str) -> re.Pattern[str]:
    """Return the pattern of --group. Raises ToolError."""
    try:
        return re.compile(regex)
    except re.error as error:
        raise ToolError(f'--group "{regex}" is not a regular expression: {error}') from error


def _assign_entries(
    entries: Sequence[Entry], shares: Sequence[Fraction], generator: random.Random, stratify: bool
) -> list[int]:
    """Return the index of a split for every entry, each drawn by itself."""
    parts: defaultdict[int, list[int]] = defaultdict(list)
    for index, (_, label) in enumerate(entries):
        parts[label if stratify else 0].append(index)
    chosen = [0] * len(entries)
    for _, indices in sorted(parts.items()):
        generator.shuffle(indices)
        start = 0
        for split, count in enumerate(round_shares(len(indices), shares)):
            for index in indices[start : start + count]:
                chosen[index] = split
            start += count
    return chosen


def _assign_groups(
    entries: Sequence[Entry],
    shares: Sequence[Fraction],
    generator: random.Random,
    stratify: bool,
    groups: Sequence[Sequence[int]],
) -> list[int]:
    """Return the index of a split for every entry: groups in random order, each to the split that needs it most.

    Groups too large for the smallest split come first; sorting all by size would leave that split only small groups.

    With a counts[split][class] and targets t, adding a group g to a split changes sum((a - t)^2) by
    sum(2 g (a - t) + g^2); the last term is the same for every split.
    """
    sizes = [Counter(entries[index][1] if stratify else 0 for index in group) for group in groups]
    totals = Counter(label if stratify else 0 for _, label in entries)
    targets = {part: round_shares(total, shares) for part, total in totals.items()}
    missing = [{part: target[split] for part, target in targets.items()} for split in range(len(shares))]
    order = list(range(len(groups)))
    generator.shuffle(order)
    smallest = min(shares) * len(entries)
    order.sort(key=lambda group: len(groups[group]) <= smallest)
    chosen = [0] * len(entries)
    for group in order:
        gains = [sum(count * needed[part] for part, count in sizes[group].items()) for needed in missing]
        split = gains.index(max(gains))
        for part, count in sizes[group].items():
            missing[split][part] -= count
        for index in groups[group]:
            chosen[index] = split
    return chosen


def _find_groups(entries: Sequence[Entry], pattern: re.Pattern[str]) -> list[list[int]]:
    """Return the indices of entries with an equal match; an entry without a match is its own group."""
    groups = _grouped(_group_key(path, pattern) for path, _ in entries)
    if all(isinstance(key, int) for key in groups):
        raise ToolError(f'--group "{pattern.pattern}" matches none of the paths, such as {entries[0][0]}')
    return list(groups.values())


def _grouped(keys: Iterable[str | None]) -> dict[Hashable, list[int]]:
    """Return the indices of equal keys; each None is its own."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[index if key is None else key].append(index)
    return groups


def _group_key(path: str, pattern: re.Pattern[str]) -> str | None:
    match = pattern.search(path)
    return None if match is None else match.group(1 if pattern.groups else 0)


def _list_notes(images: Images, splits: Mapping[str, Sequence[Entry]], pattern: re.Pattern[str] | None) -> str:
    """Return notes on classes that a split lacks and on images without a group."""
    notes = f"note: left out, as no images: {images.left_out}\n" if images.left_out.counts else ""
    for name, entries in splits.items():
        present = {label for _, label in entries}
        absent = [class_name for label, class_name in enumerate(images.class_names) if label not in present]
        if absent:
            shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            notes += f"note: {name}.txt has no image of {len(absent)} of the classes: {shown}\n"
    if pattern is not None:
        alone = sum(_group_key(path, pattern) is None for path, _ in images.entries)
        if alone:
            notes += f"note: {alone} images do not match --group and were drawn one by one\n"
    return notes


def _remove_stale_test(output: Path, splits: Mapping[str, Sequence[Entry]]) -> str:
    """Remove the test.txt of an overwritten split into three: its images may be in train.txt now. Return a note."""
    stale = output / "test.txt"
    if "test" in splits or not stale.exists():
        return ""
    stale.unlink()
    return f"note: {stale} of an earlier split was removed\n"


def _fit(text: str, width: int) -> str:
    """Pad or cut a text to a width in columns."""
    if text_columns(text) > width:
        while text_columns(text) > width - 3:
            text = text[:-1]
        text += "..."
    return text + " " * (width - text_columns(text))
