"""Write MNIST as PNG files with txt lists: the worked example.

    python -m tools.make_mnist --output data/mnist

downloads MNIST through torchvision and writes images/{train,test}/<digit>/<index>.png, 28x28, 8-bit grey. The index
is the position in the original order; the test images go on from 60000. With --source such a folder is used as it
is and only the lists are written. The first 5,000 training images are the validation split.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from common.cli import FlagParser, run_program
from data_loader.image_files import iter_images
from tools.datasets.make_lists import (
    Entry,
    ToolError,
    config_lines,
    format_table,
    refuse_existing,
    render_lists,
    write_file,
    write_lists,
)

DIGITS = tuple(str(digit) for digit in range(10))
SEPARATOR = "----"
VALIDATION_IMAGES = 5000
TRAINING_IMAGES = 60000

# Images a digit in MNIST (LeCun, Cortes, Burges 1998) when the first 5,000 training images validate.
COUNTS: dict[str, tuple[int, ...]] = {
    "train": (5444, 6179, 5470, 5638, 5307, 4987, 5417, 5715, 5389, 5454),
    "val": (479, 563, 488, 493, 535, 434, 501, 550, 462, 495),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the images (unless there is a source) and the lists; return 0, or 2 after a mistake."""
    args = _parse_args(argv)
    return run_program("make_mnist", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Write the images and the lists, and print their counts; return 0. Raises ToolError, ListError."""
    output = Path(args.output)
    root = Path(args.source) if args.source else output / "images"
    if not args.source:
        write_images(root, Path(args.download_root) if args.download_root else output / "download")
    splits = read_splits(root)
    check_counts(splits, root)
    written = _write_once(output, splits, args.overwrite)
    print(format_table(splits, DIGITS))
    print("\nEverything was in place." if not written else f"\nWrote {', '.join(map(str, written))}")
    print(f"\nLines for the config:\n{config_lines(root.as_posix(), output, splits, DIGITS, SEPARATOR)}")
    return 0


def write_images(root: Path, download_root: Path) -> int:
    """Write MNIST's 70,000 images as PNG files; return how many were missing. Raises ToolError without a download."""
    written = 0
    for split, first_index, is_training in (("train", 0, True), ("test", TRAINING_IMAGES, False)):
        for position, (pixels, digit) in enumerate(_download(download_root, is_training)):
            path = root / split / str(digit) / f"{first_index + position:05d}.png"
            if path.exists():  # files are written atomically, so an interrupted run continues here
                continue
            buffer = io.BytesIO()
            pixels.save(buffer, format="PNG")
            written += write_file(path, buffer.getvalue())
    return written


def read_splits(root: Path, validation_images: int = VALIDATION_IMAGES) -> dict[str, list[Entry]]:
    """Return the three splits of {train,test}/<digit>/<index>.png, in the original order.

    Training images with an index below `validation_images` are the validation split.
    Raises ToolError for a missing folder, a file name that is no index, and an index that occurs twice.
    """
    training = _read_original(root, "train")
    return {
        "train": [entry for index, entry in training.items() if index >= validation_images],
        "val": [entry for index, entry in training.items() if index < validation_images],
        "test": list(_read_original(root, "test").values()),
    }


def check_counts(
    splits: Mapping[str, Sequence[Entry]], root: Path, table: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Raise ToolError with every split and digit whose count differs from the table (MNIST's own by default)."""
    problems: list[str] = []
    for split, expected in (COUNTS if table is None else table).items():
        got = Counter(label for _, label in splits[split])
        problems += [
            f"{root}: split {split}, digit {digit}: got {got[digit]} images, expected {count}"
            for digit, count in enumerate(expected)
            if got[digit] != count
        ]
    if problems:
        raise ToolError("\n".join([*problems, "No list was written; complete the images and run again."]))


def _download(download_root: Path, is_training: bool) -> Iterator[tuple[Image.Image, int]]:
    """Yield (PIL image, digit) in the original order."""
    from torchvision.datasets import MNIST

    try:
        data = MNIST(str(download_root), train=is_training, download=True)
    except (OSError, RuntimeError) as error:
        raise ToolError(
            f"MNIST cannot be downloaded to {download_root}: {error}; "
            "give --download_root with a finished download, or --source with a folder of PNG files"
        ) from error
    return iter(data)


def _read_original(root: Path, part: str) -> dict[int, Entry]:
    """Return the entries by their original index, in its order."""
    found: dict[int, Entry] = {}
    for label, digit in enumerate(DIGITS):
        folder = root / part / digit
        if not folder.is_dir():
            raise ToolError(f"{folder}: folder not found; --source needs {{train,test}}/<digit>/<index>.png")
        for path in iter_images(folder, recursive=False):
            name = path.rpartition("/")[2]
            stem = name.rpartition(".")[0]
            if not (stem.isascii() and stem.isdigit()):
                raise ToolError(f"{path}: the name is not an index; expected {part}/{digit}/<index>.png")
            entry = (f"{part}/{digit}/{name}", label)
            earlier = found.setdefault(int(stem), entry)
            if earlier != entry:
                raise ToolError(f"{path}: index {int(stem)} also belongs to {earlier[0]}; remove one of them")
    return dict(sorted(found.items()))


def _write_once(output: Path, splits: Mapping[str, Sequence[Entry]], overwrite: bool) -> list[Path]:
    """Write the lists; return the changed ones. Raises ToolError for other lists that must not be overwritten."""
    texts = render_lists(splits, DIGITS, SEPARATOR)
    if not all(_holds(output / name, text) for name, text in texts.items()):
        refuse_existing(output, overwrite)
    return write_lists(output, splits, DIGITS, SEPARATOR)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = FlagParser(prog="python -m tools.make_mnist", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the lists and the images")
    parser.add_argument("--source", metavar="DIR", help="folder with {train,test}/<digit>/<index>.png, used in place")
    parser.add_argument(
        "--download_root", metavar="DIR", help="where torchvision keeps MNIST (default OUTPUT/download)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace other lists that are already there")
    return parser.parse_args(argv)
