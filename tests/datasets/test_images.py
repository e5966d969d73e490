"""extract/images and the entry tools.antgo: files, records, exit codes and sentences."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.paths import ROOT
from data_loader.decoding import decode
from datasets.images import target_names
from tests.helpers.killed import killed_at
from tools import antgo


def picture(path: Path, size: tuple[int, int] = (60, 64), **kwargs: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **kwargs)
    return path


def records_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "annotation.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images in two class folders and one beside them; one is turned by EXIF, one damaged, one no image."""
    source = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(source / "tern/img10.jpg", (40, 30))
    picture(source / "tern/img2.jpg", (40, 30), exif=exif)
    picture(source / "鹭/a.png", (60, 64))
    picture(source / "鹭/b.tif", (100, 50))
    picture(source / "alone.bmp")
    (source / "tern/bad.jpg").write_bytes((source / "tern/img10.jpg").read_bytes()[:400])
    (source / "notes.txt").write_text("no image")
    return source


def test_images_become_records(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "set"
    words = ["tool", "extract/images", f"--src={photos}", "--tgt", str(target), "--labels", "folders", "--cloud"]
    assert antgo.main(words) == 1
    found = records_of(target)
    assert [(r["image_file"], r["width"], r["height"], r["image_label"], r["image_label_name"]) for r in found] == [
        ("alone.bmp", 60, 64, -1, ""),
        ("tern/img2.jpg", 30, 40, 0, "tern"),  # upright
        ("tern/img10.jpg", 40, 30, 0, "tern"),
        ("鹭/a.png", 60, 64, 1, "鹭"),
        ("鹭/b.tif", 100, 50, 1, "鹭"),
    ]
    assert json.loads((target / "meta.json").read_text())["meta"]["category"] == ["tern", "鹭"]
    assert all((target / r["image_file"]).read_bytes() == (photos / r["image_file"]).read_bytes() for r in found)
    output = capsys.readouterr()
    assert "left out: tern/bad.jpg: it is damaged" in output.err and "1 left out" in output.err
    assert "5 records, 2 classes" in output.out
    first = (target / "annotation.json").read_bytes()
    assert antgo.main([*words, "--overwrite"]) == 1
    assert (target / "annotation.json").read_bytes() == first


def test_max_size_shrinks_and_never_enlarges(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "set"
    picture(photos / "鹭/b.png", (20, 20))
    assert antgo.main(["extract/images", "--src", str(photos / "鹭"), "--tgt", str(target), "--max_size=64"]) == 0
    sizes = {r["image_file"]: (r["width"], r["height"]) for r in records_of(target)}
    assert sizes == {"a.png": (60, 64), "b.png.png": (20, 20), "b.tif.png": (64, 32)}
    assert all(decode(str(target / name)).size == size for name, size in sizes.items())
    assert (target / "a.png").read_bytes() == (photos / "鹭/a.png").read_bytes()
    assert np.array_equal(decode(str(target / "b.png.png")), decode(str(photos / "鹭/b.png")))


def test_no_two_images_get_one_name() -> None:
    """Beside the pair that keeps its endings lies an image whose name is just that."""
    paths = ["a.bmp", "a.png", "a.tif", "a.tif.png", "b.tif", "b.JPG", "c/d.gif"]
    assert target_names(paths, is_converted=True) == {
        **{"a.bmp": "a.bmp.png", "a.png": "a.png.png", "a.tif": "a.tif.png.png", "a.tif.png": "a.tif.png"},
        **{"b.tif": "b.png", "b.JPG": "b.JPG", "c/d.gif": "c/d.png"},
    }


def test_choice_of_images(photos: Path, tmp_path: Path) -> None:
    def chosen(name: str, *flags: str) -> list[str]:
        assert antgo.main(["extract/images", "--src", str(photos), "--tgt", str(tmp_path / name), *flags]) in (0, 1)
        return [record["image_file"] for record in records_of(tmp_path / name)]

    assert chosen("a", "--ext", "jpg,png") == ["tern/img2.jpg", "tern/img10.jpg", "鹭/a.png"]
    assert chosen("b", "--prefix", "img", "--suffix", "0") == ["tern/img10.jpg"]
    assert chosen("c", "--num", "2") == ["alone.bmp"]  # tern/bad.jpg is the second
    shuffled = chosen("d", "--shuffle", "--seed", "3", "--ext", "jpg,png,bmp,tif")
    assert shuffled == chosen("e", "--shuffle", "--seed", "3", "--ext", "jpg,png,bmp,tif")
    assert sorted(shuffled) == sorted(chosen("f")) and shuffled != chosen("g")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--src", "nothing"], "--src nothing: it is not there"),
        (["--src", "photos/notes.txt"], "it is a file, not a folder"),
        (["--tgt", "photos"], "it is the source's folder, or lies in it"),
        (["--tgt", "photos/deeper"], "it is the source's folder, or lies in it"),
        (["--tgt", "photos/notes.txt"], "or lies in it"),
        (["--tgt", "file"], "it is a file, not a folder"),
        (["--tgt", "full"], "it holds annotation.json already"),
        (["--max-size", "15"], "--max-size must be 0 or at least 16, got 15"),
        (["--ext", "jpg,exe"], '"exe" is no known ending'),
        (["--prefix", "nothing"], "none of its 6 images is left after the filters"),
    ],
)
def test_mistakes(
    photos: Path, flags: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/annotation.json").write_text("[]")
    before = sorted(photos.parent.rglob("*"))
    assert antgo.main(["extract/images", "--src", "photos", "--tgt", "set", *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(photos.parent.rglob("*")) == before


def test_images_that_cannot_be_read_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"no image")
    words = ["extract/images", "--src", str(tmp_path / "photos"), "--tgt", str(tmp_path / "set")]
    assert antgo.main(words) == 2
    assert "none of its 1 images can be read; nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("flags", [[], ["--max-size", "32"]])
def test_another_file_is_left_alone(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "photos/a.png")
    picture(tmp_path / "photos/b.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.png").write_bytes(b"somebody's")
    words = ["extract/images", "--src", str(tmp_path / "photos"), "--tgt", str(tmp_path / "set"), *flags]
    assert antgo.main(words) == 1
    assert "left out: a.png: another file of this name is there already" in capsys.readouterr().err
    assert (tmp_path / "set/a.png").read_bytes() == b"somebody's"
    assert [record["image_file"] for record in records_of(tmp_path / "set")] == ["b.png"]
    assert antgo.main([*words, "--overwrite"]) == 0
    assert decode(str(tmp_path / "set/a.png")).size == ((60, 64) if not flags else (30, 32))


def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert antgo.main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name}" in listed for name in antgo.VERBS)
    assert antgo.main(["extract/image"]) == 2
    assert 'did you mean "extract/images"?' in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        antgo.main(["extract/images", "--src", "a", "--tgt", "b", "--shufle"])
    assert ended.value.code == 2
    assert 'did you mean "--shuffle"?' in capsys.readouterr().err


@pytest.mark.parametrize("name", antgo.VERBS)
def test_every_word_has_help_and_is_a_module(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        antgo.main([name, "--help"])
    assert ended.value.code == 0
    assert name in capsys.readouterr().out
    assert (ROOT / "tools/datasets" / f"{name.replace('/', '_')}.py").is_file()


@pytest.mark.parametrize(
    ("function", "count", "half"),
    [("shutil.copyfile", 3, True), ("datasets.files.complete", 4, False), ("os.fsync", 3, False)],
    ids=["in a copy", "in the records", "before the name"],
)
def test_a_kill_leaves_no_annotation(tmp_path: Path, function: str, count: int, half: bool) -> None:
    """No annotation.json, no image cut, wherever it is killed; the same command then runs through."""
    source, target = tmp_path / "photos", tmp_path / "set"
    for number in range(6):
        picture(source / f"{number}.png", (20, 20))
    words = ["extract/images", "--src", str(source), "--tgt", str(target)]
    killed_at(function, count, *words, half=half)
    assert not (target / "annotation.json").exists()
    assert all(path.read_bytes() == (source / path.name).read_bytes() for path in target.glob("[0-9]*.png"))
    assert antgo.main([*words, "--overwrite"]) == 0
    assert len(records_of(target)) == 6 and not list(target.glob(".*"))


def test_a_folder_that_is_not_utf8_is_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.fsencode(tmp_path / "photos") + b"/bad\xff"
    try:
        Path(os.fsdecode(folder)).mkdir(parents=True)
    except OSError:
        pytest.skip("this disk has UTF-8 names alone")
    picture(tmp_path / "photos/a/1.png")
    (Path(os.fsdecode(folder)) / "2.png").write_bytes((tmp_path / "photos/a/1.png").read_bytes())
    words = ["extract/images", "--src", str(tmp_path / "photos"), "--tgt", str(tmp_path / "set"), "--labels", "folders"]
    assert antgo.main(words) == 1
    assert "its name is not UTF-8; rename it" in capsys.readouterr().err
    assert json.loads((tmp_path / "set/meta.json").read_text())["meta"]["category"] == ["a"]
