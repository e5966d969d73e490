"""The images that an export is verified on: which are taken, from which folder, in how much memory; mistakes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.checkpoint import load_checkpoint, save_checkpoint
from artifacts.sample_sources import SamplesError
from data_loader.preprocess import Preprocess, as_array
from data_loader.samples import ListError
from deploy.export import sample_images
from deploy.export.__main__ import main as export_main
from deploy.export.preparation import share_for_int8
from deploy.export.sample_images import NetInputs, find_calibration, find_images, net_input
from tests.conftest import CLASSES
from tests.helpers.exported import metadata_and_config, mistake, names_in, paint, train_net


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_net(tmp_path_factory.mktemp("trained"))


def test_the_images_are_those_of_the_validation_list_evenly_spread(trained: Path) -> None:
    metadata, config = metadata_and_config(trained)
    images = find_images(None, config, metadata, 14)
    assert (images.source, images.listed, len(images)) == (config.val_data_file, 40, 14)
    numbers = [int(Path(file).stem) for file in images.files]
    assert numbers == [3 * i for i in range(14)]
    assert images.labels is not None and images.labels.tolist() == [number % 3 for number in numbers]
    expected = metadata.preprocess(as_array(metadata.preprocess.decode(images.files[5])))
    assert net_input(images.pixels, metadata.preprocess, "float32 NCHW")[5].tobytes() == expected.tobytes()
    assert len(find_images(None, config, metadata, 0)) == 40


def test_a_list_starts_from_the_configs_root_or_from_its_own_folder(trained: Path, tmp_path: Path) -> None:
    metadata, config = metadata_and_config(trained)
    (tmp_path / "some.txt").write_text("val/03.png----0\nval/04.png----1\n")
    assert find_images(tmp_path / "some.txt", config, metadata, 9).files[0] == f"{config.val_data_root_dir}/val/03.png"
    shutil.copytree(trained.parent / "images/val", tmp_path / "val")
    moved = config.model_copy(update={"val_data_root_dir": "gone", "train_data_root_dir": "gone"})
    for known in (moved, None):
        assert find_images(tmp_path / "some.txt", known, metadata, 9).files[1] == f"{tmp_path}/val/04.png"


def test_a_folder_is_labelled_where_its_folders_are_the_classes(trained: Path, tmp_path: Path) -> None:
    metadata, config = metadata_and_config(trained)
    for label in (1, 0):
        paint(tmp_path / "data" / CLASSES[label] / "x.png", label, 0)
    labels = find_images(tmp_path / "data", config, metadata, 9).labels
    assert labels is not None and labels.tolist() == [0, 1]
    paint(tmp_path / "data/x.png", 0, 0)
    unlabelled = find_images(tmp_path / "data", config, metadata, 9)
    assert unlabelled.labels is None
    assert len(unlabelled) == 3


def test_bad_images_are_skipped_and_counted(trained: Path, tmp_path: Path) -> None:
    metadata, config = metadata_and_config(trained)
    paint(tmp_path / "1.png", 0, 0)
    (tmp_path / "2.png").write_bytes(b"no image")
    images = find_images(tmp_path, config, metadata, 9)
    assert (len(images), images.listed) == (1, 2)
    assert len(images.skipped) == 1 and images.skipped[0].startswith(f"{tmp_path}/2.png: it is not an image")


def test_mistakes_with_the_images(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--weights", trained, "--output_dir", tmp_path / "out", "--formats", "jit", "--device", "cpu", "--samples")
    assert mistake(capsys, *asked, tmp_path / "gone").startswith(f"{tmp_path}/gone: no such list or folder")
    (tmp_path / "empty").mkdir()
    assert mistake(capsys, *asked, tmp_path / "empty").startswith(f"{tmp_path}/empty: no images in it or below it")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"")
    sentence = f"{tmp_path}/bad: none of its images can be read; the first: {tmp_path}/bad/x.png: it is empty (0 bytes)"
    assert mistake(capsys, *asked, tmp_path / "bad") == sentence
    paint(tmp_path / "one.png", 0, 0)
    assert "it is one image; name a list or a folder" in mistake(capsys, *asked, tmp_path / "one.png")
    (tmp_path / "list.txt").write_text("a.png 3\n")
    assert f'{tmp_path}/list.txt:1: separator "----" is missing' in mistake(capsys, *asked, tmp_path / "list.txt")
    assert not (tmp_path / "out").exists()  # a folder that stayed empty is removed


def test_without_validation_images_samples_are_required(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(trained)
    checkpoint.config["val_data_file"] = "gone/val.txt"
    save_checkpoint(checkpoint, tmp_path / "net.pth")
    sentence = mistake(capsys, "--weights", tmp_path / "net.pth", "--formats", "jit")
    assert sentence == (
        "the net's validation images are not on this machine (its config names gone/val.txt); an export is verified "
        "on real images: name a list or a folder with --samples (inference.py: a folder with --image_dir)"
    )
    checkpoint.config = {}
    save_checkpoint(checkpoint, tmp_path / "net.pth")
    assert "name a list or a folder with --samples" in mistake(
        capsys, "--weights", tmp_path / "net.pth", "--formats", "jit"
    )
    assert names_in(tmp_path) == ["net.pth"]


# --- from where a list's paths start


def write_some(folder: Path, names: list[str]) -> Path:
    file = folder / "some.txt"
    file.write_text("".join(f"{name}----0\n" for name in names), encoding="utf-8")
    return file


def test_the_root_is_where_most_of_a_lists_images_are(trained: Path, tmp_path: Path) -> None:
    """The first image lies under the config's root and beside the list, the others beside the list alone."""
    metadata, config = metadata_and_config(trained)
    names = ["val/03.png", "more/1.png", "more/2.png"]
    for name in names:
        paint(tmp_path / name, 0, 0)
    listed = write_some(tmp_path, names)
    assert find_images(listed, config, metadata).files == tuple(f"{tmp_path}/{name}" for name in names)


def test_a_root_that_the_paths_leave_is_passed_over(trained: Path, tmp_path: Path) -> None:
    metadata, config = metadata_and_config(trained)
    paint(tmp_path / "p/1.png", 0, 0)
    listed = write_some(tmp_path, [f"{tmp_path}/p/1.png"])
    assert find_images(listed, config, metadata).files == (f"{tmp_path}/p/1.png",)
    elsewhere = tmp_path / "lists"
    elsewhere.mkdir()
    with pytest.raises(ListError, match=r"some.txt:1: path .* leaves the root folder .*/lists;"):  # the first root's
        find_images(write_some(elsewhere, [f"{tmp_path}/p/1.png"]), config, metadata)


def test_the_root_can_be_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata, config = metadata_and_config(trained)
    paint(tmp_path / "a/val/03.png", 0, 0)
    listed = write_some(tmp_path, ["val/03.png"])
    for known in (config, None):
        files = find_images(listed, known, metadata, root=tmp_path / "a").files
        assert files == (f"{tmp_path}/a/val/03.png",)
    asked = ("--weights", trained, "--formats", "jit", "--output_dir", tmp_path / "out", "--samples_root")
    alone = "--samples_root is what the paths of a list start from; name the list with --samples"
    assert mistake(capsys, *asked, tmp_path / "a") == alone
    assert mistake(capsys, *asked, tmp_path / "a", "--samples", tmp_path / "a") == alone
    assert mistake(capsys, *asked, tmp_path / "b", "--samples", listed).startswith(f"{tmp_path}/b: no such folder for")
    flags = ("--samples", listed, "--device", "cpu")
    assert export_main([str(part) for part in (*asked, tmp_path / "a", *flags)]) == 0
    report = json.loads((tmp_path / "out/export_report.json").read_text("utf-8"))
    assert report["samples"]["used"] == 1


def test_without_a_config_the_expected_separator_is_named(trained: Path, tmp_path: Path) -> None:
    metadata, config = metadata_and_config(trained)
    listed = tmp_path / "some.txt"
    listed.write_text("val/03.png,0\n")
    with pytest.raises(ListError) as caught:
        find_images(listed, None, metadata)
    assert str(caught.value) == (
        f'{listed}:1: separator "----" is missing in "val/03.png,0"; write path----label, or set file_label_separator '
        "to what stands between them, in a config named with --config"
    )
    comma = config.model_copy(update={"file_label_separator": ","})
    assert find_images(listed, comma, metadata).labels is not None


def test_another_versions_config_is_reported(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load_checkpoint(trained)
    checkpoint.config["a_key_of_another_version"] = 1
    save_checkpoint(checkpoint, tmp_path / "net.pth")
    assert export_main(["--weights", str(tmp_path / "net.pth"), "--formats", "jit"]) == 2
    warning, sentence = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"python -m deploy.export: warning: {tmp_path}/net.pth: the config in it is not of this")
    assert "a_key_of_another_version" in warning and "name their config with --config" in warning
    assert "name a list or a folder with --samples" in sentence


# --- what may not be read


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise PermissionError(13, "Permission denied", "/secret")


@pytest.mark.parametrize("method", ["os.scandir", "pathlib.Path.is_dir"])
def test_a_folder_that_may_not_be_read(
    method: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata, config = metadata_and_config(trained)
    monkeypatch.setattr(method, refuse)
    with pytest.raises(SamplesError, match=r"^/secret: cannot read it: Permission denied$"):
        find_images(tmp_path, config, metadata)


def test_training_images_that_cannot_be_read_are_reported_and_replaced(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata, config = metadata_and_config(trained)
    (tmp_path / "train.txt").write_text("no separator\n")
    changed = config.model_copy(update={"train_data_file": str(tmp_path / "train.txt")})
    with pytest.raises(ListError):
        find_calibration(changed, metadata, 30)
    from deploy.backends.loading import load_torch
    from deploy.export.reference import Reference

    reference = Reference.of(load_torch(trained, "cpu", None)[0], find_images(None, config, metadata), metadata)
    chosen, kept = share_for_int8(reference, changed, metadata)
    assert (len(chosen), len(kept.images)) == (20, 20)
    error = capsys.readouterr().err
    assert f"warning: int8 cannot be calibrated on the training images: {tmp_path}/train.txt:1: separator" in error


# --- memory


def test_no_more_images_are_held_than_memory_is_meant_for(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata, config = metadata_and_config(trained)
    image = 32 * 32 * 3
    monkeypatch.setattr(sample_images, "MOST_BYTES", 7 * image + image // 2)
    assert len(find_images(None, config, metadata)) == 7
    assert len(find_images(None, config, metadata, 12)) == 12  # requested
    assert len(find_images(None, config, metadata, 0)) == 40
    calibration = find_calibration(config, metadata, 300)
    assert calibration is not None and len(calibration) == 7
    monkeypatch.setattr(sample_images, "MOST_BYTES", 1)
    assert len(find_images(None, config, metadata)) == 1


def test_too_little_memory_is_one_sentence_with_the_amount(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata, config = metadata_and_config(trained)
    large = replace(metadata, preprocess=Preprocess(8000, 5000))  # 120 MB an image
    message = r"^there is too little memory for 9 images of 8000x5000 \(1.1 GB\); hold fewer with --max_samples$"

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    for place, name in ((np, "empty"), (Preprocess, "fit")):
        with monkeypatch.context() as patch, pytest.raises(SamplesError, match=message):
            if name == "fit":
                patch.setattr(np, "empty", lambda *args: [None] * 9)
            patch.setattr(place, name, fail)
            find_images(None, config, large, 9)


def test_torchs_own_message_for_too_little_memory_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"

    def fail(self: Preprocess, batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(text)

    pixels = np.zeros((2, 1000, 1000, 3), np.uint8)
    monkeypatch.setattr(Preprocess, "normalize", fail)
    with pytest.raises(SamplesError, match=r"for 2 images of 1000x1000 \(0.0 GB\); hold fewer with --max_samples"):
        net_input(pixels, Preprocess(1000, 1000), "float32 NCHW")
    text = "another error"
    with pytest.raises(RuntimeError, match="another error"):
        net_input(pixels, Preprocess(1000, 1000), "float32 NCHW")


def test_a_nets_inputs_are_made_by_the_slice() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)
    inputs = NetInputs(pixels, Preprocess(4, 4), "float32 NCHW")
    assert len(inputs) == 7
    all_inputs = net_input(pixels, Preprocess(4, 4), "float32 NCHW")
    np.testing.assert_array_equal(np.concatenate([inputs[0:3], inputs[3:7]]), all_inputs)


def test_every_second_shares_memory_and_is_contiguous_as_input() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    all_of_them = sample_images.SampleImages(pixels, np.arange(6), tuple("abcdef"), "fake", 6)
    half = all_of_them.every_second(1)
    assert np.shares_memory(half.pixels, pixels)
    assert (half.files, half.labels.tolist(), half.source) == (("b", "d", "f"), [1, 3, 5], "fake (every second)")
    made = net_input(half.pixels, Preprocess(4, 4), "uint8 NHWC RGB")
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, pixels[1::2])


def test_grey_images_do_not_verify_the_order_of_the_channels(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        (tmp_path / "p").mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (24, 24), np.uint8)
        Image.fromarray(values).save(tmp_path / f"p/{number}.png")
    asked = ["--weights", str(trained), "--formats", "jit", "--output_dir", str(tmp_path), "--device", "cpu"]
    warning = "warning: every image is grey, so that the order of the channels is not verified"
    for flags, is_warned in ((["--with_preprocess", "bgr"], True), ([], False)):
        assert export_main([*asked, *flags, "--samples", str(tmp_path / "p")]) == 0
        assert (warning in " ".join(capsys.readouterr().out.split())) is is_warned
    paint(tmp_path / "p/coloured.png", 0, 0)
    assert export_main([*asked, "--with_preprocess", "--samples", str(tmp_path / "p")]) == 0
    assert warning not in " ".join(capsys.readouterr().out.split())


def test_one_channel_has_no_order() -> None:
    grey = sample_images.SampleImages(np.zeros((2, 4, 4, 1), np.uint8), None, ("a", "b"), "fake", 2)
    assert not grey.are_grey()
