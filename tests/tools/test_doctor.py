"""The doctor finds planted faults, reports them within 80 columns, and its cleaned lists train."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import train
from common.console import text_columns
from configs.loading import process_config
from configs.schema import Config
from data_loader.decoding import decode
from data_loader.list_reader import read_list, read_unlabelled
from data_loader.preprocess import Preprocess
from data_loader.samples import SampleList
from tests.helpers.doctor import CLASSES, Diagnosis, Planted, examined, found, kinds, soft_image
from tests.helpers.images import png_file
from tests.helpers.profiles import D65_XY, P3_XY, SRGB_CURVE, rgb_profile
from tests.helpers.tiff_files import tiff_file
from tools.doctor import __main__ as doctor
from tools.doctor import step_check
from tools.doctor.checks import NOTE, PROBLEM
from tools.doctor.near_duplicates import MAX_BITS, MIN_CORRELATION, near_duplicate_pairs
from tools.doctor.report import class_weights
from tools.doctor.scan import FEW, ODDITIES, SMALL_PX, difference_hash, scan
from tools.doctor.trial_run import measure
from tools.doctor.types import TrialData
from trainers.data.sample_lists import read_lists
from trainers.tasks.classification import balanced_class_weights

CHINESE = ("daisy", "方块", "tulip")
PREPROCESS = Preprocess(32, 32)
NEEDED = {
    "model_module_name": "m",
    "model_net_name": "n",
    "num_classes": 2,
    "train_data_root_dir": ".",
    "val_data_root_dir": ".",
}
NO_IMAGES = SampleList((), ("a", "b"), ".", ".")
NO_DATA = TrialData(NO_IMAGES, NO_IMAGES, set(), set())


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    data = Planted(tmp_path_factory.mktemp("planted"), class_names=CHINESE)
    data.add("train", "text.jpg", 0, b"not an image")
    jpeg = io.BytesIO()
    soft_image(900).save(jpeg, "JPEG")
    data.add("train", "cut.jpg", 1, jpeg.getvalue()[:-400])
    data.add("val", "empty.jpg", 1, b"")
    data.lines["train"].append("missing.png----2\n")
    # The same pixels in another file format; a digest of the bytes would not see it.
    data.add("train", "copy.bmp", 0, Image.open(data.images / "train_0_0.png"))
    data.add("train", "leak.png", 1, Image.open(data.images / "val_1_0.png"))
    data.add("train", "other_label.png", 2, Image.open(data.images / "train_1_1.png"))
    big = soft_image(901, 240, 192)
    data.add("train", "big.png", 2, big)
    data.add("val", "shrunk.jpg", 2, big.resize((120, 96)), quality=60)
    data.add("train", "cmyk.jpg", 0, soft_image(902).convert("CMYK"))
    deep = np.arange(48 * 60, dtype=np.uint16).reshape(48, 60) * 20
    data.add("train", "deep.png", 0, Image.fromarray(deep))
    frames = [soft_image(903 + number) for number in range(3)]
    data.add("train", "moving.gif", 1, frames[0], save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    data.add("train", "turned.jpg", 1, soft_image(907), exif=exif)
    data.add("train", "long.png", 2, soft_image(908, 300, 40))
    data.add("train", "tiny.png", 2, soft_image(909, 12, 10))
    data.add("train", "glass.png", 0, soft_image(910).convert("RGBA"))
    data.add("train", "one.png", 1, Image.new("RGB", (40, 40), (9, 8, 7)))
    png = io.BytesIO()
    soft_image(911).save(png, "PNG")
    data.add("train", "really_png.jpg", 0, png.getvalue())
    return data


@pytest.fixture(scope="module")
def diagnosis(planted: Planted) -> Diagnosis:
    return examined(planted.config(), "--fix", str(planted.folder / "fixed"))


@pytest.fixture(scope="module")
def trained(planted: Planted, diagnosis: Diagnosis) -> Path:
    """Train on the cleaned lists; return the folder of checkpoints and report."""
    assert train.main(["--config", str(planted.folder / "config.json"), *lists_of(diagnosis)]) == 0
    return planted.folder / "weights"


def lists_of(diagnosis: Diagnosis) -> list[str]:
    return [f"--set={key}={value}" for key, value in diagnosis[2]["fix"]["config"].items()]


def test_images_that_spoil_a_training_are_problems(diagnosis: Diagnosis) -> None:
    code, _, report = diagnosis
    assert code == report["exit_code"] == 1
    assert kinds(report, PROBLEM) == {"unreadable", "contradictory labels", "leakage"}
    unreadable = {
        Path(image["path"]).name: (image["where"].rpartition("/")[2], image["reason"])
        for finding in report["findings"]
        if finding["kind"] == "unreadable"
        for group in finding["groups"]
        for image in group
    }
    assert set(unreadable) == {"text.jpg", "cut.jpg", "empty.jpg", "missing.png"}
    assert unreadable["missing.png"] == ("train.txt:24", "no such file")
    assert unreadable["empty.jpg"] == ("val.txt:7", "it is empty (0 bytes)")
    assert found(report, "contradictory labels")[1] == [["train_1_1.png", "other_label.png"]]
    assert found(report, "leakage")[1] == [["leak.png", "val_1_0.png"]]


def test_duplicates_and_near_duplicates_are_distinguished(diagnosis: Diagnosis) -> None:
    _, _, report = diagnosis
    assert found(report, "duplicates in training") == ("warning", [["train_0_0.png", "copy.bmp"]])
    assert found(report, "look-alikes across the lists") == ("warning", [["big.png", "shrunk.jpg"]])
    assert not [finding for finding in report["findings"] if finding["kind"] == "look-alikes in training"]


@pytest.mark.parametrize(
    ("oddity", "names"),
    [
        ("CMYK", {"cmyk.jpg"}),
        ("16 bits or floating point", {"deep.png"}),
        ("several frames", {"moving.gif"}),
        ("turned by EXIF", {"turned.jpg"}),
        ("very long", {"long.png"}),
        ("much smaller than the input", {"tiny.png"}),
        ("transparent", {"glass.png"}),
        ("one colour", {"one.png"}),
        ("another format than its ending", {"really_png.jpg"}),
    ],
)
def test_unusual_images_are_reported(diagnosis: Diagnosis, oddity: str, names: set[str]) -> None:
    level, groups = found(diagnosis[2], oddity)
    assert level == "note" and {name for group in groups for name in group} == names
    assert oddity in ODDITIES


def test_nearly_black_and_no_mask(tmp_path: Path) -> None:
    """12-bit values in 16 bits, grey and colour, and a TIFF whose fourth band is called alpha but holds any value."""
    planted = Planted(tmp_path)
    generator = np.random.default_rng(0)
    dark = generator.integers(0, 4096, (40, 40, 3)).astype(np.uint16)
    bright = generator.integers(0, 65536, (40, 40, 3)).astype(np.uint16)
    bands = Image.fromarray(generator.integers(0, 256, (40, 40, 4)).astype(np.uint8))
    planted.add("train", "dark.png", 0, png_file(dark))
    planted.add("train", "dark.tif", 0, tiff_file(dark[::-1], 2))
    planted.add("train", "said.tif", 0, tiff_file(dark[:, ::-1], 2, further={281: (3, [4095] * 3)}))
    planted.add("train", "bright.png", 0, png_file(bright))
    planted.add("train", "infrared.tif", 0, bands)
    _, _, report = examined(planted.config())
    assert found(report, "nearly black") == ("note", [["dark.png"], ["dark.tif"]])
    assert found(report, "alpha that is no mask") == ("note", [["infrared.tif"]])
    wide = {name for group in found(report, "16 bits or floating point")[1] for name in group}
    assert wide == {"dark.png", "dark.tif", "said.tif", "bright.png"}


@pytest.mark.parametrize(("with_profile", "follows"), [((7, 7, 7), False), ((6, 1, 0), True), ((3, 3, 1), False)])
@pytest.mark.parametrize("icc_profiles", ["convert", "ignore"])
def test_colour_profiles_that_follow_the_classes(
    tmp_path: Path, with_profile: tuple[int, ...], follows: bool, icc_profiles: str
) -> None:
    planted = Planted(tmp_path, clean=0)
    p3 = rgb_profile(P3_XY, D65_XY, SRGB_CURVE)
    for label, count in enumerate(with_profile):
        for number in range(7):
            options = {"icc_profile": p3} if number < count else {}
            planted.add("train", f"{label}_{number}.png", label, **options)
    _, _, report = examined(planted.config(icc_profiles=icc_profiles))
    assert len(found(report, "another colour space than sRGB")[1]) == sum(with_profile)
    warnings = [entry for entry in report["findings"] if entry["kind"] == "colour spaces follow the classes"]
    assert [entry["level"] for entry in warnings] == ["warning"] * follows
    if follows:
        text = "86% of daisy and 0% of tulip have another colour space than sRGB: "
        ignored = 'the net may learn that; set icc_profiles to "convert"'
        hint = "they come from different sources" if icc_profiles == "convert" else ignored
        assert warnings[0]["text"] == text + hint


def test_the_terminal_is_not_wider_than_80_columns(diagnosis: Diagnosis) -> None:
    _, printed, _ = diagnosis
    lines = printed.splitlines()
    assert max(text_columns(line) for line in lines if not line.startswith(("with images", "everything", '  "'))) < 80
    assert "方块" in printed and '  "class_weights": [' in printed
    assert lines[0].endswith("config.json: 4 problems, 2 warnings, 10 notes")  # nine oddities, one shape


def test_the_page_shows_every_image_that_it_can(planted: Planted, diagnosis: Diagnosis) -> None:
    page = (planted.folder / "out/doctor.html").read_text(encoding="utf-8")
    report = diagnosis[2]
    images = [p for finding in report["findings"] for group in finding["groups"] for p in group]
    unreadable = [p for p in images if p["reason"]]
    assert page.count("<figure>") == len(images)
    assert page.count("<img src=") == len(images) - len(unreadable) and page.count("no image") == len(unreadable)


def test_cleaned_lists_hold_what_is_good_and_train(planted: Planted, diagnosis: Diagnosis) -> None:
    fixed = planted.folder / "fixed"
    names = [line.partition("----")[0] for line in (fixed / "train.txt").read_text(encoding="utf-8").splitlines()]
    listed = [line.partition("----")[0] for line in planted.lines["train"]]
    gone = {"text.jpg", "cut.jpg", "missing.png", "copy.bmp", "leak.png", "train_1_1.png", "other_label.png"}
    assert names == [name for name in listed if name not in gone]
    assert (fixed / "val.txt").read_text(encoding="utf-8") == "".join(
        line for line in planted.lines["val"] if not line.startswith("empty.jpg")
    )
    assert (fixed / "classes.txt").read_text(encoding="utf-8").split() == list(CHINESE)
    assert diagnosis[2]["fix"]["dropped"] == {
        "cannot be read": 4,
        "a copy of one that stays": 1,
        "contradictory labels": 2,
        "also in validation": 1,
    }
    code, _, again = examined(planted.folder / "config.json", *lists_of(diagnosis))
    assert code == 0 and not kinds(again, PROBLEM)


def test_training_takes_the_cleaned_lists(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text(encoding="utf-8"))
    assert (report["num_train"], report["num_val"]) == (37 - 7, 7)  # without what the test above names


def test_near_duplicates_of_validation_are_dropped_on_request(planted: Planted) -> None:
    target = planted.folder / "fixed_more"
    _, _, report = examined(planted.config(), "--fix", str(target), "--drop_look_alikes")
    assert report["fix"]["dropped"]["looks like a validation image"] == 1
    assert "big.png" not in (target / "train.txt").read_text(encoding="utf-8")


def test_lists_that_are_there_are_not_written_over(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    before = (planted.folder / "train.txt").read_bytes()
    assert doctor.main(["--config", str(planted.config()), "--fix", str(planted.folder)]) == 2
    sentence = (
        f"tools.doctor: {planted.folder} already has train.txt, val.txt, classes.txt; choose another folder for --fix\n"
    )
    assert capsys.readouterr().err == sentence
    assert (planted.folder / "train.txt").read_bytes() == before


def test_bad_images_that_may_be_skipped_are_no_problem(tmp_path: Path) -> None:
    data = Planted(tmp_path)
    data.add("train", "text.jpg", 0, b"not an image")
    code, _, report = examined(data.config(bad_images="skip", max_bad_share=0.1))
    assert (code, found(report, "unreadable")) == (0, ("warning", [["text.jpg"]]))
    code, _, report = examined(data.config(bad_images="skip", max_bad_share=0.01))
    assert code == 1
    assert report["findings"][0]["text"] == ("1 of 22 training images cannot be read; max_bad_share allows 1.00%")


def test_classes_are_counted_and_weighed(tmp_path: Path) -> None:
    data = Planted(tmp_path, clean=0)
    for label, count in ((0, 20), (1, 2)):
        for number in range(count):
            data.add("train", f"{label}_{number}.png", label)
    data.lines["val"] = data.lines["val"][:4]
    code, _, report = examined(data.config())
    assert code == 1
    texts = {finding["kind"]: finding["text"] for finding in report["findings"]}
    assert texts["missing classes"] == "no training image of tulip: it cannot be learnt"
    assert texts["classes without validation"] == "no validation image of tulip: unmeasured"
    assert texts["imbalance"].startswith("the largest class has 10 times the images of the smallest")
    assert [row["training"] for row in report["classes"]] == [20, 2, 0]
    assert report["paste"]["class_weights"] == [0.55, 5.5, 0.0]  # 22 / (2 * 20), 22 / (2 * 2)
    assert "imbalance" not in {f["kind"] for f in examined(data.config(class_weights="balanced"))[2]["findings"]}


def test_weights_are_those_of_a_balanced_training() -> None:
    counts = [3, 0, 41, 7]
    assert class_weights(counts) == [round(weight, 4) for weight in balanced_class_weights(counts)]


def test_mean_and_std_are_of_the_nets_input(tmp_path: Path) -> None:
    data = Planted(tmp_path, clean=2)
    data.add("train", "bright.png", 0, Image.new("RGB", (50, 20), (250, 10, 128)))
    _, _, report = examined(data.config(img_height=20, img_width=40, resize="letterbox"))
    names = [line.partition("----")[0] for line in data.lines["train"]]
    preprocess = Preprocess(20, 40, resize="letterbox")
    pixels = np.stack([preprocess.fit(decode(data.images / name)) for name in names]) / 255
    assert report["paste"]["mean"] == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert report["paste"]["std"] == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


def test_class_folders_are_examined_and_fixed(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            for number in range(3):
                path = tmp_path / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                soft_image(1000 * (split == "val") + 10 * label + number).save(path)
    soft_image(0).save(tmp_path / "val" / CLASSES[2] / "leak.png")
    folders = {"train_data_root_dir": str(tmp_path / "train"), "val_data_root_dir": str(tmp_path / "val")}
    config = Planted(tmp_path / "lists").config(**folders, train_data_file="", val_data_file="")
    code, _, report = examined(config, "--fix", str(tmp_path / "fixed"))
    assert code == 1
    assert found(report, "leakage")[1] == found(report, "contradictory labels")[1] == [["0.png", "leak.png"]]
    samples = read_list(tmp_path / "fixed/train.txt", tmp_path / "train", "----", 3)
    expected = [(f"{name}/{n}.png", label) for label, name in enumerate(CLASSES) for n in range(3)][1:]
    assert [(Path(s.path).relative_to(tmp_path / "train").as_posix(), s.label) for s in samples.samples] == expected


def test_images_without_labels_may_be_in_both_lists(tmp_path: Path) -> None:
    data = Planted(tmp_path)
    (tmp_path / "unlabelled.txt").write_text("train_0_0.png\ntrain_1_1.png\nval_2_0.png\nval_2_1.png\n")
    net = {"model_module_name": "simsiam_module", "model_net_name": "SimSiam", "model_type": ""}
    config = data.config(**net, model_args={"model_type": "resnet18"}, train_data_file=str(tmp_path / "unlabelled.txt"))
    (tmp_path / "images/train_1_1.png").write_bytes(b"")
    code, _, report = examined(config, "--fix", str(tmp_path / "fixed"))
    assert code == 1 and kinds(report, PROBLEM) == {"unreadable"}
    assert found(report, "leakage") == ("note", [["val_2_0.png", "val_2_0.png"], ["val_2_1.png", "val_2_1.png"]])
    assert (report["unlabelled"], "class_weights" in report["paste"]) == (4, False)
    assert (tmp_path / "fixed/train.txt").read_text() == "train_0_0.png\nval_2_0.png\nval_2_1.png\n"
    cleaned = read_unlabelled(tmp_path / "fixed/train.txt", data.images, "----", CLASSES)
    assert [sample.label for sample in cleaned.samples] == [-1, -1, -1]


def test_step_reports_time_memory_and_the_size_of_checkpoints(tmp_path: Path, trained: Path) -> None:
    data = Planted(tmp_path)
    data.add("train", "text.jpg", 0, b"not an image")
    config = data.config(bad_images="skip", max_bad_share=1.0)
    assert doctor.main(["--config", str(config), "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out/doctor.json").read_text(encoding="utf-8"))
    step = report["step"]
    assert (step["batch_size"], step["steps_an_epoch"], step["steps_measured"]) == (8, 3, 2)  # 21 images, one is bad
    assert step["seconds_an_epoch"] == pytest.approx(3 * step["seconds_a_step"])
    assert abs(step["losses"][0] - np.log(3)) < 1  # of an untrained net
    assert step["memory_peak"] > 50e6

    for name, key in (("net.pth", "checkpoint_best"), ("net_last.pth", "checkpoint_last")):  # of the same net
        assert step[key] == pytest.approx((trained / name).stat().st_size, rel=0.02)


def test_step_that_fails_is_a_problem(tmp_path: Path) -> None:
    file = Planted(tmp_path).config(train_mode="finetune", pretrained_file=str(tmp_path / "config.json"))
    config = process_config(file)
    step = measure(config, TrialData(*read_lists(config), set(), set()))
    (finding,) = step_check.judge_step(step)
    assert finding.level == PROBLEM
    assert finding.text.startswith(f"a training step fails: {tmp_path / 'config.json'}: ")


@pytest.mark.parametrize(
    ("measured", "findings"),
    [
        ({"losses": [float("nan"), 1.0]}, [("problem", "the loss is nan in the first step")]),
        (
            {"losses": [1.0, 9e9, float("inf"), float("nan")]},
            [("problem", "the loss is inf after 2 steps: a smaller learning_rate may help")],
        ),
        ({"losses": [1.0]}, [("warning", "a step takes 9.5 GB of memory, and 10.0 GB were free")]),
        ({"losses": [1.0], "memory_peak": 8_000_000_000, "notes": ["a note"]}, [("note", "a note")]),
    ],
)
def test_steps_are_judged(measured: dict[str, Any], findings: list[tuple[str, str]]) -> None:
    step = {"memory_free": 10_000_000_000, "memory_peak": 9_500_000_000, **measured}
    assert [(finding.level, finding.text) for finding in step_check.judge_step(step)] == findings


def test_batch_that_fits_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is simulated to hold 5 images."""

    def in_process(config: Config, data: TrialData) -> dict[str, Any]:
        too_big = config.batch_size > 5
        return {"error": "the memory is too small", "out_of_memory": True} if too_big else {"losses": [1.0]}

    monkeypatch.setattr(step_check, "measure_in_process", in_process)
    step = step_check.try_steps(Config.model_validate({**NEEDED, "batch_size": 32}), NO_DATA)
    (finding,) = step_check.judge_step(step)
    assert finding.level == PROBLEM
    assert finding.text == "the memory is too small; batch_size 4 fits, accumulation_steps compensates for it"


@pytest.mark.parametrize(
    ("compiled", "text"),
    [
        (
            {"seconds_a_whole_step": 0.3, "seconds_of_the_others": 31.0},
            'compiled, a step takes 0.3 s instead of 0.4, and compiling 30 s: "compile": true pays back after 3 epochs',
        ),
        (
            {"seconds_a_whole_step": 0.39, "seconds_of_the_others": 101.0},
            "compiled, a step takes 0.39 s instead of 0.4, and compiling 100 s: it does not pay back in 90 epochs",
        ),
        (
            {"seconds_a_whole_step": 0.5, "seconds_of_the_others": 31.0},
            "compiled, a step takes 0.5 s instead of 0.4, and compiling 30 s: it does not pay back in 90 epochs",
        ),
        (
            {"seconds_a_whole_step": 0.3, "seconds_of_the_others": 31.0, "whole_steps_measured": 2},
            'compiled, a step takes 0.3 s instead of 0.4, and compiling 30 s: "compile": true pays back after 3 epochs'
            ", measured on 2 steps only",
        ),
        ({"error": "no compiler"}, "the compiled net cannot be trained: no compiler"),
    ],
)
def test_compiling_is_judged_by_the_times_of_both_ways(compiled: dict[str, Any], text: str) -> None:
    plain = {"seconds_a_whole_step": 0.4, "seconds_of_the_others": 1.0, "whole_steps_measured": 25}
    step: dict[str, Any] = {**plain, "steps_an_epoch": 100}
    step["compiled"] = {"whole_steps_measured": 25, **compiled}
    (finding,) = step_check.judge_compiling(Config.model_validate(NEEDED), step)
    assert (finding.level, finding.text) == (NOTE, text)


def test_flags_without_effect_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Planted(tmp_path).config()
    assert doctor.main(["--config", str(config), "--skip_step", "--try_compile"]) == 2
    assert "--try_compile trains steps, --skip_step trains none" in capsys.readouterr().err
    assert doctor.main(["--config", str(config), "--drop_look_alikes"]) == 2
    assert "--drop_look_alikes changes the lists that --fix writes" in capsys.readouterr().err


def test_what_training_would_not_compile_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def in_process(config: Config, data: TrialData) -> dict[str, Any]:
        tried.append(config.compile)
        return {"losses": [1.0]}

    monkeypatch.setattr(step_check, "measure_in_process", in_process)
    for module, name, expected in (("resnet_module", "resnet18", [False, True]), ("pim_module", "PIM", [False])):
        net = {"model_module_name": module, "model_net_name": name, "model_type": "", "compile": True}
        config = Config.model_validate({**NEEDED, **net})
        step = step_check.try_steps(config, NO_DATA, compiles_too=True)
        assert tried == expected
        tried.clear()
    assert step["compiled"] == {"error": "compile is for nets that are trained by their logits alone, not for PIM"}


def test_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate({**NEEDED, "save_path": str(tmp_path / "not" / "yet")})
    asked = []

    def usage(folder: Path) -> Any:
        asked.append(folder)
        return type("Usage", (), {"free": 250_000_000})

    monkeypatch.setattr("shutil.disk_usage", usage)
    disk, findings = step_check.judge_disk(config, {"checkpoint_best": 60_000_000, "checkpoint_last": 100_000_000})
    assert asked == [tmp_path] and disk["needed"] == 360_000_000  # two last ones are kept, a third is written
    assert [f.text for f in findings] == [f"{tmp_path}/not/yet has 250.0 MB free, the checkpoints need 360.0 MB"]
    assert findings[0].level == PROBLEM


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        (lambda image: image.resize((80, 60)), True),
        (lambda image: compressed(image, 40), True),
        (lambda image: image.point(lambda value: value * 0.9 + 10), True),
        (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), False),
        (lambda image: soft_image(4711, 160, 120), False),
    ],
)
def test_near_duplicates_are_resized_compressed_or_brighter(
    change: Callable[[Image.Image], Image.Image], is_found: bool
) -> None:
    images = [soft_image(7, 160, 120), change(soft_image(7, 160, 120)), soft_image(8, 160, 120)]
    hashes = np.array([difference_hash(each) for each in images], np.uint64)
    small = np.stack([np.asarray(p.resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX)) for p in images])
    pairs = near_duplicate_pairs(hashes, small, np.arange(3))
    assert pairs.tolist() == ([[0, 1]] if is_found else [])


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def test_pairs_are_those_that_comparing_all_with_all_finds() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 2**63, 300, dtype=np.uint64)
    small = generator.integers(0, 256, (300, SMALL_PX, SMALL_PX, 3), dtype=np.uint8)
    for row in range(0, 300, 3):  # a relative with 0 to 7 other bits; of each second much noise: 37 of 50 are left
        bits = generator.choice(64, row % 8, replace=False).astype(np.uint64)
        hashes[row + 1] = hashes[row] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
        noise = generator.normal(0, (4, 40)[row % 2], small[row].shape)
        small[row + 1] = np.clip(small[row] + noise, 0, 255).astype(np.uint8)
    flat = small.reshape(300, -1).astype(np.float64)
    correlation = np.corrcoef(flat)
    expected = {
        (i, j)
        for i in range(300)
        for j in range(i + 1, 300)
        if bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= MAX_BITS and correlation[i, j] >= MIN_CORRELATION
    }
    pairs = [tuple(sorted(pair)) for pair in near_duplicate_pairs(hashes, small, np.arange(300)).tolist()]
    assert len(expected) == 37 and len(pairs) == len(set(pairs)) and set(pairs) == expected


def test_many_images_of_one_hash_are_not_compared_each_with_each() -> None:
    count = 4000
    small = np.zeros((count, SMALL_PX, SMALL_PX, 3), np.uint8)
    small[:, ::2] = 200
    pairs = near_duplicate_pairs(np.full(count, 77, np.uint64), small, np.arange(count))
    assert count - 1 <= len(pairs) <= 16 * count  # chained into one group; comparing all would be 8 million


def test_several_processes_see_what_one_sees(tmp_path: Path) -> None:
    paths = []
    for number in range(FEW + 40):
        paths.append(str(tmp_path / f"{number}.png"))
        soft_image(number % 50, 12, 10).save(paths[-1])
    Path(paths[100]).write_bytes(b"")
    alone, together = (scan(paths, 200, PREPROCESS, workers) for workers in (0, 2))
    for name in ("sizes", "odd", "digests", "hashes", "small"):
        assert np.array_equal(getattr(alone, name), getattr(together, name)), name
    assert np.allclose(alone.sums, together.sums, rtol=1e-12) and alone.errors == together.errors
    assert list(alone.errors) == [100] and alone.num_pixels == 199 * 32 * 32


def test_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Planted(tmp_path, clean=1)
    config = data.config()
    assert doctor.main(["--config", str(tmp_path / "no.json")]) == 2
    assert "no.json: cannot read the config: No such file or directory" in capsys.readouterr().err
    assert doctor.main(["--config", str(config), "--set", "num_classes=4"]) == 2
    err = capsys.readouterr().err
    assert err == f"tools.doctor: {tmp_path}/classes.txt: 3 class names, but num_classes is 4\n"
    assert doctor.main(["--config", str(config), "--workers", "-1"]) == 2
    assert capsys.readouterr().err == "tools.doctor: --workers must be at least 0, got -1\n"
    (tmp_path / "file").write_text("")
    assert doctor.main(["--config", str(config), "--fix", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"tools.doctor: {tmp_path}/file: it is a file; --fix needs a folder\n"


def test_help_and_mistakes_come_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, tools.doctor.__main__ as d\n"
        "c = d.main(['--config', sys.argv[1]])\n"
        "assert c == 2 and 'torch' not in sys.modules and 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "no.json")], check=True, stderr=subprocess.DEVNULL)
