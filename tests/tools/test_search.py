"""The images that are found are those of the greatest cosine, as scikit-learn has it, on lines, in CSV and drawn."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from common.console import text_columns
from deploy.inference.feature_extractor import Embeddings
from tests.helpers.embedded import SIMSIAM, input_of, made, write_images
from tools import embed, search


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A checkpoint of a net whose output is features, and the net."""
    folder = tmp_path_factory.mktemp("net")
    return folder / "net.pth", made(folder, SIMSIAM, "features")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 9)
    return tmp_path / "images"


@pytest.fixture
def query(tmp_path: Path) -> Path:
    (image,) = write_images(tmp_path / "query", 1)
    pixels = np.asarray(Image.open(image))
    Image.fromarray(255 - pixels).save(image)
    return image


def run(trained: tuple[Path, nn.Module], images: Path, query: Path, *arguments: object) -> int:
    flags = ("--weights", trained[0], "--images", images, "--query", query, "--device", "cpu", *arguments)
    return search.main(list(map(str, flags)))


def save_embeddings(trained: tuple[Path, nn.Module], images: Path, path: Path) -> Path:
    flags = ("--weights", trained[0], "--images", images, "--output", path, "--device", "cpu")
    assert embed.main(list(map(str, flags))) == 0
    return path


def expected_order(net: nn.Module, images: Path, query: Path) -> list[tuple[str, float]]:
    """Rank with scikit-learn, on the net's own features."""
    paths = sorted(path for path in images.rglob("*.png") if not path.samefile(query))
    with torch.no_grad():
        cosines = cosine_similarity(net(input_of([query])).double().numpy(), net(input_of(paths)).double().numpy())[0]
    return sorted(
        ((path.relative_to(images).as_posix(), cosine) for path, cosine in zip(paths, cosines, strict=True)),
        key=lambda pair: -pair[1],
    )


def test_lines_and_table_have_the_greatest_cosines(
    trained: tuple[Path, nn.Module], images: Path, query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "new" / "S.csv"
    assert run(trained, images, query, "--k", 4, "--output", table) == 0
    order = expected_order(trained[1], images, query)[:4]
    expected = [f"  {rank:>3}   {cosine:.4f}  {file}" for rank, (file, cosine) in enumerate(order, 1)]
    assert capsys.readouterr().out.splitlines() == [str(query), *expected]
    assert table.read_bytes().startswith(b"\xef\xbb\xbf")
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["query", "rank", "similarity", "file"]
    assert [(row[0], row[1], row[3]) for row in rows[1:]] == [
        (str(query), str(rank), f"{images}/{file}") for rank, (file, _) in enumerate(order, 1)
    ]
    np.testing.assert_allclose([float(row[2]) for row in rows[1:]], [cosine for _, cosine in order], atol=2e-6)


def test_the_query_is_not_found_but_its_copy_is(
    trained: tuple[Path, nn.Module], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = images / "b/4.png"
    shutil.copy(own, images / "copy.png")
    (tmp_path / "link.png").symlink_to(own)
    for given in (own, tmp_path / "link.png", Path(os.path.relpath(own))):
        assert run(trained, images, given, "--k", 100) == 0
        found = [line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]]
        assert found[0] == ["1.0000", "copy.png"]
        assert [file for file, _ in expected_order(trained[1], images, own)] == [file for _, file in found]
        assert "b/4.png" not in [file for _, file in found]


def test_a_folder_of_queries_with_a_bad_one(
    trained: tuple[Path, nn.Module], images: Path, query: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (query.parent / "bad.png").write_bytes(b"")
    shutil.copy(images / "花/1.png", query.parent / "z.png")
    assert run(trained, images, query.parent, "--k", 1) == 1
    captured = capsys.readouterr()
    assert captured.err == f"tools.search: {query.parent}/bad.png: it is empty (0 bytes)\n"
    first, second = captured.out.split("\n\n")
    assert first.splitlines()[0] == str(query)
    assert second.splitlines() == [f"{query.parent}/z.png", "    1   1.0000  花/1.png"]


def test_a_folder_with_the_query_alone(
    trained: tuple[Path, nn.Module], query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(trained, query.parent, query, "--sheet", tmp_path / "S.png") == 0
    assert capsys.readouterr().out == f"{query}\n  no other image\n"


def test_saved_embeddings_give_the_same_without_embedding_again(
    trained: tuple[Path, nn.Module],
    images: Path,
    query: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(trained, images, query) == 0
    plain = capsys.readouterr().out
    saved = save_embeddings(trained, images, tmp_path / "E.npz")
    capsys.readouterr()

    def refuse(*arguments: object) -> None:
        raise AssertionError("the folder was embedded again")

    monkeypatch.setattr(search, "embed_folder", refuse)
    assert run(trained, images, query, "--embeddings", saved) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (plain, "")
    write_images(images, 11)
    assert run(trained, images, query, "--embeddings", saved) == 0
    assert capsys.readouterr().err == f"tools.search: 2 of 11 images below {images} are not in {saved}\n"


def test_embeddings_of_other_weights_or_files_are_refused(
    trained: tuple[Path, nn.Module], images: Path, query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = save_embeddings(trained, images, tmp_path / "E.npz")
    (images / "b/2.png").unlink()
    assert run(trained, images, query, "--embeddings", saved) == 2
    gone = f"{saved}: 1 of its 9 images are not below {images}, first b/2.png; "
    assert gone in capsys.readouterr().err
    right = Embeddings.read(saved)
    for changes, sentence in (
        ({"weights_sha256": "0" * 64}, "it was made with other weights than"),
        ({"weights_sha256": ""}, "it was made with other weights than"),
        ({"precision": "int8"}, f"it was made in int8, and {trained[0]} is fp32; leave it out, or make it again"),
        ({"preprocess": "{}"}, "it was made with another preprocessing than"),
    ):
        replace(right, **changes).save(saved)
        assert run(trained, images, query, "--embeddings", saved) == 2
        assert sentence in capsys.readouterr().err


def test_a_terminals_lines_are_cut_to_its_width(
    trained: tuple[Path, nn.Module],
    images: Path,
    query: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = images / ("很长的文件夹名字" * 6) / "42.png"
    long.parent.mkdir()
    shutil.copy(query, long)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(trained, images, query) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(text_columns, lines)) < 80
    assert lines[1].startswith("    1   1.0000  很长") and lines[1].endswith("/42.png")


def test_the_sheet_shows_the_query_and_its_hits(trained: tuple[Path, nn.Module], tmp_path: Path) -> None:
    colours = {"red": (220, 30, 30), "green": (30, 160, 40), "grey": (128, 128, 128)}
    for name, colour in colours.items():
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (900, 600), colour).save(tmp_path / "images" / f"{name}.png")
    red = tmp_path / "images/red.png"
    assert run(trained, tmp_path / "images", red, "--sheet", tmp_path / "S.png") == 0
    order = [file for file, _ in expected_order(trained[1], tmp_path / "images", red)]
    sheet = Image.open(tmp_path / "S.png")
    assert sheet.size == (10 + search.QUERY_PX + 10 + 10 + search.CELL_PX + 10, 466)
    middle = 10 + search.QUERY_PX // 2
    assert sheet.getpixel((middle, middle)) == colours["red"]
    assert sheet.getpixel((14, middle)) == (9, 82, 165)  # the frame
    right = 20 + search.QUERY_PX + 10 + search.CELL_PX // 2
    assert [sheet.getpixel((right, y)) for y in (90, 90 + search.CELL_PX + 68)] == [
        colours[file.removesuffix(".png")] for file in order
    ]


def test_a_sheet_of_many_queries_has_the_first(
    trained: tuple[Path, nn.Module],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(search, "SHEET_QUERIES", 2)
    sheet = tmp_path / "S.png"
    assert run(trained, images, images, "--k", 1, "--sheet", sheet) == 0
    assert capsys.readouterr().err == f"tools.search: {sheet} shows the first 2 of 9 queries\n"
    with Image.open(sheet) as drawn:
        assert drawn.height == 2 * 466


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--k", "0", "--k must be at least 1, got 0"),
        ("--query", "none.png", "none.png: no such image or folder"),
        ("--query", "empty", "empty: no images in it or below it"),
        ("--output", "S.json", 'S.json: the file must end in .csv, got ".json"'),
        ("--sheet", "S.jpg", 'S.jpg: the file must end in .png, got ".jpg"'),
        ("--sheet", "images/S.png", "S.png: it would be one of the images of"),
        ("--embeddings", "none.npz", "none.npz: no such file"),
    ],
)
def test_mistakes_are_one_sentence(
    flag: str,
    value: str,
    sentence: str,
    trained: tuple[Path, nn.Module],
    images: Path,
    query: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(trained, images, query, flag, value if flag == "--k" else tmp_path / value) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
