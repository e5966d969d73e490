"""The Predictor with a backend that is plain numpy, and the torch backend against the net itself."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.errors import CheckpointError
from artifacts.metadata import ModelMetadata
from common.atomic_io import ResultsError, check_folder
from common.console import elide, text_columns
from configs.schema import Config
from data_loader import decoder_process
from data_loader.decode_guard import GUARD
from data_loader.decoding import decode
from data_loader.loaders import ImageDataset, validation_loader
from data_loader.preprocess import Preprocess, as_array
from data_loader.samples import ListError, Sample, SampleList
from deploy.backends.base import BackendError
from deploy.backends.devices import choose_device
from deploy.backends.loading import load_backend
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.console_table import LineLayout
from deploy.inference.image_writers import AnnotatedCopies, SortedCopies, folder_names
from deploy.inference.predictor import Predictor
from deploy.inference.result_writer import open_results
from deploy.inference.uncertainty_scores import softmax
from nets.net_interface import build_net
from tests.helpers import stand_in_decoder

NAMES = ("猫", "dog", "bird/s")


class FakeBackend:
    """Logits that follow from the mean brightness; what it was given is kept."""

    name, device = "fake", "cpu"

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(images)
        mean = images.mean(axis=(1, 2, 3))
        return np.stack([mean, -mean, np.zeros_like(mean)], axis=1).astype(np.float32)


def metadata(**changes: Any) -> ModelMetadata:
    return ModelMetadata(
        NAMES, Preprocess(16, 16), {"module": "resnet_module", "name": "resnet18", "args": {}}, **changes
    )


def image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


# --- predictions


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_nets_input_is_the_preprocessings_to_the_bit(resize: str, channels: int, tmp_path: Path) -> None:
    preprocess = Preprocess(20, 28, channels, resize, "bicubic")
    paths = [image(tmp_path / f"{i}.jpg", i, (30 + i, 50)) for i in range(5)]
    backend = FakeBackend()
    list(Predictor(backend, ModelMetadata(NAMES, preprocess, {})).predict_files(paths, batch_size=2))
    expected = np.stack([preprocess(as_array(preprocess.decode(path))) for path in paths])
    given = np.concatenate(backend.batches)
    assert given.dtype == np.float32
    assert given.tobytes() == expected.tobytes()


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_the_nets_input_is_the_validation_datasets_to_the_bit(resize: str, tmp_path: Path) -> None:
    preprocess = Preprocess(20, 28, resize=resize)
    paths = [image(tmp_path / f"{i}.jpg", i, (30 + i, 50)) for i in range(5)]
    samples = SampleList(tuple(Sample(path, 0) for path in paths), NAMES, str(tmp_path), "val.txt")
    loader = validation_loader(ImageDataset(samples, preprocess), batch_size=2, workers=0)
    expected = torch.cat([preprocess.normalize(batch["image"]) for batch in loader])
    backend = FakeBackend()
    list(Predictor(backend, ModelMetadata(NAMES, preprocess, {})).predict_files(paths, batch_size=3))
    assert np.concatenate(backend.batches).tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize(("channels", "order"), [(3, "RGB"), (3, "BGR"), (1, "BGR")])
def test_a_net_that_normalizes_itself_gets_plain_bytes(channels: int, order: str, tmp_path: Path) -> None:
    preprocess = Preprocess(20, 28, channels, "letterbox")
    path = image(tmp_path / "x.png")
    backend = FakeBackend()
    predictor = Predictor(backend, ModelMetadata(NAMES, preprocess, {}, input=f"uint8 NHWC {order}"))
    from_file = next(predictor.predict_files([path]))
    grey, empty = predictor.predict_images(
        [Image.new("LA", (4, 4)), Image.new("L" if channels == 1 else "RGB", (0, 3))]
    )
    given = backend.batches[0]
    rgb = given[..., ::-1].copy() if order == "BGR" else given
    normalized = preprocess.normalize(torch.from_numpy(rgb).permute(0, 3, 1, 2))  # (1, C, H, W)
    assert (given.dtype, given.shape) == (np.uint8, (1, 20, 28, channels))
    assert normalized.numpy().tobytes() == preprocess(as_array(preprocess.decode(path))).tobytes()
    assert from_file.error == ""
    assert grey.error == f"expected uint8 (H, W, {channels}) with pixels, got uint8 (4, 4, 2)"
    assert empty.error == f"expected uint8 (H, W, {channels}) with pixels, got uint8 (3, 0, {channels})"


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("workers", [1, 8])
def test_order_is_kept_and_a_bad_file_takes_no_other_with_it(batch_size: int, workers: int, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    paths = [image(tmp_path / f"{i}.png", i) for i in range(7)]
    paths[3:3] = [str(tmp_path / "bad.jpg"), str(tmp_path / "none.jpg")]
    predictions = list(Predictor(FakeBackend(), metadata()).predict_files(paths, batch_size, 2, workers))
    assert [prediction.file for prediction in predictions] == paths
    assert [prediction.error for prediction in predictions if prediction.error] == [
        "it is empty (0 bytes)",
        "no such file",
    ]
    alone = Predictor(FakeBackend(), metadata())
    for path, prediction in zip(paths, predictions, strict=True):
        assert next(alone.predict_files([path], topk=2)) == prediction


def test_an_image_beyond_its_deadline_fails_and_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_process, "WORKER", stand_in_decoder.MODULE)
    monkeypatch.setattr(GUARD, "timeout_s", 1.0)
    paths = [image(tmp_path / f"{name}.png") for name in ("a", "sleep", "b", "spin", "c")]
    predictions = list(Predictor(FakeBackend(), metadata()).predict_files(paths, 2, 2, workers=2))
    assert [prediction.file for prediction in predictions] == paths
    late = "its decoder did not end within 1 seconds"
    assert [prediction.error for prediction in predictions] == ["", late, "", late, ""]


def test_only_bad_files_never_reach_the_net(tmp_path: Path) -> None:
    backend = FakeBackend()
    predictions = list(Predictor(backend, metadata()).predict_files([str(tmp_path / "none.jpg")] * 3))
    assert [prediction.to_dict() for prediction in predictions] == [
        {"file": predictions[0].file, "error": "no such file"}
    ] * 3
    assert backend.batches == []


def test_a_prediction_as_plain_values(tmp_path: Path) -> None:
    path = image(tmp_path / "x.png")
    prediction = next(Predictor(FakeBackend(), metadata()).predict_files([path], topk=2))
    got = json.loads(json.dumps(prediction.to_dict()))
    assert got.keys() == {"file", "label", "class", "score", "top_k"}
    assert got["class"] == NAMES[got["label"]]
    assert got["top_k"][0] == [got["class"], got["score"]]
    assert len(got["top_k"]) == 2


def test_scores_are_the_softmax_over_the_temperature() -> None:
    logits = np.array([[1.0, 2.0, -3.0], [700.0, -700.0, 0.0], [5.0, 5.0, 5.0]], np.float32)
    for temperature in (None, 0.5, 2.5):
        predictor = Predictor(FakeBackend(), metadata(temperature=temperature))
        predictor.backend = type("Fixed", (FakeBackend,), {"__call__": lambda self, images: logits})()
        predictions = predictor.predict_images([Image.new("RGB", (4, 4))] * 3, topk=3)
        expected = torch.softmax(torch.from_numpy(logits).double() / (temperature or 1), 1).numpy()
        for prediction, row in zip(predictions, expected, strict=True):
            np.testing.assert_allclose(prediction.score, row.max(), rtol=1e-12)
            by_name = dict(prediction.top_k)
            np.testing.assert_allclose([by_name[name] for name in NAMES], row, rtol=1e-12, atol=1e-300)
        assert predictions[2].label == 0  # of equal scores the lower label
    assert softmax(np.array([[1e30, 0.0]])).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_that_images_error(value: float) -> None:
    logits = np.array([[0.0, 1.0, 2.0], [0.0, value, 0.0]], np.float32)
    predictor = Predictor(type("Fixed", (FakeBackend,), {"__call__": lambda self, images: logits})(), metadata())
    good, bad = predictor.predict_images([Image.new("RGB", (4, 4))] * 2)
    assert good.label == 2
    assert bad.error == "the net's output is not finite (NaN or infinite logits)"


def test_images_in_memory(tmp_path: Path) -> None:
    path = image(tmp_path / "x.png")
    predictor = Predictor(FakeBackend(), metadata())
    from_memory, grey = predictor.predict_images([decode(path), Image.new("L", (4, 4))])
    assert from_memory.score == next(predictor.predict_files([path])).score
    assert from_memory.file == ""
    assert grey.error == "expected uint8 (H, W, 3) with pixels, got uint8 (4, 4, 1)"
    assert predictor.predict_images([]) == []


def test_a_net_with_other_outputs_than_its_metadata_is_refused(tmp_path: Path) -> None:
    predictor = Predictor(FakeBackend(), ModelMetadata(("a", "b"), Preprocess(8, 8), {}))
    with pytest.raises(BackendError, match=r"the fake net gives \(1, 3\) instead of \(1, 2\)"):
        list(predictor.predict_files([image(tmp_path / "x.png")]))


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0, 5, 4"):
        list(Predictor(FakeBackend(), metadata()).predict_files([], batch_size=0))


# --- streaming


def test_paths_are_consumed_lazily_and_little_ahead(tmp_path: Path) -> None:
    path = image(tmp_path / "x.png", size=(8, 8))
    taken = 0

    def paths() -> Iterator[str]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield path

    batch_size, workers = 16, 4
    furthest = predicted = 0
    for _ in Predictor(FakeBackend(), metadata()).predict_files(paths(), batch_size, workers=workers):
        predicted += 1
        furthest = max(furthest, taken - predicted)
    assert predicted == 10_000
    assert furthest <= 2 * batch_size + workers


def test_a_consumer_that_stops_ends_the_decoding(tmp_path: Path) -> None:
    taken: list[int] = []

    def paths() -> Iterator[str]:
        for number in range(10_000):
            taken.append(number)
            yield str(tmp_path / "none.jpg")

    predictions = Predictor(FakeBackend(), metadata()).predict_files(paths(), 4, workers=2)
    next(predictions)
    predictions.close()
    assert len(taken) <= 10


def test_an_error_of_the_paths_reaches_whoever_asks(tmp_path: Path) -> None:
    def paths() -> Iterator[str]:
        yield image(tmp_path / "x.png")
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        list(Predictor(FakeBackend(), metadata()).predict_files(paths()))


# --- the torch backend


def config(**changes: Any) -> Config:
    values = {"model_module_name": "resnet_module", "model_net_name": "resnet18", "num_classes": 3, "img_height": 32}
    values |= {"img_width": 32, "train_data_root_dir": "", "val_data_root_dir": ""}
    return Config.model_validate(values | changes)


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_net("resnet_module", "resnet18", num_classes=3, img_height=32, img_width=32, model_args={}).eval()


@pytest.fixture(scope="module")
def checkpoint_file(net: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    parts = ModelMetadata(NAMES, Preprocess(32, 32), {"module": "resnet_module", "name": "resnet18", "args": {}})
    save_checkpoint(Checkpoint({}, parts, net.state_dict()), path)
    return path


def test_a_checkpoint_predicts_as_its_net(net: torch.nn.Module, checkpoint_file: Path) -> None:
    backend, loaded = load_backend(checkpoint_file, device="cpu")
    assert (backend.name, backend.device) == ("torch", "cpu")
    assert loaded.class_names == NAMES
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    logits = backend(images)
    assert logits.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(logits, net(torch.from_numpy(images)).numpy(), atol=1e-5)


def test_the_averaged_weights_predict_where_there_are_some(net: torch.nn.Module, tmp_path: Path) -> None:
    ema = {name: value * 0 if name.startswith("fc.") else value for name, value in net.state_dict().items()}
    parts = ModelMetadata(NAMES, Preprocess(32, 32), {"module": "resnet_module", "name": "resnet18", "args": {}})
    save_checkpoint(Checkpoint({}, parts, net.state_dict(), ema=ema), tmp_path / "net.pth")
    backend, _ = load_backend(tmp_path / "net.pth", device="cpu")
    assert not backend(np.ones((1, 3, 32, 32), np.float32)).any()


def test_bare_weights_need_a_config(net: torch.nn.Module, tmp_path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, tmp_path / "bare.pth")
    with pytest.raises(
        CheckpointError, match=r"bare\.pth: bare weights do not name their net; .* take their config with --config"
    ):
        load_backend(tmp_path / "bare.pth", device="cpu")
    backend, loaded = load_backend(tmp_path / "bare.pth", device="cpu", config=config())
    assert loaded.class_names == ("0", "1", "2")
    images = np.ones((1, 3, 32, 32), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(backend(images), net(torch.from_numpy(images)).numpy(), atol=1e-5)


def test_bare_weights_get_the_configs_class_names(net: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    (tmp_path / "classes.txt").write_text("猫\n狗\n鸟\n", encoding="utf-8")
    for keys in ({"class_names_file": str(tmp_path / "classes.txt")}, {"train_data_file": str(tmp_path / "t.txt")}):
        assert load_backend(tmp_path / "bare.pth", config=config(**keys))[1].class_names == ("猫", "狗", "鸟")
    named = config(class_names_file=str(tmp_path / "classes.txt"), num_classes=4)
    with pytest.raises(ListError, match=r"classes\.txt: 3 class names, but num_classes is 4"):
        load_backend(tmp_path / "bare.pth", config=named)


def test_weights_of_another_net_are_refused(net: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(BackendError, match=r"bare\.pth: .*fc\.weight") as caught:
        load_backend(tmp_path / "bare.pth", config=config(num_classes=5))
    assert "train_mode" not in str(caught.value)
    with pytest.raises(BackendError, match=r'bare\.pth: nets/resnet_module\.py has no net "resnet19".*did you mean'):
        load_backend(tmp_path / "bare.pth", config=config(model_net_name="resnet19"))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match='device must be auto, cpu, cuda or cuda:N, got "gpu"'):
        choose_device("gpu")
    with pytest.raises(BackendError, match='got "cuda:x"'):
        choose_device("cuda:x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(BackendError, match=r'device "cuda:0" asks for a CUDA GPU, and torch .* sees none; use cpu'):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto").type == "cuda"
    assert str(choose_device("cuda:1")) == "cuda:1"
    with pytest.raises(BackendError, match='device "cuda:2" is not there; torch sees cuda:0 to cuda:1'):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError("CUDA"), "cpu has too little memory for 2 images at once; lower the batch size"),
        (RuntimeError("device lost\nmore"), "the net failed on torch cpu: device lost$"),
    ],
)
def test_a_failing_device_is_a_sentence(
    error: Exception, text: str, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = load_backend(checkpoint_file, device="cpu")[0]

    def fail(_: torch.Tensor) -> None:
        raise error

    monkeypatch.setattr(backend, "_net", fail)
    with pytest.raises(BackendError, match=text):
        backend(np.zeros((2, 3, 32, 32), np.float32))


# --- results, copies and lines

GOOD = ClassPrediction("a/x.png", 0, "猫", 0.75, (("猫", 0.75), ("dog", 0.25)))
COLUMNS = ClassPrediction.csv_columns(metadata(), topk=2)


def layout_of(names: tuple[str, ...], columns: int | None) -> LineLayout:
    return LineLayout.of(ClassPrediction.text_widths(replace(metadata(), class_names=names)), columns)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_a_failure_leaves_the_old_results(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"r{suffix}"
    path.write_text("old")
    with pytest.raises(RuntimeError), open_results(path, COLUMNS) as results:
        results.write(GOOD)
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r", **options: real_open(Path("/dev/full"), mode, **options))
    with (
        pytest.raises(ResultsError, match=r"r\.csv: cannot write it: No space left on device"),
        open_results(tmp_path / "r.csv", COLUMNS) as results,
    ):
        for _ in range(10_000):
            results.write(GOOD)


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="file is a file, not a folder"):
        check_folder(tmp_path / "file" / "deeper")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ResultsError, match="no permission to write there"):
        check_folder(tmp_path / "new")


def test_folder_names_are_safe_and_distinct() -> None:
    names = ["a/b", "a_b", "..", "", "CON", "con.txt", "Cat", "cat", "苹果", "x" * 300, "a\nb", "nul", ".git", "a. "]
    got = folder_names(names)
    assert len({name.casefold() for name in got}) == len(names)
    assert got[0] == "a_b"
    assert got[6:9:2] == ["Cat", "苹果"]
    for name in got:
        assert not set(name) & set('/\\:*?"<>|\n\0')
        assert name.strip(" .") == name != ""
        assert name.split(".")[0].lower() not in ("con", "nul")
        assert len(name) <= 90


def sort_into(folder: Path, source: str, relative: str, label: int) -> None:
    SortedCopies(folder, NAMES).add(ClassPrediction(source, label, NAMES[label], 0.5, ((NAMES[label], 0.5),)), relative)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_copies_never_replace_another_image(tmp_path: Path) -> None:
    one, two = image(tmp_path / "1/x.png", 1), image(tmp_path / "2/x.png", 2)
    bytes_1, bytes_2 = Path(one).read_bytes(), Path(two).read_bytes()
    out = tmp_path / "out"
    for _ in range(2):  # a second run changes nothing
        sort_into(out, one, "x.png", 2)
        sort_into(out, two, "x.png", 2)
        assert tree(out) == {"bird_s/x.png": bytes_1, "bird_s/x_2.png": bytes_2}


def test_nothing_in_the_folder_is_ever_removed(tmp_path: Path) -> None:
    one, two = image(tmp_path / "1/x.png", 1), image(tmp_path / "2/x.png", 2)
    out = tmp_path / "out"
    sort_into(out, one, "a/x.png", 0)
    sort_into(out, two, "a/x.png", 1)
    sort_into(out, one, "a/x.png", 2)
    first, second = Path(one).read_bytes(), Path(two).read_bytes()
    assert tree(out) == {"猫/a/x.png": first, "dog/a/x.png": second, "bird_s/a/x.png": first}


def test_a_copy_onto_the_source_is_refused(tmp_path: Path) -> None:
    source = image(tmp_path / "out/dog/x.png")
    before = Path(source).read_bytes()
    with pytest.raises(ResultsError, match=r"it is the image .* itself; choose another folder"):
        sort_into(tmp_path / "out", source, "x.png", 1)
    assert Path(source).read_bytes() == before


def test_annotated_copies_show_the_image_and_keep_it(tmp_path: Path) -> None:
    source = str(tmp_path / "x.png")
    Image.linear_gradient("L").resize((300, 200)).convert("RGB").save(source)
    before = Path(source).read_bytes()
    AnnotatedCopies(tmp_path, Preprocess(8, 8)).add(ClassPrediction(source, 0, "猫", 0.75, GOOD.top_k), "x.png")
    assert Path(source).read_bytes() == before
    with Image.open(tmp_path / "x.png.answer.jpg") as drawn:
        assert drawn.width >= 300
        assert drawn.height > 200
        difference = np.asarray(drawn.convert("RGB"), float)[:200, :300] - as_array(decode(source))
    assert np.abs(difference).max() < 8  # what JPEG loses


def test_lines_fit_80_columns() -> None:
    names = ("猫", "dog", "a very long class name that goes on and on")
    layout = layout_of(names, 80)
    long_path = "照片/" * 30 + "the name of the file.jpg"
    lines = [
        layout.line(ClassPrediction(path, 0, name, 0.5, ((name, 0.5),)))
        for path in ("x.jpg", long_path)
        for name in names
    ]
    assert all(text_columns(line) < 80 for line in lines)
    assert len({text_columns(line) for line in lines}) == 1
    assert all(line.endswith("  0.5000") for line in lines)
    assert "..." in lines[3]
    assert "of the file.jpg" in lines[3]
    assert lines[0].startswith("x.jpg   ")
    assert layout.line(ClassPrediction("x.jpg", error="it is empty")).split(maxsplit=1) == [
        "x.jpg",
        "error: it is empty",
    ]


def test_without_a_terminal_nothing_is_shortened() -> None:
    line = layout_of(("猫",), None).line(ClassPrediction("d/" * 100 + "x.jpg", 0, "猫", 1.0, (("猫", 1.0),)))
    assert line == "d/" * 100 + "x.jpg  猫  1.0000"


def test_names_cannot_break_a_line() -> None:
    line = layout_of(NAMES, None).line(ClassPrediction("a\nb\x1b[31m\udcff.jpg", 0, "猫", 1.0, (("猫", 1.0),)))
    assert line.startswith("a\\nb\\x1b[31m\\udcff.jpg ")


@pytest.mark.parametrize("columns", range(5, 30))
def test_an_elided_text_is_never_too_wide(columns: int) -> None:
    text = "苹果/apple/香蕉/banana.jpg"
    got = elide(text, columns)
    assert text_columns(got) <= columns
    assert got == text if columns >= text_columns(text) else "..." in got
