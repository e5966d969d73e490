"""make_lists, make_mnist and make_digits: the files that they write, and every error message."""

import io
import os
import re
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.paths import ROOT
from data_loader.image_files import iter_images
from data_loader.list_reader import read_list
from data_loader.samples import read_class_names
from tools.datasets import make_digits, make_lists, make_mnist


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Two classes, 30 and 20 images; five photographs of every object."""
    names = [f"红 花/obj{i // 5}_{i}.jpg" for i in range(30)] + [f"tulip/obj{i // 5}_{i}.jpg" for i in range(20)]
    return touch(tmp_path / "flowers", *names)


def run(*words: object) -> int:
    return make_lists.main([str(word) for word in words])


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(*words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def read_files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def test_two_shares_round_trip(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lists"
    assert run("--images", flowers, "--output", output, "--split", "0.9,0.1") == 0
    assert sorted(read_files(output)) == ["classes.txt", "train.txt", "val.txt"]
    names = read_class_names(output / "classes.txt")
    assert names == ("tulip", "红 花")
    train = read_list(output / "train.txt", flowers, "----", 2, names)
    val = read_list(output / "val.txt", flowers, "----", 2, names)
    assert (len(train.samples), len(val.samples)) == (45, 5)
    paths = [sample.path for sample in train.samples + val.samples]
    assert sorted(paths) == sorted(iter_images(flowers))
    assert all(names[sample.label] in sample.path for sample in train.samples + val.samples)
    printed = capsys.readouterr().out
    for line in (
        '"num_classes": 2,',
        '"file_label_separator": "----",',
        f'"class_names_file": "{output}/classes.txt",',
        f'"train_data_root_dir": "{flowers}",',
        f'"train_data_file": "{output}/train.txt",',
        f'"val_data_root_dir": "{flowers}",',
        f'"val_data_file": "{output}/val.txt",',
    ):
        assert line in printed
    assert re.search(r"^all +45 +5 +50$", printed, re.MULTILINE)


def test_stratified_counts_and_separator(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lists"
    words = ["--images", flowers, "--output", output, "--split", "0.8,0.1,0.1", "--stratify", "--separator", "----"]
    assert run(*words) == 0
    counts = {
        name: read_list(output / f"{name}.txt", flowers, "----", 2).class_counts() for name in ("train", "val", "test")
    }
    assert counts == {"train": [16, 24], "val": [2, 3], "test": [2, 3]}
    table = capsys.readouterr().out.split("\n\n")[0]
    assert table.split("\n") == [
        "class    train      val     test      all",
        "tulip       16        2        2       20",
        "红 花       24        3        3       30",
        "all         40        5        5       50",
    ]


def test_separator_tab_and_overwrite_remove_the_stale_test_list(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lists"
    assert run("--images", flowers, "--output", output, "--split", "0.8,0.1,0.1") == 0
    before = read_files(output)
    error = refusal_after_print(capsys, "--images", flowers, "--output", output)
    assert error == (
        f"make_lists: {output} already has train.txt, val.txt, test.txt, classes.txt; "
        "choose another --output or add --overwrite\n"
    )
    assert read_files(output) == before
    assert run("--images", flowers, "--output", output, "--separator", "\\t", "--overwrite") == 0
    assert f"note: {output}/test.txt of an earlier split was removed" in capsys.readouterr().out
    assert sorted(read_files(output)) == ["classes.txt", "train.txt", "val.txt"]
    assert len(read_list(output / "train.txt", flowers, "\t", 2).samples) == 45


def refusal_after_print(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    return refusal(capsys, *words)


@pytest.mark.parametrize("options", [[], ["--stratify"], ["--group", r"obj\d+"]])
def test_a_seed_decides_the_lists(flowers: Path, tmp_path: Path, options: list[str]) -> None:
    def draw(name: str, seed: int) -> dict[str, str]:
        assert run("--images", flowers, "--output", tmp_path / name, "--seed", seed, *options) == 0
        return read_files(tmp_path / name)

    assert draw("first", 3) == draw("again", 3)
    assert len({draw(f"seed{seed}", seed)["val.txt"] for seed in range(4, 9)}) > 1


def test_groups_stay_together(flowers: Path, tmp_path: Path) -> None:
    output = tmp_path / "lists"
    words = ["--images", flowers, "--output", output, "--split", "0.5,0.3,0.2", "--group", r"/(obj\d+)_"]
    assert run(*words) == 0
    sides: dict[str, set[str]] = {}
    for name in ("train", "val", "test"):
        for line in (output / f"{name}.txt").read_text(encoding="utf-8").splitlines():
            sides.setdefault(re.findall(r"obj\d+", line)[0], set()).add(name)
    assert len(sides) == 6
    assert all(len(side) == 1 for side in sides.values())


def test_groups_come_near_the_shares_of_each_class() -> None:
    # 40 groups of 1..4 images in two classes; the fill must end within one group of every target.
    sizes = [1 + index % 4 for index in range(40)]
    entries = [(f"c{g % 2}/g{g}_{i}.jpg", g % 2) for g, size in enumerate(sizes) for i in range(size)]
    shares = [Fraction(7, 10), Fraction(2, 10), Fraction(1, 10)]
    splits = make_lists.split_images(entries, shares, 0, stratify=True, pattern=re.compile(r"g\d+"))
    totals = Counter(label for _, label in entries)
    for share, split in zip(shares, splits.values(), strict=True):
        counts = Counter(label for _, label in split)
        assert all(abs(counts[label] - float(share) * totals[label]) <= 4 for label in totals)


def test_images_outside_every_group_are_counted(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(flowers, "tulip/single.jpg")
    assert run("--images", flowers, "--output", tmp_path / "lists", "--group", r"obj\d+") == 0
    assert "note: 1 images do not match --group and were drawn one by one" in capsys.readouterr().out


def test_a_class_absent_from_a_split_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = touch(tmp_path / "images", "rare/1.jpg", *(f"common/{i}.jpg" for i in range(20)))
    assert run("--images", root, "--output", tmp_path / "lists", "--stratify") == 0
    assert "note: val.txt has no image of 1 of the classes: rare" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("total", "shares", "counts"),
    [
        (10, ["0.9", "0.1"], [9, 1]),
        (7, ["0.8", "0.1", "0.1"], [5, 1, 1]),  # 5.6 0.7 0.7
        (3, ["1/3", "1/3", "1/3"], [1, 1, 1]),
        (5, ["1/2", "1/2"], [3, 2]),
        (1797, ["0.8", "0.2"], [1438, 359]),  # 1437.6 359.4
        (0, ["0.8", "0.2"], [0, 0]),
    ],
)
def test_largest_remainder(total: int, shares: list[str], counts: list[int]) -> None:
    assert make_lists.round_shares(total, [Fraction(share) for share in shares]) == counts


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split", "0.9,0.2"], 'the shares of --split "0.9,0.2" sum to 1.1; they must sum to 1'),
        (["--split", "80,20"], 'the shares of --split "80,20" sum to 100; they must sum to 1'),
        (["--split", "1"], '--split "1" has 1 shares; allowed are two (train,val) or three with test'),
        (["--split", "1.5,-0.5"], '--split "1.5,-0.5" has a share of -0.5; every share must be above 0'),
        (["--split", "a,b"], '--split "a,b" is not a list of numbers; write shares such as 0.9,0.1'),
        (["--split", "1/0,1"], '--split "1/0,1" is not a list of numbers; write shares such as 0.9,0.1'),
        (
            ["--group", "(obj"],
            '--group "(obj" is not a regular expression: missing ), unterminated subpattern at position 0',
        ),
        (["--group", "dog"], '--group "dog" matches none of the paths, such as tulip/obj0_0.jpg'),
        (
            ["--split", "0.999,0.001"],
            "val.txt would be empty: a share of 0.001 of 50 images is none; use more images or another --split",
        ),
        (
            ["--group", "obj", "--stratify"],
            "val.txt would be empty: a share of 0.1 of 50 images class by class without dividing groups is none; "
            "use more images or another --split",
        ),
        (
            ["--separator", "1"],
            '--separator "1" is not distinct from a label; use ---- or another text without digits',
        ),
    ],
)
def test_mistakes_end_in_a_sentence(
    flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    output = tmp_path / "lists"
    assert refusal(capsys, "--images", flowers, "--output", output, *options) == f"make_lists: {sentence}\n"
    assert not output.exists()


def test_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = touch(tmp_path / "flat", "1.jpg")
    assert refusal(capsys, "--images", root, "--output", tmp_path / "lists") == (
        f"make_lists: {root}: has no class folders; expected one folder a class with its images inside\n"
    )


def test_output_that_cannot_be_written(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    error = refusal(capsys, "--images", flowers, "--output", tmp_path / "taken")
    assert error.startswith(f"make_lists: cannot write {tmp_path}/taken/train.txt: ")
    assert error.endswith("; choose a folder that can be written to\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (b"a/1\n.jpg", "the name 'a/1\\n.jpg' has a line break, which a list cannot hold; rename it"),
        (b"a/\xff.jpg", "the name 'a/\\udcff.jpg' is not UTF-8, which a list must be; rename it"),
        (b"a /1.jpg", "the class folder 'a ' begins or ends with a space; rename it"),
    ],
)
def test_names_that_no_list_can_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: bytes, sentence: str
) -> None:
    try:
        touch(tmp_path / "images", os.fsdecode(name))
    except OSError:
        pytest.skip("this file system refuses the name")
    error = refusal(capsys, "--images", tmp_path / "images", "--output", tmp_path / "lists")
    assert error == f"make_lists: {sentence}\n"


def test_the_table_keeps_to_80_columns() -> None:
    names = ["长" * 60, "x" * 200, "short"]
    splits = {name: [("a.jpg", 0), ("b.jpg", 2)] for name in make_lists.SPLIT_NAMES}
    lines = make_lists.format_table(splits, names).split("\n")
    widths = {len(line) + line.count("长") for line in lines}  # a Chinese character takes two columns
    assert max(widths) <= 80
    assert len(widths) == 1


@pytest.mark.parametrize("tool", ["make_lists", "make_mnist", "make_digits"])
def test_help_needs_no_heavy_module(tool: str) -> None:
    code = (
        f"import sys, tools.{tool} as t\n"
        "try: t.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'torchvision', 'sklearn', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m tools.{tool}" in done.stdout


# One image a digit validates, one trains, one tests.
TINY_COUNTS = {"train": (1,) * 10, "val": (1,) * 10, "test": (1,) * 10}


def tiny_mnist(root: Path) -> Path:
    names = [f"train/{index % 10}/{index}.png" for index in range(20)]
    return touch(root, *names, *(f"test/{index}/{60000 + index}.png" for index in range(10)))


def test_mnist_lists_in_the_original_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_mnist(tmp_path / "source")
    (source / "train/0/0.png").rename(source / "train/0/00000.png")
    monkeypatch.setattr(make_mnist, "COUNTS", TINY_COUNTS)
    monkeypatch.setattr(make_mnist.read_splits, "__defaults__", (10,))
    output = tmp_path / "lists"
    words = ["--output", str(output), "--source", str(source)]
    assert make_mnist.main(words) == 0
    assert f"Wrote {output}/train.txt, {output}/val.txt, {output}/test.txt" in capsys.readouterr().out
    files = read_files(output)
    assert files["train.txt"] == "".join(f"train/{i - 10}/{i}.png----{i - 10}\n" for i in range(10, 20))
    assert files["val.txt"] == "train/0/00000.png----0\n" + "".join(f"train/{i}/{i}.png----{i}\n" for i in range(1, 10))
    assert files["test.txt"] == "".join(f"test/{i}/{60000 + i}.png----{i}\n" for i in range(10))
    assert files["classes.txt"] == "".join(f"{i}\n" for i in range(10))
    assert len(read_list(output / "val.txt", source, "----", 10).samples) == 10
    assert make_mnist.main(words) == 0
    assert "Everything was in place." in capsys.readouterr().out
    (output / "val.txt").write_text("mine")
    assert make_mnist.main(words) == 2
    assert "already has train.txt, val.txt, test.txt, classes.txt; choose another --output" in capsys.readouterr().err
    assert (output / "val.txt").read_text() == "mine"
    assert make_mnist.main([*words, "--overwrite"]) == 0
    assert read_files(output) == files


def test_mnist_with_wrong_counts_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_mnist(tmp_path / "source")
    output = tmp_path / "lists"
    assert make_mnist.main(["--output", str(output), "--source", str(source)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"make_mnist: {source}: split train, digit 0: got 0 images, expected 5444"
    assert f"{source}: split val, digit 9: got 2 images, expected 495" in lines
    assert f"{source}: split test, digit 3: got 1 images, expected 1010" in lines
    assert len(lines) == 31
    assert lines[-1] == "No list was written; complete the images and run again."
    assert not output.exists()


def test_mnist_table_is_the_contract_s() -> None:
    # The sums are those of the published data set: 60,000 training images, of which 5,000 validate, and 10,000.
    assert {split: sum(counts) for split, counts in make_mnist.COUNTS.items()} == {
        "train": 55000,
        "val": 5000,
        "test": 10000,
    }
    assert make_mnist.COUNTS["test"][1] == 1135
    assert make_mnist.COUNTS["val"][5] == 434


def test_mnist_source_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(source: Path) -> str:
        assert make_mnist.main(["--output", str(tmp_path / "lists"), "--source", str(source)]) == 2
        return capsys.readouterr().err

    source = tiny_mnist(tmp_path / "source")
    touch(source, "train/3/five.png")
    assert error(source) == (
        f"make_mnist: {source}/train/3/five.png: the name is not an index; expected train/3/<index>.png\n"
    )
    (source / "train/3/five.png").rename(source / "train/3/002.png")
    assert error(source) == (
        f"make_mnist: {source}/train/3/002.png: index 2 also belongs to train/2/2.png; remove one of them\n"
    )
    assert error(tmp_path / "none") == (
        f"make_mnist: {tmp_path}/none/train/0: folder not found; --source needs {{train,test}}/<digit>/<index>.png\n"
    )


def test_mnist_download_writes_pngs_and_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FakeMnist:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert download
            self.pairs = [(Image.new("L", (28, 28), i), i % 10) for i in range(20 if train else 10)]

        def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
            return iter(self.pairs)

    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = FakeMnist
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setattr(make_mnist, "COUNTS", TINY_COUNTS)
    monkeypatch.setattr(make_mnist.read_splits, "__defaults__", (10,))
    assert make_mnist.main(["--output", str(tmp_path)]) == 0
    assert '_data_root_dir": "' + f'{tmp_path}/images"' in capsys.readouterr().out
    path = tmp_path / "images/train/3/00013.png"
    with Image.open(path) as image:
        assert (image.size, image.mode, image.getpixel((0, 0))) == ((28, 28), "L", 13)
    assert (tmp_path / "images/test/9/60009.png").is_file()
    assert len(read_list(tmp_path / "test.txt", tmp_path / "images", "----", 10).samples) == 10
    path.unlink()
    assert make_mnist.write_images(tmp_path / "images", tmp_path) == 1


def test_mnist_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = refuse
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    assert make_mnist.main(["--output", str(tmp_path), "--download_root", str(tmp_path / "raw")]) == 2
    assert capsys.readouterr().err == (
        f"make_mnist: MNIST cannot be downloaded to {tmp_path}/raw: Error downloading train-images-idx3-ubyte.gz; "
        "give --download_root with a finished download, or --source with a folder of PNG files\n"
    )


def test_mnist_real(tmp_path: Path) -> None:
    data = os.environ.get("CLASSIC_TRAINER_DATA", "")
    if not data or not (Path(data) / "mnist/train").is_dir():
        pytest.skip("set CLASSIC_TRAINER_DATA to a folder with mnist/{train,test}/<digit>/<index>.png")
    assert make_mnist.main(["--output", str(tmp_path), "--source", f"{data}/mnist"]) == 0
    for split, counts in make_mnist.COUNTS.items():
        found = read_list(tmp_path / f"{split}.txt", Path(data) / "mnist", "----", 10)
        assert tuple(found.class_counts()) == counts
    # The first labels of the two idx files, as published with the data set.
    assert [line[-1] for line in (tmp_path / "val.txt").read_text().splitlines()[:5]] == list("50419")
    assert [line[-1] for line in (tmp_path / "test.txt").read_text().splitlines()[:5]] == list("72104")


def test_digits_are_complete_and_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--output", str(tmp_path)]
    assert make_digits.main(words) == 0
    assert f"{tmp_path}: 1820 of 1820 files written" in capsys.readouterr().out
    root = tmp_path / "digits"
    train = read_list(tmp_path / "trainset.txt", root, "----", 10, read_class_names(tmp_path / "classes.txt"))
    val = read_list(tmp_path / "valset.txt", root, "----", 10)
    assert (len(train.samples), len(val.samples)) == (1438, 359)
    assert not set(train.samples) & set(val.samples)
    assert {Path(sample.path) for sample in train.samples + val.samples} == set(root.rglob("*.png"))
    # UCI's description: images a digit in the 1,797 scans.
    counts = [a + b for a, b in zip(train.class_counts(), val.class_counts(), strict=True)]
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    samples = sorted((tmp_path / "images").iterdir())
    assert len(samples) == 20
    in_val = {sample.path for sample in val.samples}
    for sample in samples:
        digit, _, name = sample.name.partition("_")
        assert f"{root}/{digit}/{name}" in in_val
        assert sample.read_bytes() == (root / digit / name).read_bytes()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert make_digits.main(words) == 0
    assert "all 1820 files were already in place, nothing was written" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before

    content = samples[0].read_bytes()
    samples[0].write_bytes(content[:50])  # what an interrupted copy leaves
    (root / "4/0004.png").unlink()
    assert make_digits.main(words) == 0
    assert "2 of 1820 files written" in capsys.readouterr().out
    assert samples[0].read_bytes() == content


def test_digits_show_the_scan() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    image = Image.open(io.BytesIO(make_digits.draw_digits()[0, 0]))
    assert (image.size, image.mode) == ((32, 32), "L")
    # Averaging 4x4 blocks undoes the enlargement but for the filter's blur; the scan's ink must come back in place.
    shrunk = np.asarray(image, dtype=float).reshape(8, 4, 8, 4).mean(axis=(1, 3))  # (8, 8)
    assert np.corrcoef(shrunk.ravel(), data.images[0].ravel())[0, 1] > 0.98


def test_digits_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    assert make_digits.main(["--output", str(tmp_path / "taken")]) == 2
    assert capsys.readouterr().err.startswith(f"make_digits: cannot write {tmp_path}/taken/digits/0/0000.png: ")
