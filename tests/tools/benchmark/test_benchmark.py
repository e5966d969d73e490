"""The benchmark: rounds in turn, ratios with their intervals, sides in processes, and their reports."""

import io
import json
import math
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import BenchmarkError
from common.paths import ROOT
from configs.loading import process_config
from configs.schema import Config
from data_loader.pack_list import read_pack
from data_loader.packed_images import content_of
from data_loader.targets import ClassLabel
from tests.conftest import write_image
from tests.helpers.masks import mask_nets, write_config, write_scenes
from tools.benchmark import __main__ as benchmark
from tools.benchmark import report, statistics, suites
from tools.benchmark.micro import PROBE_BASE, batch_round, probe_contenders
from tools.benchmark.own_runner import EpochOfImages, fit, stream, train
from tools.benchmark.peers.imagefolder import make_loader
from tools.benchmark.protocol import Round, Turns
from tools.benchmark.runners import CallSide, ProcessSide, started
from tools.benchmark.statistics import Figure, Measured, Ratio, measure, paired_ratio, share_of_others
from tools.benchmark.streaming import served_shards
from train import main as main_of_train

SIDE = """
import sys
from tools.benchmark.protocol import Turns
turns = Turns()
print("a library's greeting")
count = 0
def play():
    global count
    count += 1
    print("noise")
    if count == int(sys.argv[1]):
        raise SystemExit("that was the last one")
    return {"rate": 10.0 * count, "errors": 1}
turns.play(play, "numpy")
"""


class Recorded(Turns):
    """Turns without a process: they allow so many rounds and record their figures."""

    def __init__(self, rounds: int) -> None:
        self.left, self.reported, self.versions = rounds, list[Round](), tuple[str, ...]()

    def ready(self, *packages: str) -> None:
        self.versions = packages

    def wait(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def report(self, figures: Round) -> None:
        self.reported.append(figures)


@pytest.fixture
def side_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_side.py").write_text(SIDE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "a_side"


@pytest.fixture
def make_flowers(tmp_path: Path, make_config: Callable[..., Path]) -> Callable[..., Config]:
    """A function that returns a config of twelve training images in class folders."""
    for number in range(12):
        write_image(tmp_path / "train" / f"class {number % 3}" / f"{number:02d}.png", number % 3, number)
    folders = {f"{split}_data_root_dir": str(tmp_path / "train") for split in ("train", "val")}
    lists = {f"{split}_data_file": "" for split in ("train", "val")}
    return lambda **changes: process_config(make_config(**{**folders, **lists, **changes}))


def test_ratio_of_steady_sides_has_no_spread() -> None:
    assert paired_ratio([4.0, 8.0, 2.0], [2.0, 4.0, 1.0]) == Ratio(2.0, 2.0, 2.0)


@pytest.mark.parametrize("rounds", [3, 7, 11])
def test_interval_is_that_of_the_order_statistics(rounds: int) -> None:
    # The median of a resample of n ratios is at most the k-th smallest where at least half of its draws are: binomial
    def at_most(k: int) -> float:
        share, least = k / rounds, rounds // 2 + 1
        return sum(math.comb(rounds, i) * share**i * (1 - share) ** (rounds - i) for i in range(least, rounds + 1))

    low = next(k for k in range(1, rounds + 1) if at_most(k) >= 0.025)
    high = next(k for k in range(1, rounds + 1) if at_most(k) >= 0.975)
    found = paired_ratio(list(np.random.default_rng(1).permutation(rounds) + 1.0), [1.0] * rounds)
    assert found == Ratio((rounds + 1) / 2, low, high)


def test_sides_take_turns_and_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "PROBE_S", 0.0)
    order: list[str] = []
    rates = {"a": iter([99.0, 2.0, 4.0, 9.0]), "b": iter([99.0, 1.0, 4.0, 3.0])}

    def side(name: str) -> CallSide:
        def play() -> Round:
            order.append(name)
            return {"rate": next(rates[name]), "errors": len(order), "MB at end": len(order)}

        return CallSide(name, play)

    measured = measure("title", "images/s", [side("a"), side("b")], ["b"], rounds=3)
    assert order == ["a", "b"] * 4
    a, b = measured.figures
    assert (a.median, a.low, a.high) == (4.0, 2.0, 9.0)
    assert a.ratios["b"].value == 2.0 and b.ratios == {}  # of 2, 1 and 3
    assert a.extras == {"errors": 3 + 5 + 7, "MB at end": 7}
    assert [figures["rate"] for figures in b.rounds] == [1.0, 4.0, 3.0]


def test_a_process_does_a_round_when_asked(side_module: str) -> None:
    with started([lambda: ProcessSide("theirs", side_module, [3])]) as (side,):
        assert side.versions == {"numpy": np.__version__}
        assert [side.play(), side.play()] == [{"rate": 10.0, "errors": 1}, {"rate": 20.0, "errors": 1}]
        with pytest.raises(BenchmarkError, match=r"^theirs: it ended early: that was the last one$"):
            side.play()


def test_a_side_that_does_not_start_gives_the_reason() -> None:
    with pytest.raises(BenchmarkError, match=r"^theirs: it ended early: .*No module named tools\.nothing"):
        ProcessSide("theirs", "tools.nothing", [])


def test_others_are_noticed() -> None:
    quiet = share_of_others(0.0)
    assert 0 <= quiet <= 1
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        assert share_of_others(0.3) > 0.2 / (torch.get_num_threads() + 8)
        busy.kill()


def a_figure(name: str, rate: float, ratios: dict[str, Ratio]) -> Figure:
    return Figure(name, rate, rate - 1, rate + 1, {"errors": 0.0}, ratios, [{"rate": rate, "errors": 0.0}] * 2)


MEASURED = Measured(
    "training", "images/s", 0.02, [a_figure("ours", 246.8, {"b": Ratio(2.0, 1.5, 2.25)}), a_figure("b", 12.34, {})]
)
ENVIRONMENT = {
    "hardware": "a CPU",
    "cores": 2,
    "threads": 2,
    "versions": {"torch": "2"},
    "commit": "abc",
    "day": "2026-01-02",
}


def test_table() -> None:
    assert report.table(MEASURED).splitlines() == [
        "| training | images/s | lowest | highest | ratio to b | errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| ours | 247 | 246 | 248 | 2.00 (1.50 to 2.25) | 0 |",
        "| b | 12.3 | 11.3 | 13.3 | 1 | 0 |",
        "",
        "Rounds: 2; others took 2% of the machine.",
    ]
    busy = Measured("training", "images/s", 0.5, MEASURED.figures)
    assert report.table(busy).endswith("**busy machine**: others took 50% of the machine.")
    ours, other = MEASURED.figures
    uneven = Measured("training", "images/s", 0.02, [replace(ours, extras={"peak GB": 1.5}), other])
    assert [line.split(" | ")[5:] for line in report.table(uneven).splitlines()[2:4]] == [["1.5", " |"], ["", "0 |"]]


def test_page_gets_the_tables_of_reports(tmp_path: Path) -> None:
    made = report.build_report("command", ENVIRONMENT, [MEASURED])
    assert report.read_sets(json.loads(json.dumps(made))) == [MEASURED]
    for name in ("train", "load"):
        (tmp_path / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{report.BEGIN}\nold\n{report.END}\nbelow\n", encoding="utf-8")
    for _ in range(2):  # the second time nothing changes
        report.write_page([tmp_path / "train.json", tmp_path / "load.json"], page)
        text = page.read_text(encoding="utf-8")
        assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
        assert text.index("## train") < text.index("## load")
        assert text.count(report.table(MEASURED)) == 2
        assert "2026-01-02, a CPU, 2 cores, 2 threads; torch 2; commit abc." in text
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(BenchmarkError, match="the marks around the tables are missing"):
        report.write_page([], page)


def test_the_page_has_the_marks() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_chosen_images_are_shared_among_the_classes(tmp_path: Path) -> None:
    for number in range(9):
        write_image(tmp_path / "all" / "abc"[number % 3] / f"{number}.png", 0, number)
    suites.link_images(tmp_path / "all", 5, tmp_path / "few")
    found = sorted(path.relative_to(tmp_path / "few").as_posix() for path in tmp_path.glob("few/*/*.png"))
    assert found == ["a/0.png", "a/3.png", "b/1.png", "b/4.png", "c/2.png"]
    with pytest.raises(BenchmarkError, match="no class folders in it"):
        suites.link_images(tmp_path / "few" / "a", 5, tmp_path / "none")


def test_help_comes_without_torch() -> None:
    code = (
        "import sys; from tools.benchmark.__main__ import main\n"
        "try: main(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("False\n") and "KIND" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["serve", "--weights", "x.onnx", "--peers", "nowhere"],
            "nowhere: no environment of the peers there; make it",
        ),
        (["infer", "--weights", "x.pth"], "name --artefacts DIR"),
        (["train", "--set", "num_epochz=3"], 'unknown key "num_epochz"'),
        (["page", "nowhere.json"], "No such file"),
    ],
)
def test_mistakes(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("python -m tools.benchmark: ") and sentence in captured.err


def test_no_kind_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.main([])
    assert "name a KIND, --make_peers DIR or --check_peers" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"data_cache": "ram", "augment_on": "device"}])
def test_our_training_side_reports_a_figure_per_epoch(
    make_flowers: Callable[..., Config], changes: dict[str, str]
) -> None:
    turns = Recorded(3)
    train(turns, make_flowers(num_epochs=1000, validation_interval=1000, **changes))
    assert turns.versions == ("torch",)
    assert len(turns.reported) == 3 and all(0 < figures["rate"] < 1e6 for figures in turns.reported)
    assert all(0.1 < figures["peak GB"] < 50 for figures in turns.reported)


def test_a_whole_training_is_compared_by_its_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with mask_nets(tmp_path, monkeypatch):
        write_scenes(tmp_path)
        config = process_config(write_config(tmp_path))
        turns = Recorded(2)
        fit(turns, config)
        assert main_of_train(["--config", str(tmp_path / "config.json"), "--set", "seed=1"]) == 0
        capsys.readouterr()
        assert benchmark.main(["masks", "--config", str(tmp_path / "config.json")]) == 2
    assert "TinyMasks: smp's side has the encoders of linknet18, linknet34, linknet50 alone" in capsys.readouterr().err
    last = json.loads((tmp_path / "weights/report.json").read_text("utf-8"))["curves"]["val"][-1]
    assert turns.reported[1]["rate"] == pytest.approx(100 * last["mean_iou"])  # the second round's seed is 1
    assert turns.reported[0]["rate"] != turns.reported[1]["rate"] and turns.reported[0]["minutes"] > 0


def test_both_loading_sides_read_the_same_images(make_flowers: Callable[..., Config]) -> None:
    config = make_flowers(data_aug=False)
    theirs = torch.cat([images for images, _ in make_loader(config, 0)])
    epoch = EpochOfImages(config)
    assert epoch.read() == len(theirs) == 12
    ours = torch.cat([epoch.preprocess.normalize(batch["image"]) for batch in epoch.loader])
    ours, theirs = (images[images.flatten(1).sum(1).argsort()] for images in (ours, theirs))  # orders differ
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_both_streaming_sides_read_the_same_images(tmp_path: Path, make_flowers: Callable[..., Config]) -> None:
    """Each image twice, with its label, in packs and in tar files over HTTP; webdataset itself is not asked."""
    for module in ("crc32c", "aiohttp"):
        pytest.importorskip(module)
    with served_shards(make_flowers(), tmp_path / "shards", copies=2, num=10) as (pack, urls):
        config = make_flowers(train_data_file=pack, streamed_shards=2, data_cache_dir=str(tmp_path / "cache"))
        turns = Recorded(2)
        stream(turns, config)
        found = [pair for url in urls for pair in files_in(urllib.request.urlopen(url).read())]
    assert len(turns.reported) == 2 and all(0 < figures["rate"] < 1e6 for figures in turns.reported)
    images = [content for name, content in found if name.endswith(".jpg")]
    labels = [int(content) for name, content in found if name.endswith(".cls")]
    ours = read_pack(str(tmp_path / "shards/train-*-tfrecord"), ClassLabel(3)).samples
    assert [content_of(sample.path) for sample in ours] == images and [sample.label for sample in ours] == labels
    assert len(images) == 24 and len(set(images)) == 12 and len(urls) == 3


def files_in(tar: bytes) -> list[tuple[str, bytes]]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None
            found.append((entry.name, file.read()))
    return found


def test_batches_are_counted_within_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def forward(images: np.ndarray) -> None:
        seen.append(images.shape)

    monkeypatch.setattr("time.perf_counter", lambda: float(len(seen)))  # a batch takes one second
    assert batch_round(forward, (4, 3, 8, 8), 3.5, seed=0) == {"rate": 4.0}  # images per second
    assert seen == [(4, 3, 8, 8)] * (2 + 4)  # warm-up, and as many as begin within 3.5 seconds


def test_both_probes_run() -> None:
    plays = probe_contenders("resnet18", 32, 8)
    assert list(plays) == ["features kept", PROBE_BASE]
    assert all(play()["rate"] > 0 for play in plays.values())
