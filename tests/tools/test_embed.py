"""Features of a folder are the net's own, of length 1, from every file it is in; what has none is a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from artifacts.checkpoint import load_checkpoint, weights_sha256
from artifacts.metadata import ModelMetadata
from common.paths import ROOT
from data_loader.preprocess import Preprocess
from deploy.backends.base import BackendError
from deploy.inference.feature_extractor import Embedded, Embedder, EmbeddingError, Embeddings, load_embedder
from pytorch2json.converter import convert
from pytorch2json.description_file import write_description
from tests.helpers.embedded import NAMES, SIMSIAM, SIZE_PX, input_of, made, write_images
from tests.helpers.exported import WRITERS, TinyNet, build_metadata, example_of, write_jit
from tools import embed


def run(*arguments: object) -> int:
    return embed.main([*map(str, arguments), "--device", "cpu"])


@pytest.fixture(scope="module")
def simsiam(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, list[Path]]:
    """A folder with net.pth and its exports, the net, and its seven images in the order of the walk."""
    folder = tmp_path_factory.mktemp("simsiam")
    images = write_images(folder / "images")
    net = made(folder, SIMSIAM, "features")
    metadata = load_checkpoint(folder / "net.pth").metadata
    for ending, write in WRITERS.items():
        write(net, folder / f"model.{ending}", metadata, example_of(metadata))
    write_description(folder / "model.json", *convert(net, example_of(metadata), metadata=metadata.to_dict()))
    return folder, net, images


@pytest.mark.parametrize("file", ["net.pth", "model.pt", "model.pt2", "model.onnx", "model.json"])
def test_every_file_of_a_net_gives_its_features(
    file: str, simsiam: tuple[Path, nn.Module, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, net, images = simsiam
    output = tmp_path / "new" / "E.npz"
    assert run("--weights", folder / file, "--images", folder / "images", "--output", output, "--batch_size", 3) == 0
    captured = capsys.readouterr()
    assert f"{output}: 7 images, 512 features each; 0 failed" in captured.out
    assert captured.err == ""
    with torch.no_grad():
        expected = nn.functional.normalize(net(input_of(images)), dim=1).numpy()
    with np.load(output, allow_pickle=False) as arrays:
        assert set(arrays) == {"features", "files", "weights_sha256", "precision", "preprocess"}
        assert arrays["features"].dtype == np.float32
        np.testing.assert_allclose(arrays["features"], expected, atol=2e-6)
        assert arrays["files"].tolist() == [path.relative_to(folder / "images").as_posix() for path in images]
        assert arrays["weights_sha256"] == weights_sha256(net.state_dict())
        assert arrays["precision"] == "fp32"
        assert Preprocess.from_dict(json.loads(str(arrays["preprocess"]))) == Preprocess(SIZE_PX, SIZE_PX)


def raw_features(folder: Path, paths: list[Path], size_px: int = SIZE_PX) -> torch.Tensor:
    embedder = load_embedder(folder / "net.pth", device="cpu")
    return torch.from_numpy(embedder.backend(input_of(paths, size_px).numpy()))


@pytest.mark.parametrize(
    ("module", "name", "head"),
    [("GeM_ResNet_module", "GeM_ResNet_AVP", "fc"), ("simsiam_module", "SimSiam_probe", "fc")],
)
def test_features_of_a_classifier_are_what_its_head_turns_into_logits(
    module: str, name: str, head: str, tmp_path: Path
) -> None:
    net = made(tmp_path, {"module": module, "name": name, "args": {"model_type": "resnet18"}})
    images = write_images(tmp_path / "images", 3)
    features = raw_features(tmp_path, images)
    with torch.no_grad():
        torch.testing.assert_close(net.get_submodule(head)(features), net(input_of(images)))


def test_features_of_pim_are_its_combiners(tmp_path: Path) -> None:
    args = {"model_type": "resnet18", "fpn_size": 16, "num_selects": [8, 8, 4, 2]}
    net: Any = made(tmp_path, {"module": "pim_module", "name": "PIM", "args": args}, size_px=64)
    images = write_images(tmp_path / "images", 3)
    features = raw_features(tmp_path, images, 64)
    with torch.no_grad():
        expected = net.head_logits(net.outputs(input_of(images, 64)))["combiner"]
        torch.testing.assert_close(net.combiner.classifier(features), expected)


def test_a_head_that_is_a_convolution_gives_the_mean_of_its_input(tmp_path: Path) -> None:
    net: Any = made(tmp_path, {"module": "squeezenet_module", "name": "squeezenet1_1", "args": {}})
    images = write_images(tmp_path / "images", 3)
    with torch.no_grad():
        expected = net.features(input_of(images)).mean(dim=(2, 3))
    torch.testing.assert_close(raw_features(tmp_path, images), expected)


def test_an_exported_classifier_has_no_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", 3)
    weights = write_jit(TinyNet(), tmp_path / "model.pt", build_metadata(), example_of(build_metadata()))
    assert run("--weights", weights, "--images", tmp_path / "images", "--output", tmp_path / "E.npz") == 2
    assert capsys.readouterr().err == (
        f"tools.embed: {weights}: it is an exported classifier, with classes and no features as output; "
        "name the checkpoint that it was exported from\n"
    )


def test_bare_weights_are_embedded_with_their_config(tmp_path: Path) -> None:
    args = {"model_type": "resnet18"}
    net = made(tmp_path, {"module": "simsiam_module", "name": "SimSiam_probe", "args": args})
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    config = {"model_module_name": "simsiam_module", "model_net_name": "SimSiam_probe", "model_args": args}
    size = {"num_classes": 3, "img_height": SIZE_PX, "img_width": SIZE_PX}
    data = {"train_data_root_dir": "images", "val_data_root_dir": "images"}
    (tmp_path / "config.json").write_text(json.dumps(config | size | data), encoding="utf-8")
    write_images(tmp_path / "images", 3)
    for name, more in (("net", ()), ("bare", ("--config", tmp_path / "config.json"))):
        arguments = ("--images", tmp_path / "images", "--output", tmp_path / f"{name}.npz", *more)
        assert run("--weights", tmp_path / f"{name}.pth", *arguments) == 0
    full, bare = (Embeddings.read(tmp_path / f"{name}.npz") for name in ("net", "bare"))
    np.testing.assert_array_equal(full.features, bare.features)
    assert full.weights_sha256 == bare.weights_sha256 == weights_sha256(net.state_dict())


def test_a_bad_image_is_reported_and_left_out(
    simsiam: tuple[Path, nn.Module, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    write_images(folder, 3)
    (folder / "broken.png").write_bytes(b"")
    try:
        (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "b/0.png").read_bytes())
        failures = [rf"{folder}/\udcff.png: its name is not UTF-8; rename it"]
    except OSError:  # a file system that takes UTF-8 alone
        failures = []
    arguments = ("--weights", simsiam[0] / "net.pth", "--images", folder, "--output", tmp_path / "E.npz")
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    failures.append(f"{folder}/broken.png: it is empty (0 bytes)")
    assert sorted(captured.err.splitlines()) == sorted(f"tools.embed: {failure}" for failure in failures)
    assert f"3 images, 512 features each; {len(failures)} failed" in captured.out
    assert Embeddings.read(tmp_path / "E.npz").files == ("b/0.png", "b/2.png", "花/1.png")


def test_nothing_is_written_where_all_fail(
    simsiam: tuple[Path, nn.Module, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert run("--weights", simsiam[0] / "net.pth", "--images", tmp_path, "--output", tmp_path / "E.npz") == 2
    assert f"tools.embed: {tmp_path}: none of its 1 images could be embedded\n" in capsys.readouterr().err
    assert not (tmp_path / "E.npz").exists()


class Brightness:
    """A net in memory: its features are the image's mean, three times, changed by a function of the test."""

    name, device = "torch", "cpu"

    def __init__(self, *values: float) -> None:
        self.values = values

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.array([[value, value, 0] for value in self.values[: len(images)]], np.float32)


def test_vectors_without_length_or_direction_are_errors(tmp_path: Path) -> None:
    paths = [str(path) for path in write_images(tmp_path, 5)]
    metadata = ModelMetadata(NAMES, Preprocess(SIZE_PX, SIZE_PX), SIMSIAM, output="features")
    backend = Brightness(0, np.nan, np.inf, 3e38, -1e-38)  # the last two overflow or vanish where squared in float32
    zero, nan, infinite, large, small = Embedder(backend, metadata).embed_files(paths)
    assert zero == Embedded(paths[0], error="the net's features are all zero, a vector without a direction")
    for image in (nan, infinite):
        assert image.error == "the net's features are not finite (NaN or infinite)"
    for image, sign in ((large, 1), (small, -1)):
        assert image.features is not None
        np.testing.assert_allclose(image.features, [sign * 0.5**0.5, sign * 0.5**0.5, 0], rtol=1e-6)


def test_a_net_with_another_output_is_refused(tmp_path: Path) -> None:
    paths = [str(path) for path in write_images(tmp_path, 2)]
    metadata = ModelMetadata(NAMES, Preprocess(SIZE_PX, SIZE_PX), SIMSIAM, output="features")
    with pytest.raises(BackendError, match=r"the torch net gives \(1, 3\) instead of \(2, D\)"):
        list(Embedder(Brightness(1), metadata).embed_files(paths))


def test_a_net_whose_last_layer_does_not_run_is_refused(tmp_path: Path) -> None:
    made(tmp_path, SIMSIAM)  # as if it gave logits
    images = write_images(tmp_path / "images", 2)
    with pytest.raises(BackendError, match=r"does not use its last layer, predictor\.3, so it has no features to take"):
        raw_features(tmp_path, images)


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        ("--images", "nowhere", "no such folder (relative paths start from"),
        ("--images", "empty", "no images in it or below it; endings known: .jpg"),
        ("--output", "E.txt", 'the file must end in .npz, got ".txt"'),
        ("--output", "folder.npz", "it is a folder; give a file"),
        ("--output", "a.file/E.npz", "a.file is a file, not a folder"),
        ("--weights", "none.pth", "no such file"),
        ("--batch_size", "0", "--batch_size must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_sentence(
    flag: str,
    value: str,
    sentence: str,
    simsiam: tuple[Path, nn.Module, list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "a.file").touch()
    flags = {"--weights": simsiam[0] / "net.pth", "--images": simsiam[0] / "images", "--output": tmp_path / "E.npz"}
    flags[flag] = tmp_path / value if flag != "--batch_size" else Path(value)
    assert run(*(part for pair in flags.items() for part in pair)) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert (captured.out, captured.err.count("\n"), (tmp_path / "E.npz").exists()) == ("", 1, False)


def test_a_failed_write_leaves_the_old_file(
    simsiam: tuple[Path, nn.Module, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "E.npz"
    output.write_text("old")

    def full_disk(file: Any, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    folder = simsiam[0]
    assert run("--weights", folder / "net.pth", "--images", folder / "images", "--output", output) == 2
    assert capsys.readouterr().err == f"tools.embed: {output}: cannot write it: No space left on device\n"
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["E.npz"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "E.npz"
    with pytest.raises(EmbeddingError, match="no such file"):
        Embeddings.read(path)
    good = Embeddings(np.eye(2, 3, dtype=np.float32), ("a.png", "b.png"), "0" * 64, "fp32", "{}")
    good.save(path)
    complete = path.read_bytes()
    for content in (b"", b"text", complete[: len(complete) // 2]):
        path.write_bytes(content)
        with pytest.raises(EmbeddingError, match="it is damaged, or holds no embeddings"):
            Embeddings.read(path)
    for features in (2 * good.features, good.features[:1], good.features * np.float32(np.nan)):
        replace(good, features=features).save(path)
        with pytest.raises(EmbeddingError, match="not one vector of length 1 for each of its files"):
            Embeddings.read(path)
    np.savez(path, features=np.array([{}], dtype=object))  # numpy pickles it
    with pytest.raises(EmbeddingError, match="it is damaged, or holds no embeddings"):
        Embeddings.read(path)


def test_help_and_mistakes_need_no_torch() -> None:
    program = "import sys, tools.embed, tools.search; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
