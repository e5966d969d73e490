"""Lists, class folders and class-name files: what is read, and every error by its text."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.paths import ROOT
from data_loader.image_files import IMAGE_SUFFIXES, LeftOut, NoImagesError, iter_images, natural_sorted, walk_images
from data_loader.list_reader import read_list
from data_loader.samples import ListError, Sample, SampleList, read_class_folders, read_class_names


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def write_list(folder: Path, content: str | bytes) -> Path:
    file = folder / "trainset.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def list_problems(file: Path, root: Path, separator: str = "----", num_classes: int = 10, **options: Any) -> list[str]:
    with pytest.raises(ListError) as caught:
        read_list(file, root, separator, num_classes, **options)
    assert all(problem.startswith(str(file)) for problem in caught.value.problems)
    return [problem.removeprefix(str(file)) for problem in caught.value.problems]


def test_reads_the_contract_example(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "apple.jpg", "data/2.jpg")
    file = write_list(tmp_path, "apple.jpg----0\n\ndata/2.jpg----1\n")
    found = read_list(file, root, "----", 2)
    assert found.samples == (Sample(f"{root}/apple.jpg", 0), Sample(f"{root}/data/2.jpg", 1))
    assert found.class_names == ("0", "1")
    assert (found.root, found.origin, found.line_numbers) == (str(root), str(file), (1, 3))
    assert [found.where(0), found.where(1)] == [f"{file}:1", f"{file}:3"]
    assert found.class_counts() == [1, 1]
    assert pickle.loads(pickle.dumps(found)) == found


def test_where_and_counts_without_line_numbers() -> None:
    found = SampleList((Sample("r/b/1.png", 1),), ("a", "b", "c"), "r", "r")
    assert found.where(0) == "r"
    assert found.class_counts() == [0, 1, 0]


@pytest.mark.parametrize("separator", ["----", "\t", ",", " ", ";", "::", "=>", "-"])
def test_any_separator_splits_at_its_last_occurrence(tmp_path: Path, separator: str) -> None:
    name = f"a{separator.strip()}b----c, d.jpg"
    root = touch(tmp_path / "root", name)
    found = read_list(write_list(tmp_path, f"{name}{separator}3\n"), root, separator, 4)
    assert found.samples == (Sample(f"{root}/{name}", 3),)


def test_repeated_spaces_separate_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.jpg")
    assert read_list(write_list(tmp_path, "a.jpg   1  \n"), root, " ", 2).samples == (Sample(f"{root}/a.jpg", 1),)


def test_crlf_bom_blank_lines_spaces_chinese_emoji(tmp_path: Path) -> None:
    names = ["红 苹果/图 片.jpg", "with space.jpg", "😀.png", " leading.jpg", "next\u0085line.jpg"]
    root = touch(tmp_path / "root", *names)
    text = "\r\n  \r\n".join(f"{name}----{label}" for label, name in enumerate(names))
    found = read_list(write_list(tmp_path, b"\xef\xbb\xbf" + text.encode()), root, "----", 5)
    assert [sample.path for sample in found.samples] == [f"{root}/{name}" for name in names]
    assert found.line_numbers == (1, 3, 5, 7, 9)


def test_relative_root_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "data/b.jpg")
    monkeypatch.chdir(tmp_path)
    Path("trainset.txt").write_text("a.jpg----0\ndata/b.jpg----1\n")
    assert [sample.path for sample in read_list("trainset.txt", ".", "----", 2).samples] == ["a.jpg", "data/b.jpg"]
    assert [sample.path for sample in read_list("trainset.txt", "", "----", 2).samples] == ["a.jpg", "data/b.jpg"]
    Path("trainset.txt").write_text("b.jpg----0\n")
    found = read_list("trainset.txt", "data/", "----", 1)
    assert found.samples == (Sample("data/b.jpg", 0),)
    assert found.where(0) == "trainset.txt:1"


def test_every_mistake_of_a_list_is_reported_at_once(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.jpg", "b.jpg", "c.jpg", "folder.jpg/inside.jpg")
    lines = [
        "a.jpg----0",
        "a.jpg 0",
        "b.jpg----cat",
        "c.jpg----10",
        "gone.jpg----1",
        "./a.jpg----0",
        "a.jpg----2",
        "../x.jpg----1",
        "folder.jpg----1",
        "----1",
        "c.jpg2----1.0",
        "b.jpg2----",
    ]
    root_text = str(root)
    assert list_problems(write_list(tmp_path, "\n".join(lines)), root) == [
        ':2: separator "----" is missing in "a.jpg 0"; '
        "write path----label, or set file_label_separator to what stands between them",
        ':3: label "cat" is not an integer; allowed are 0..9',
        ":4: label 10 is outside 0..9 (num_classes is 10)",
        f":5: image not found: {root_text}/gone.jpg",
        ':6: path "./a.jpg" with label 0 already stands in line 1; remove one of them',
        ':7: path "a.jpg" has label 2 here but label 0 in line 1',
        f':8: path "../x.jpg" leaves the root folder {root_text}; list images below the root, or choose a higher root',
        f":8: image not found: {root_text}/../x.jpg",
        f":9: {root_text}/folder.jpg is a folder, not an image",
        ':10: the path before "----1" is empty; write path----label',
        ':11: label "1.0" is not an integer; allowed are 0..9',
        f":11: image not found: {root_text}/c.jpg2",
        ':12: label "" is not an integer; allowed are 0..9',
        f":12: image not found: {root_text}/b.jpg2",
    ]


def test_label_outside_reads_as_in_the_style_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(touch(tmp_path, *(f"{i}.jpg" for i in range(17))))
    write_list(tmp_path, "".join(f"{i}.jpg----{102 if i == 16 else i}\n" for i in range(17)))
    with pytest.raises(ListError) as caught:
        read_list("trainset.txt", ".", "----", 102)
    assert str(caught.value) == "trainset.txt:17: label 102 is outside 0..101 (num_classes is 102)"


def test_labels_that_count_from_one_are_recognised(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.jpg", "b.jpg")
    assert list_problems(write_list(tmp_path, "a.jpg----1\nb.jpg----2\n"), root, num_classes=2) == [
        ": no label is 0 and the largest is 2; labels count from 0, not from 1",
        ":2: label 2 is outside 0..1 (num_classes is 2)",
    ]


def test_negative_labels_are_refused(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.jpg")
    assert list_problems(write_list(tmp_path, "a.jpg,-1\n"), root, ",") == [
        ":1: label -1 is outside 0..9 (num_classes is 10)"
    ]
    assert list_problems(write_list(tmp_path, "a.jpg-----1\n"), root) == [
        f":1: image not found: {root}/a.jpg-; the path ends in a dash: a label below 0 is not allowed"
    ]


@pytest.mark.parametrize("text", ["1_0", "٣", "0x1", "1e1", "--1", "１"])
def test_only_plain_digits_are_a_label(tmp_path: Path, text: str) -> None:
    root = touch(tmp_path / "root", "a.jpg")
    assert list_problems(write_list(tmp_path, f"a.jpg,{text}\n"), root, ",") == [
        f':1: label "{text}" is not an integer; allowed are 0..9'
    ]


def test_a_class_name_as_label_gets_its_number_as_a_hint(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.jpg")
    file = write_list(tmp_path, "a.jpg----dog\n")
    assert list_problems(file, root, num_classes=2, class_names=("cat", "dog")) == [
        ':1: label "dog" is not an integer; allowed are 0..1; class dog has label 1'
    ]


def test_class_names_must_match_num_classes(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.jpg")
    file = write_list(tmp_path, "a.jpg----1\n")
    assert read_list(file, root, "----", 2, ("cat", "dog")).class_names == ("cat", "dog")
    assert list_problems(file, root, num_classes=3, class_names=("cat", "dog")) == [
        ": 2 class names were given, but num_classes is 3"
    ]


@pytest.mark.parametrize("content", ["", "\n \r\n\n", "\ufeff"])
def test_empty_list(tmp_path: Path, content: str) -> None:
    assert list_problems(write_list(tmp_path, content), tmp_path) == [
        ": the list is empty; write one path----label a line"
    ]


def test_empty_separator(tmp_path: Path) -> None:
    assert list_problems(write_list(tmp_path, "a 1\n"), tmp_path, "") == [
        ": the separator is empty; name what stands between path and label, such as ----"
    ]


def test_not_utf8_is_reported_with_its_line(tmp_path: Path) -> None:
    content = "a.jpg----0\r\n红苹果.jpg----1\r\n"
    assert list_problems(write_list(tmp_path, content.encode("gbk")), tmp_path) == [
        ':2: the line is not UTF-8 (byte 0xba); it looks like GBK: "红苹果.jpg----1"; save the file as UTF-8'
    ]
    assert list_problems(write_list(tmp_path, b"\xef\xbb\xbfa----0\n\nb\xff----1\n"), tmp_path) == [
        ":3: the line is not UTF-8 (byte 0xff); save the file as UTF-8"
    ]
    assert list_problems(write_list(tmp_path, content.encode("utf-16")), tmp_path) == [
        ":1: the file is UTF-16; save it as UTF-8"
    ]


def test_missing_list_root_and_image_name_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ListError) as caught:
        read_list("none.txt", ".", "----", 2)
    assert str(caught.value) == f"none.txt: file not found (current folder {tmp_path})"
    write_list(tmp_path, "a.jpg----0\n")
    with pytest.raises(ListError) as caught:
        read_list("trainset.txt", "jpg", "----", 2)
    assert str(caught.value) == f"trainset.txt: root folder jpg not found (current folder {tmp_path})"
    (tmp_path / "jpg").mkdir()
    with pytest.raises(ListError) as caught:
        read_list("trainset.txt", "jpg", "----", 2)
    assert str(caught.value) == f"trainset.txt:1: image not found: jpg/a.jpg (current folder {tmp_path})"


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(ListError, match=r"cannot be read: "):
        read_list(tmp_path, tmp_path, "----", 2)


@pytest.mark.skipif(os.sep != "/", reason="a backslash is a separator on Windows")
def test_missing_image_hints(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "d/a.jpg", "b.jpg")
    assert list_problems(write_list(tmp_path, "d\\a.jpg----0\nb.jpg ---- 1\n"), root) == [
        f":1: image not found: {root}/d\\a.jpg; write / instead of \\",
        f":2: image not found: {root}/b.jpg ; the path begins or ends with a space",
    ]


def test_many_missing_images_of_one_folder_take_the_scan(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", *(f"d/{i}.jpg" for i in range(50)))
    (root / "d/folder.jpg").mkdir()
    (root / "d/link.jpg").symlink_to(root / "d/1.jpg")
    (root / "d/broken.jpg").symlink_to(root / "nowhere.jpg")
    names = [*range(50), "folder", "link", "broken", "gone"]
    file = write_list(tmp_path, "".join(f"d/{name}.jpg----0\n" for name in names))
    assert list_problems(file, root) == [
        f":51: {root}/d/folder.jpg is a folder, not an image",
        f":53: image not found: {root}/d/broken.jpg",
        f":54: image not found: {root}/d/gone.jpg",
    ]


def test_check_files_off_looks_at_no_file(tmp_path: Path) -> None:
    file = write_list(tmp_path, "a.jpg----0\nb.jpg----1\n")
    assert len(read_list(file, tmp_path / "none", "----", 2, check_files=False).samples) == 2


def test_paths_outside_the_root(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a.jpg", "sub/a..b.jpg").resolve()
    touch(tmp_path, "outside.jpg", "root2/b.jpg")
    outside = [f"{tmp_path}/outside.jpg", "../outside.jpg", "sub/../../root2/b.jpg"]
    file = write_list(tmp_path, "".join(f"{path}----0\n" for path in outside))
    with_repeat = list_problems(file, root)
    assert with_repeat[0].startswith(f':1: path "{tmp_path}/outside.jpg" leaves the root folder {root}; ')
    assert [text.split(":")[1] for text in with_repeat] == ["1", "2", "2", "3"]
    assert 'path "../outside.jpg" with label 0 already stands in line 1' in with_repeat[1]
    file = write_list(tmp_path, f"{outside[1]}----0\n{outside[2]}----0\n")
    assert len(read_list(file, root, "----", 1, allow_outside_root=True).samples) == 2
    file = write_list(tmp_path, f"{root}/a.jpg----0\nsub/a..b.jpg----0\n")
    assert [sample.path for sample in read_list(file, root, "----", 1).samples] == [
        f"{root}/a.jpg",
        f"{root}/sub/a..b.jpg",
    ]


def test_conflict_sees_through_spellings(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "d/a.jpg").resolve()
    file = write_list(tmp_path, f"d/a.jpg----0\nd//a.jpg----1\nd/../d/a.jpg----1\n{root}/d/a.jpg----1\n")
    assert [text.partition(": ")[2].partition("has")[2] for text in list_problems(file, root)] == [
        " label 1 here but label 0 in line 1"
    ] * 3


def test_a_long_report_is_cut(tmp_path: Path) -> None:
    file = write_list(tmp_path, "".join(f"{i}.jpg----0\n" for i in range(25)))
    with pytest.raises(ListError) as caught:
        read_list(file, tmp_path, "----", 1)
    assert len(caught.value.problems) == 25
    lines = str(caught.value).split("\n")
    assert lines[19] == f"{file}:20: image not found: {tmp_path}/19.jpg"
    assert lines[20:] == ["... and 5 more"]


def test_a_long_line_is_shortened(tmp_path: Path) -> None:
    assert f'missing in "{"a" * 117}..."; write' in list_problems(write_list(tmp_path, "a" * 5000), tmp_path)[0]


def test_200k_lines_are_read(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", *(f"{i}.jpg" for i in range(1000)))
    lines = [f"{i}.jpg----{i % 100}" for i in range(1000)]
    lines += [f"class {i % 100}/图片_{i}.jpg----{i % 100}" for i in range(199_000)]
    file = write_list(tmp_path, "\n".join(lines))
    found = read_list(file, root, "----", 100, check_files=False)
    assert len(found.samples) == 200_000
    assert sum(found.class_counts()) == 200_000
    assert len(read_list(write_list(tmp_path, "\n".join(lines[:1000])), root, "----", 100).samples) == 1000


def test_class_names_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeffcat\r\n红 苹果\r\ndog \r\n\r\n".encode())
    assert read_class_names(file) == ("cat", "红 苹果", "dog")


def test_class_names_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("cat\n\ndog\ncat\n")
    with pytest.raises(ListError) as caught:
        read_class_names(file)
    assert caught.value.problems == [
        f"{file}:2: the class name is empty; line n names the class of label n-1",
        f'{file}:4: class name "cat" already stands in line 1',
    ]
    file.write_text(" \n")
    with pytest.raises(ListError) as caught:
        read_class_names(file)
    assert str(caught.value) == f"{file}: the file is empty; write one class name a line"
    file.write_bytes("红苹果".encode("gbk"))
    with pytest.raises(ListError, match="it looks like GBK"):
        read_class_names(file)


def test_class_folders_in_natural_order(tmp_path: Path) -> None:
    root = touch(tmp_path, "c10/1.jpg", "c2/img10.jpg", "c2/img2.JPG", "c2/deep/x.png", "c2/notes.txt", ".git/a.png")
    touch(root, "beside.jpg")
    found = read_class_folders(root)
    assert found.class_names == ("c2", "c10")
    assert found.samples == (
        Sample(f"{root}/c2/img2.JPG", 0),
        Sample(f"{root}/c2/img10.jpg", 0),
        Sample(f"{root}/c2/deep/x.png", 0),
        Sample(f"{root}/c10/1.jpg", 1),
    )
    assert (found.root, found.origin, found.line_numbers) == (str(root), str(root), ())
    assert found.where(3) == str(root)


def test_class_folders_with_given_names(tmp_path: Path) -> None:
    root = touch(tmp_path, "dog/1.jpg")
    assert read_class_folders(root, ("dog", "cat")).class_counts() == [1, 0]
    touch(root, "roses/1.jpg", "zebra/1.jpg")
    (root / "cat").mkdir()
    with pytest.raises(ListError) as caught:
        read_class_folders(root, ("dog", "rose", "cat"))
    endings = " ".join(IMAGE_SUFFIXES)
    assert caught.value.problems == [
        f"{root}/cat: the class folder has no images; endings known: {endings}",
        f'{root}/roses: folder "roses" is not one of the 3 class names; did you mean "rose"?',
        f'{root}/zebra: folder "zebra" is not one of the 3 class names; class names: dog, rose, cat',
    ]


def test_class_folders_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(touch(tmp_path, "flat/1.jpg"))
    with pytest.raises(ListError) as caught:
        read_class_folders("none")
    assert str(caught.value) == f"none: folder not found (current folder {tmp_path})"
    with pytest.raises(ListError) as caught:
        read_class_folders("flat")
    assert str(caught.value) == "flat: has no class folders; expected one folder a class with its images inside"


def test_natural_order() -> None:
    assert natural_sorted(["img10", "img2", "img1", "a", "img02"]) == ["a", "img1", "img02", "img2", "img10"]
    assert natural_sorted(["img2", "img02"]) == natural_sorted(["img02", "img2"])


def test_iter_images_walks_folder_by_folder(tmp_path: Path) -> None:
    names = ["b10/1.jpg", "b2/img10.png", "b2/img2.png", "z.webp", "😀.JPEG", "b2/deep/9.gif", "no.txt", ".hidden.jpg"]
    root = touch(tmp_path, *names)
    (root / "folder.jpg").mkdir()
    touch(root, "folder.jpg/inside.bmp")
    assert [path.removeprefix(f"{root}/") for path in iter_images(root)] == [
        "z.webp",
        "😀.JPEG",
        "b2/img2.png",
        "b2/img10.png",
        "b2/deep/9.gif",
        "b10/1.jpg",
        "folder.jpg/inside.bmp",
    ]
    assert len(list(iter_images(root, recursive=False))) == 2


def test_iter_images_survives_links(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/1.jpg", "b/2.jpg")
    (root / "a/loop").symlink_to(root)
    (root / "a/to_b").symlink_to(root / "b")
    (root / "b/to_a").symlink_to(root / "a")
    (root / "broken.jpg").symlink_to(root / "nowhere")
    (root / "self.jpg").symlink_to(root / "self.jpg")
    (root / "good.jpg").symlink_to(root / "a/1.jpg")
    found = [path.removeprefix(f"{root}/") for path in iter_images(root)]
    assert found == ["broken.jpg", "good.jpg", "self.jpg", "a/1.jpg", "a/to_b/2.jpg", "b/2.jpg", "b/to_a/1.jpg"]


def test_iter_images_streams_and_walks_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1.jpg", "d/2.jpg")
    stream = iter_images(tmp_path)
    assert next(stream) == f"{tmp_path}/1.jpg"
    touch(tmp_path, "d/3.jpg")  # seen, because that folder is scanned only when its turn comes
    assert len(list(stream)) == 2
    monkeypatch.chdir(tmp_path)
    assert list(iter_images(".")) == ["1.jpg", "d/2.jpg", "d/3.jpg"]
    with pytest.raises(FileNotFoundError):
        next(iter_images("none"))


def test_reading_lists_imports_no_torch() -> None:
    code = "import sys, data_loader.samples; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_class_folders_count_what_they_leave_out(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "cat/1.jpg", "cat/2.HEIC", "cat/deep/3.heic", "cat/notes.txt", "dog/4.tga", "dog/5")
    touch(root, "dog/6.jp2", "readme.md", "dog/@eaDir/6.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/cat/1.jpg", "cat/.hidden")
    found = read_class_folders(root)
    assert found.class_names == ("cat", "dog")
    assert [sample.path for sample in found.samples] == [f"{root}/cat/1.jpg", f"{root}/dog/6.jp2"]
    counts = {".heic": 2, ".txt": 1, ".tga": 1, "without an ending": 1, ".md": 1, "folder @eaDir": 2}
    assert found.left_out.counts == counts
    assert str(found.left_out).startswith("2 .heic, 2 folder @eaDir, 1 .md, 1 .tga, 1 .txt, 1 without an ending (pip")
    assert str(found.left_out).endswith(" (pip install -r requirements-heic.txt for .heic)")


def test_folders_of_splits_are_no_classes(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "Train/cat/1.jpg", "val/cat/2.jpg", "test/cat/3.jpg")
    splits = "are the splits of a data set, no classes; name"
    with pytest.raises(ListError) as caught:
        read_class_folders(root)
    folders = f"{root}/Train and {root}/test"
    assert str(caught.value) == f"{root}: its folders Train and test and val {splits} {folders} instead"
    with pytest.raises(ListError) as caught:
        read_class_folders(touch(tmp_path / "sets", "cars/training/1.jpg", "cars/valid/2.jpg", "birds/3.jpg"))
    assert f"{tmp_path}/sets/cars: its folders training and valid {splits}" in str(caught.value)
    vehicles = touch(tmp_path / "vehicles", "train/1.jpg", "bus/2.jpg")
    assert read_class_folders(vehicles).class_names == ("bus", "train")
    assert read_class_folders(root, ("Train", "val", "test")).class_counts() == [1, 1, 1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_only_regular_files_are_images(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "1.jpg")
    os.mkfifo(root / "2.jpg")
    (root / "3.jpg").symlink_to(root / "2.jpg")
    (root / "4.jpg").symlink_to("/dev/zero")
    (root / "5.jpg").symlink_to(root / "1.jpg")
    (root / "6.jpg").symlink_to(root / "nowhere")
    left_out = LeftOut()
    assert [Path(path).name for path in iter_images(root, left_out=left_out)] == ["1.jpg", "5.jpg", "6.jpg"]
    assert left_out.counts == {"pipe, socket or device": 3}


def test_a_folder_without_images_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = touch(tmp_path / "root", "1.heic", "2.xyz")
    with pytest.raises(NoImagesError, match=r"no images in it or below it; left out: 1 \.heic, 1 \.xyz \(pip install"):
        list(walk_images(root))
    touch(root, "3.jpg")
    assert list(walk_images(root)) == [f"{root}/3.jpg"]
    assert capsys.readouterr().err.startswith(f"note: {root}: left out, as no images: 1 .heic, 1 .xyz (pip install -r")
