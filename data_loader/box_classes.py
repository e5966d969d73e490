"""The classes of boxes: of classes.json, classes.txt or YOLO's data.yaml, else those that the annotations name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from configs.schema import Config
from data_loader.image_files import natural_sorted
from data_loader.mask_classes import (
    MASK_CLASSES_FILE,
    MaskClass,
    OtherClass,
    default_color,
    read_mask_classes,
    read_other_classes,
)
from data_loader.packs import find_pack, is_pack
from data_loader.remote_packs import local_packs
from data_loader.samples import CLASS_NAMES_FILE, ListError, read_class_names, read_utf8

YOLO_FILES = ("data.yaml", "data.yml", "dataset.yaml")
_ITEM = re.compile(r"\s*(?:-|(\d+)\s*:)\s+(.+)")  # "- name" or "3: name"
_QUOTED = re.compile(r"""'((?:[^']|'')*)'|"((?:[^"\\]|\\.)*)"|([^,]+)""")


def box_classes_of(config: Config) -> tuple[MaskClass, ...]:
    """Return the classes of `class_names_file`, else of the file beside the list, in the data's folder or above it.

    () where there is none: then the training annotations name them. Raises ListError, also where there are not
    `num_classes` of them.
    """
    if is_pack(config.train_data_file) and not config.class_names_file:
        classes = named_classes(find_pack(local_packs(config).train_data_file).category)
        check_count(classes, config.num_classes, config.train_data_file)
        return classes
    file = Path(config.class_names_file) if config.class_names_file else _found(config)
    if file is None:
        return ()
    classes = read_classes(file)
    check_count(classes, config.num_classes, str(file))
    return classes


def other_box_classes_of(config: Config) -> tuple[OtherClass, ...]:
    """Return the classes of the data that the net does not have, as the classes.json of `box_classes_of` says."""
    file = Path(config.class_names_file) if config.class_names_file else _found(config)
    return read_other_classes(file) if file is not None and file.suffix.lower() == ".json" else ()


def class_file(root: Path, before: Sequence[Path] = ()) -> Path | None:
    """Return the file that names the classes: in a folder of `before`, the data's folder, its labels/ or above it."""
    folders = [*before, root, root / "labels", root.parent]
    names = (MASK_CLASSES_FILE, CLASS_NAMES_FILE, *YOLO_FILES)
    return next((folder / name for name in names for folder in folders if (folder / name).is_file()), None)


def read_classes(file: Path) -> tuple[MaskClass, ...]:
    """Return the classes of a classes.json, a data.yaml or a file of one name a line. Raises ListError."""
    if file.suffix.lower() == ".json":
        return read_mask_classes(file)
    if file.suffix.lower() in (".yaml", ".yml"):
        return named_classes(read_yaml_names(str(file)))
    return named_classes(read_class_names(file))


def named_classes(names: Sequence[str], values: Sequence[int] = ()) -> tuple[MaskClass, ...]:
    """Return classes by their names, each in a colour; `values` are their numbers in the files, else 0, 1, 2, ..."""
    numbers = values or range(len(names))
    return tuple(
        MaskClass(name, value, default_color(index + 1), name)  # the first of the colour map is black
        for index, (name, value) in enumerate(zip(names, numbers, strict=True))
    )


def found_classes(names: Sequence[str], num_classes: int, origin: str) -> tuple[MaskClass, ...]:
    """Return the classes of the names in annotations, in natural order. Raises ListError for another number of them."""
    classes = named_classes(natural_sorted(set(names)))
    check_count(classes, num_classes, f"{origin}: its annotations", names)
    return classes


def check_count(classes: Sequence[MaskClass], num_classes: int, origin: str, names: Sequence[str] = ()) -> None:
    """Raise ListError unless there are `num_classes`; `names` has one entry for each object."""
    if len(classes) == num_classes:
        return
    counts = {found.name: names.count(found.name) for found in classes[:20]}
    shown = ", ".join(f"{name} ({count})" if names else name for name, count in counts.items())
    more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    raise ListError([f"{origin}: {len(classes)} classes, but num_classes is {num_classes}: {shown}{more}"])


def read_yaml_names(file: str) -> tuple[str, ...]:
    """Return `names` of YOLO's data.yaml: a list in brackets, or one line a name. Raises ListError.

    No YAML beyond that is read.
    """
    lines = [line for line in read_utf8(file).split("\n") if line.strip() and not line.lstrip().startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.startswith("names:")]
    if not starts:
        raise ListError([f'{file}: has no "names:"; name the classes in {CLASS_NAMES_FILE} instead'])
    inline = lines[starts[0]].removeprefix("names:").strip()
    rest = lines[starts[0] + 1 :]
    names = _inline_names(inline, rest) if inline else _block_names(rest)
    if not names or "" in names or len(set(names)) != len(names):
        hint = f'write names: ["a", "b"], or name the classes in {CLASS_NAMES_FILE}'
        raise ListError([f"{file}: its names are not a list of different names; {hint}"])
    return tuple(names)


def _inline_names(text: str, rest: Sequence[str]) -> list[str]:
    """Return the names of `['a', "b", c]`, which may go on over lines, or of `{0: a, 1: b}`."""
    for line in rest:
        if text.endswith(("]", "}")):
            break
        text += " " + line.strip()
    if text.startswith("{"):
        numbered = re.findall(r"""(\d+)\s*:\s*('[^']*'|"[^"]*"|[^,}]+)""", text)
        return _in_order([(int(number), _unquoted(name)) for number, name in numbered])
    if not (text.startswith("[") and text.endswith("]")):
        return []
    return [_unquoted(found.group().strip()) for found in _QUOTED.finditer(text[1:-1]) if found.group().strip()]


def _block_names(lines: Sequence[str]) -> list[str]:
    names: list[tuple[int, str]] = []
    for line in lines:
        found = _ITEM.fullmatch(line)
        if found is None:
            break
        names.append((int(found[1]) if found[1] else len(names), _unquoted(found[2].strip())))
    return _in_order(names)


def _in_order(names: Sequence[tuple[int, str]]) -> list[str]:
    """Return names by their numbers; [] where these are not 0, 1, 2, ..."""
    ordered = sorted(names)
    return [name for _, name in ordered] if [number for number, _ in ordered] == list(range(len(ordered))) else []


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text[1:-1]
    return text.partition(" #")[0].strip()


def _found(config: Config) -> Path | None:
    list_file = config.train_data_file
    if is_pack(list_file):
        return None
    return class_file(Path(config.train_data_root_dir), [Path(list_file).parent] if list_file else [])
