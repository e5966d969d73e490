"""Write scikit-learn's bundled digits as PNG files with txt lists, so that a first training needs no download.

    python -m tools.make_digits

The data are the 1,797 scans of the UCI optical digits (Alpaydin, Kaynak 1998), 8x8 pixels with 17 grey levels
0..16. Each is scaled to 0..255 and enlarged to 32x32 with Pillow's bicubic filter, which adds no detail but makes the
digit visible. Written are OUTPUT/digits/<digit>/<index>.png, OUTPUT/trainset.txt and
OUTPUT/valset.txt (80/20 of each digit), OUTPUT/classes.txt, and OUTPUT/images with 20 images of the validation
split. A second run writes only what is missing or differs.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from common.cli import FlagParser, run_program
from tools.datasets.make_lists import Entry, format_table, list_text, split_images, write_file

DIGITS = tuple(str(digit) for digit in range(10))
GREATEST_GREY = 16
SIZE_PX = 32
SAMPLES_PER_DIGIT = 2
SEPARATOR = "----"
SHARES = (Fraction(8, 10), Fraction(2, 10))
SEED = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files that are missing or differ; return 0, or 2 where they cannot be written."""
    parser = FlagParser(prog="python -m tools.make_digits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="data_example", metavar="DIR", help="folder (default data_example)")
    output = Path(parser.parse_args(argv).output)
    return run_program("make_digits", lambda: write_digits(output))


def write_digits(output: Path) -> int:
    """Write the files that are missing or differ, and print their counts; return 0. Raises ToolError."""
    images = draw_digits()
    entries = [(f"{digit}/{index:04d}.png", digit) for digit, index in images]
    splits = split_images(entries, SHARES, SEED, stratify=True)
    files = {f"digits/{path}": data for (path, _), data in zip(entries, images.values(), strict=True)}
    files |= {f"images/{name}": files[f"digits/{path}"] for name, path in _choose_samples(splits["val"]).items()}
    files["trainset.txt"] = list_text(splits["train"], SEPARATOR).encode()
    files["valset.txt"] = list_text(splits["val"], SEPARATOR).encode()
    files["classes.txt"] = "".join(f"{digit}\n" for digit in DIGITS).encode()
    written = sum(write_file(output / name, data) for name, data in files.items())
    print(format_table(splits, DIGITS))
    in_place = f"all {len(files)} files were already in place, nothing was written"
    print(f"{output}: {f'{written} of {len(files)} files written' if written else in_place}")
    return 0


def draw_digits() -> dict[tuple[int, int], bytes]:
    """Return every scan as a 32x32 8-bit grey PNG, by (digit, index), in the order of the digits."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    images: dict[tuple[int, int], bytes] = {}
    for index, (scan, digit) in enumerate(zip(data.images, data.target, strict=True)):
        grey = np.round(scan * (255 / GREATEST_GREY)).astype(np.uint8)  # (8, 8), 0..255
        image = Image.fromarray(grey).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        images[int(digit), index] = buffer.getvalue()
    return dict(sorted(images.items()))


def _choose_samples(entries: Sequence[Entry]) -> dict[str, str]:
    """Return the first few entries of each digit: flat file name -> path below digits/."""
    taken: Counter[int] = Counter()
    chosen: dict[str, str] = {}
    for path, digit in entries:
        if taken[digit] < SAMPLES_PER_DIGIT:
            taken[digit] += 1
            chosen[path.replace("/", "_")] = path
    return chosen
