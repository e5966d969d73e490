"""The program as it is used: images are picked and written, and strategies are compared on a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.files import read_annotations
from deploy.backends.loading import load_backend
from deploy.inference.predictor import Predictor
from tests.conftest import write_image
from tests.helpers.embedded import NAMES, SIMSIAM, made
from tools.select import __main__ as select
from tools.select.simulation import SHARES
from tools.select.strategies import STRATEGIES

NET = {"module": "shufflenet_v2_module", "name": "shufflenet_v2_x0_5", "args": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make net.pth, a classifier without training, and 12 images, of which the list labelled.txt names two."""
    folder = tmp_path_factory.mktemp("select")
    made(folder, NET)
    for number in range(12):
        path = folder / "images" / ("花" if number % 2 else "b") / f"{number}.png"
        write_image(path, number % 3, number, 20 + number)
    (folder / "labelled.txt").write_text("images/b/0.png----0\nimages/花/1.png----1\n", encoding="utf-8")
    return folder


def run(folder: Path, output: Path, *arguments: object, weights: str = "net.pth") -> int:
    flags = ("--weights", folder / weights, "--unlabelled", folder / "images", "--output", output, "--device", "cpu")
    return select.main(list(map(str, (*flags, "--workers", 1, *arguments))))


def means_as_head(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a head that takes the nearest class mean: a regression on 1,024 features takes a second."""
    means = np.stack([features[labels == label].sum(axis=0) / max((labels == label).sum(), 1) for label in range(3)])
    return means, -0.5 * (means**2).sum(axis=1)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert select.main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err.removeprefix("tools.select: ").rstrip()


def test_the_most_uncertain_images_are_written_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "deep/picks"
    assert run(folder, output, "--num", 4, "--strategy", "margin") == 0
    assert capsys.readouterr().out == (f"{output}: 4 of 12 images, the narrowest margin between the two best classes\n")
    paths = sorted(str(path) for path in (folder / "images").rglob("*.png"))
    predictions = Predictor(*load_backend(folder / "net.pth", device="cpu")).predict_files(paths, workers=1)
    margins = {found.file: found.top_k[0][1] - found.top_k[1][1] for found in predictions}
    expected = [Path(file).relative_to(folder / "images").as_posix() for file in sorted(margins, key=margins.get)[:4]]
    assert (output / "picks.txt").read_text(encoding="utf-8").splitlines() == expected
    found = read_annotations(output / "annotation.json")
    assert [record["image_file"] for record in found.records] == expected and found.category == NAMES
    for file in expected:
        assert (output / file).read_bytes() == (folder / "images" / file).read_bytes()
    with Image.open(output / "picks.png") as sheet:
        assert sheet.width > 4 * 140 and np.asarray(sheet).std() > 10


@pytest.mark.parametrize("strategy", ["cluster", "bald", "badge"])
def test_images_with_labels_are_not_picked(folder: Path, tmp_path: Path, strategy: str) -> None:
    more = ("--strategy", strategy, "--labelled", folder / "labelled.txt")
    assert run(folder, tmp_path / "picks", "--num", 10, *more) == 0
    picked = (tmp_path / "picks/picks.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(picked)) == 10 and not {"b/0.png", "花/1.png"} & set(picked)


def test_images_that_cannot_be_read_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    write_image(images / "good.png", 0, 1)
    (images / "cut.png").write_bytes(b"\x89PNG")
    flags = ["--weights", folder / "net.pth", "--unlabelled", images, "--output", tmp_path / "picks", "--num", 2]
    assert select.main(list(map(str, [*flags, "--device", "cpu", "--strategy", "entropy"]))) == 1
    captured = capsys.readouterr()
    assert "cut.png: " in captured.err and "1 of 2 images" in captured.out
    assert len(read_annotations(tmp_path / "picks/annotation.json").records) == 1


def test_a_simulation_is_drawn_and_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for number in range(150):
        write_image(tmp_path / f"all/{number}.png", number % 3, number)
        lines.append(f"all/{number}.png----{number % 3}")
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr("tools.select.observations.VIEWS", ())
    monkeypatch.setattr("tools.select.simulation.fit_linear", means_as_head)
    monkeypatch.setattr(select, "STRATEGIES", {name: STRATEGIES[name] for name in ("random", "cluster")})
    flags = ["--weights", folder / "net.pth", "--simulate", tmp_path / "list.txt", "--output", tmp_path / "out"]
    assert select.main(list(map(str, [*flags, "--device", "cpu", "--draws", 2]))) == 0
    values = json.loads((tmp_path / "out/simulation.json").read_text(encoding="utf-8"))
    assert values["labels"] == [2, 5, 10, 21, 42, 105] and values["test_images"] == 45
    assert np.array(values["accuracy"]["cluster"]).shape == (2, len(SHARES))
    with Image.open(tmp_path / "out/simulation.png") as plot:
        assert plot.size == (990, 594)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["labels", "2", "5", "10", "21", "42", "105", "range", "at", "10"]
    assert [line.split()[0] for line in printed[1:3]] == ["random", "cluster"]


def test_mistakes_are_sentences(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, output = folder / "images", tmp_path / "picks"
    net = ("--weights", folder / "net.pth", "--output", output, "--device", "cpu")
    pool = ("--unlabelled", images)
    assert mistake(capsys, "--output", output).startswith("name either a net with --weights, or a config")
    assert mistake(capsys, *net, *pool).startswith("name the images with --unlabelled DIR and how many with --num N")
    assert mistake(capsys, *net, *pool, "--num", 13) == "--num 13 is more than the 12 images without labels"
    assert "none: no such folder" in mistake(capsys, *net, "--unlabelled", tmp_path / "none", "--num", 1)
    assert "none.txt: no such list or folder" in mistake(
        capsys, *net, *pool, "--num", 1, "--labelled", tmp_path / "none.txt"
    )
    inside = ("--weights", folder / "net.pth", *pool, "--num", 1, "--output", images / "picks")
    assert "it lies in the folder of the unlabelled images" in mistake(capsys, *inside)
    output.mkdir()
    (output / "annotation.json").write_text("", encoding="utf-8")
    assert "it holds annotation.json already" in mistake(capsys, *net, *pool, "--num", 1)
    (output / "annotation.json").unlink()
    assert "--set changes a key of --config" in mistake(capsys, *net, *pool, "--num", 1, "--set", "seed=1")
    surplus = mistake(capsys, *net, *pool, "--simulate", folder / "labelled.txt")
    assert surplus == "--simulate hides the labels of its own list: leave out --unlabelled"
    (folder / "features").mkdir(exist_ok=True)
    made(folder / "features", SIMSIAM, "features")
    features = ("--weights", folder / "features/net.pth", *net[2:], *pool, "--num", 1)
    assert "margin looks at scores, and this net has learned no classes" in mistake(
        capsys, *features, "--strategy", "margin"
    )
    assert select.main(list(map(str, [*features, "--strategy", "coreset"]))) == 0


def test_stages_of_a_project_are_read_from_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"sampling_num": 3, "sampling_fn": [{"type": "doubt", "sampling_num": 6}, {"type": "kcenter"}]}
    file = tmp_path / "stages.json"
    file.write_text(json.dumps(stages), encoding="utf-8")
    assert run(folder, tmp_path / "picks", "--sampling_fn", file, "--labelled", folder / "labelled.txt") == 0
    how = "the lowest highest scores, then the features farthest from what has labels"
    assert capsys.readouterr().out == f"{tmp_path}/picks: 3 of 10 images, {how}\n"
    flags = ("--weights", folder / "net.pth", "--unlabelled", folder / "images", "--output", tmp_path / "more")
    assert "leave out --num and --strategy" in mistake(capsys, *flags, "--sampling_fn", file, "--num", 3)
    file.write_text("[]", encoding="utf-8")
    assert "expected a JSON object with sampling_fn" in mistake(capsys, *flags, "--sampling_fn", file)
    file.write_text(json.dumps({"sampling_num": 0}), encoding="utf-8")
    assert f"{file}: sampling_num must be a whole number from 1" in mistake(capsys, *flags, "--sampling_fn", file)
    assert "none.json: cannot read it" in mistake(capsys, *flags, "--sampling_fn", tmp_path / "none.json")
