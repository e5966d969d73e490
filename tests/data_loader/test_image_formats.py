"""Odd images, and what training, inference, doctor and service each do with them (docs/image-formats.md)."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

import inference
import train
from artifacts.checkpoint import load_checkpoint
from common.paths import ROOT
from data_loader.decoder_process import DecoderPool, Fitted
from data_loader.errors import ImageError
from data_loader.samples import read_class_folders
from tests.helpers.images import png_file, png_header
from tests.helpers.profiles import D65_XY, P3_XY, SRGB_CURVE, cmyk_profile, grey_profile, rgb_profile
from tests.helpers.serving import RunningService, base64_of, serving, write_page
from tests.helpers.tiff_files import tiff_file
from tools.doctor import __main__ as doctor

DOCS = ROOT / "docs" / "image-formats.md"
NO_NAME = "no name is sent"
WHITE_IS_0, BLACK_IS_0, RGB = 0, 1, 2  # PhotometricInterpretation
PLAIN_KINDS = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "GIF": "gif", "PPM": "ppm"}
BROKEN_EXIF = (b"Exif\0\0garbage garbage", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0abc\0\0\0\0\0")
P3 = rgb_profile(P3_XY, D65_XY, SRGB_CURVE)
Row = dict[str, str]


class SampleImages:
    """Images that no two are alike, written into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True)

    def soft(self, mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
        self.count += 1
        patches = np.random.default_rng(self.count).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).convert(mode)

    def bytes_of(self, kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
        file = io.BytesIO()
        (image or self.soft()).save(file, kind, **options)
        return file.getvalue()

    def animated(self, kind: str) -> bytes:
        return self.bytes_of(kind, save_all=True, append_images=[self.soft(), self.soft()])

    def turned(self, orientation: int, kind: str = "JPEG") -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return self.bytes_of(kind, exif=exif)

    def wide(self, array: np.ndarray, kind: str) -> bytes:
        return self.bytes_of(kind, Image.fromarray(array))

    def transparent(self, mode: str) -> Image.Image:
        image = self.soft("RGBA")
        image.putalpha(self.soft("L"))
        return image.convert(mode)


def corpus(make: SampleImages) -> dict[str, dict[str, bytes]]:
    """Return the files of each row of the table, by name; a name may have a folder in it."""
    grey16 = np.random.default_rng(0).integers(0, 65536, (40, 48)).astype(np.uint16)
    colour16 = np.random.default_rng(1).integers(0, 65536, (40, 48, 3)).astype(np.uint16)
    palette = make.soft().quantize(16)
    plain = {f"plain.{ending}": make.bytes_of(kind) for kind, ending in PLAIN_KINDS.items()}
    if features.check("avif"):
        plain["plain.avif"] = make.bytes_of("AVIF")
    return {
        "JPEG, PNG, BMP, TIFF, WebP, GIF, PPM, AVIF": plain,
        "another format than its ending, JPEG 2000": {
            "a_png.jpg": make.bytes_of("PNG"),
            "a_jpeg.png": make.bytes_of("JPEG"),
            "a_jpeg2000.jpg": make.bytes_of("JPEG2000"),
        },
        "greyscale": {
            "grey.png": make.bytes_of("PNG", make.soft("L")),
            "grey.jpg": make.bytes_of("JPEG", make.soft("L")),
        },
        "CMYK": {
            "cmyk.jpg": make.bytes_of("JPEG", make.soft("CMYK")),
            "cmyk.tif": make.bytes_of("TIFF", make.soft("CMYK")),
        },
        "a colour profile (ICC): Display P3, Adobe RGB, ProPhoto, grey, CMYK": {
            "p3.jpg": make.bytes_of("JPEG", icc_profile=P3),
            "p3.png": make.bytes_of("PNG", icc_profile=P3),
            "grey_profile.png": make.bytes_of("PNG", make.soft("L"), icc_profile=grey_profile(1.0)),
        },
        "a colour profile that is damaged or of another colour space": {
            "no_profile.png": make.bytes_of("PNG", icc_profile=b"no profile"),
            "cmyk_profile.png": make.bytes_of("PNG", icc_profile=cmyk_profile(30)),
        },
        "Lab, YCbCr": {
            "lab.tif": make.bytes_of("TIFF", Image.frombytes("LAB", (48, 40), make.soft().tobytes())),
            "ycbcr.tif": make.bytes_of("TIFF", make.soft("YCbCr")),
        },
        "16 bits a value, grey or colour": {
            "grey16.png": make.wide(grey16, "PNG"),
            "grey16.tif": make.wide(grey16.T.copy(), "TIFF"),
            "colour16.tif": tiff_file(colour16, RGB),
            "colour16.png": png_file(colour16[::-1]),
        },
        "TIFF of 10, 12, 14, 16 or 32 bits, or of signed integers": {
            "bits12.tif": tiff_file(colour16[..., :1] >> 4, BLACK_IS_0, bits=12),
            "planes.tif": tiff_file(colour16[:, ::-1], RGB, planar=True, order=">", compression="lzw", predictor=2),
            "white_is_0.tif": tiff_file(colour16[..., 1:2], WHITE_IS_0, tile=16),
            "signed.tif": tiff_file(colour16[..., 2:].view(np.int16), BLACK_IS_0),
            "bits32.tif": tiff_file(np.rot90(colour16[..., :1]).astype(np.uint32) << 16, BLACK_IS_0),
        },
        "12-bit values in 16 bits": {
            "dark.tif": tiff_file(colour16 >> 4, RGB),
            "dark.png": make.wide(grey16[:, ::-1] >> 4, "PNG"),
        },
        "TIFF of three or four bands without a colour space": {
            "bands3.tif": tiff_file(colour16[::-1, ::-1], BLACK_IS_0, extra=(0, 0)),
            "bands4.tif": tiff_file(
                np.concatenate([np.rot90(colour16), np.rot90(colour16[..., :1])], -1), BLACK_IS_0, extra=(0, 0, 0)
            ),
        },
        "TIFF whose alpha is near infrared": {
            "infrared.tif": make.bytes_of("TIFF", make.transparent("RGBA")),
        },
        "floating point": {"float.tif": make.wide(grey16[::-1].astype(np.float32) / 65535, "TIFF")},
        "1 bit": {"bit.png": make.bytes_of("PNG", make.soft("1")), "bit.tif": make.bytes_of("TIFF", make.soft("1"))},
        "palette": {"palette.png": make.bytes_of("PNG", palette)},
        "transparency: alpha, palette with alpha, a transparent colour": {
            "rgba.png": make.bytes_of("PNG", make.transparent("RGBA")),
            "rgba.webp": make.bytes_of("WEBP", make.transparent("RGBA")),
            "grey_alpha.png": make.bytes_of("PNG", make.transparent("LA")),
            "palette_alpha.png": make.bytes_of("PNG", make.soft().quantize(16), transparency=bytes(range(0, 256, 16))),
            "colour.png": make.bytes_of("PNG", make.soft(), transparency=(1, 2, 3)),
        },
        "animated GIF, animated WebP": {"animated.gif": make.animated("GIF"), "animated.webp": make.animated("WEBP")},
        "EXIF orientation 2 to 8": {f"turned{number}.jpg": make.turned(number) for number in range(2, 9)},
        "EXIF orientation 1, EXIF too broken to read": {
            "turned1.jpg": make.turned(1),
            **{f"exif{number}.jpg": make.bytes_of("JPEG", exif=exif) for number, exif in enumerate(BROKEN_EXIF)},
        },
        "1 x 1": {"one.png": make.bytes_of("PNG", make.soft(size=(1, 1)))},
        "20000 x 1": {
            "long.png": make.bytes_of("PNG", make.soft(size=(20000, 1))),
            "long.jpg": make.bytes_of("JPEG", make.soft(size=(1, 20000))),
        },
        "a name with a line break, an emoji, Chinese": {
            name: make.bytes_of("PNG") for name in ("line\nbreak.png", "🐈\u200d⬛.png", "猫 的图.png", 'a"b,c.png')
        },
        "a folder named x.jpg": {"x.jpg/inside.png": make.bytes_of("PNG")},
        "JPEG cut short, PNG cut short": {
            "cut.jpg": make.bytes_of("JPEG")[:-300],
            "cut.png": make.bytes_of("PNG")[:-300],
            "head.jpg": make.bytes_of("JPEG")[:30],
        },
        "an empty file": {"empty.jpg": b"", "empty.png": b""},
        "text named .jpg": {"text.jpg": b"not an image\n"},
        "TIFF of signed 32-bit integers, of 64-bit or complex values": {
            "signed32.tif": tiff_file(colour16.astype(np.int32), RGB),
            "bits64.tif": tiff_file(colour16.astype(np.uint64), RGB),
            "complex.tif": tiff_file(colour16, RGB, further={339: (3, [5] * 3)}),
        },
        "a header that declares 60,000 x 60,000": {"bomb.png": png_header(60_000, 60_000)},
        "a link to nothing, links in a circle": {"nowhere.jpg": b"", "circle1.jpg": b"", "circle2.jpg": b""},
        "no permission": {"locked.jpg": make.bytes_of("JPEG")},
    }


def table() -> dict[str, Row]:
    """Read the first table of docs/image-formats.md by its first column; the others have fewer columns."""
    lines = [
        line.strip("| \n").split(" | ") for line in DOCS.read_text(encoding="utf-8").splitlines() if line[:2] == "| "
    ]
    head, rows = lines[0], [line for line in lines[2:] if len(line) == len(lines[0])]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@dataclass(frozen=True)
class Corpus:
    """The images as a training reads them: class folders `odd` and `plain`, below `train` and `val` of the root."""

    root: Path
    rows: dict[str, dict[str, bytes]]

    @property
    def odd(self) -> Path:
        return self.root / "train" / "odd"

    def by(self, column: str, text: str) -> set[str]:
        """Return the names of all images whose cell of the column has this text."""
        cells = table()
        return {name for row, files in self.rows.items() if cells[row][column] == text for name in files}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    root = tmp_path_factory.mktemp("images")
    make = SampleImages(root / "train" / "odd")
    rows = corpus(make)
    for name, data in ((name, data) for files in rows.values() for name, data in files.items()):
        (make.folder / name).parent.mkdir(exist_ok=True)
        (make.folder / name).write_bytes(data)
    for name, target in (("nowhere", "gone"), ("circle1", "circle2"), ("circle2", "circle1")):
        (make.folder / f"{name}.jpg").unlink()
        (make.folder / f"{name}.jpg").symlink_to(f"{target}.jpg")
    (make.folder / "round").symlink_to(make.folder, target_is_directory=True)
    for folder in (root / "train" / "plain", root / "val" / "odd", root / "val" / "plain"):
        folder.mkdir(parents=True)
        for number in range(3):
            make.soft().save(folder / f"{number}.png")
    real: Callable[..., Any] = Image.open

    def refusing(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith("locked.jpg"):
            raise PermissionError(13, "Permission denied")  # root, who may run the tests, has every permission
        return real(file, *args, **kwargs)

    fit = DecoderPool.fit

    def refused_in_a_process(pool: DecoderPool, source: str | bytes, max_pixels: int) -> Fitted:
        if str(source).endswith("locked.jpg"):
            raise ImageError("no permission to read it")  # as `refusing` makes it in this process
        return fit(pool, source, max_pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", refusing)
        patch.setattr(DecoderPool, "fit", refused_in_a_process)
        yield Corpus(root, rows)


@pytest.fixture(scope="module")
def config(odd: Corpus) -> Path:
    values = {
        "model_module_name": "squeezenet_module",
        "model_net_name": "squeezenet1_1",
        "img_height": 32,
        "img_width": 32,
        "num_classes": 2,
        "train_data_root_dir": str(odd.root / "train"),
        "val_data_root_dir": str(odd.root / "val"),
        "dataloader_workers": 0,
        "num_epochs": 1,
        "batch_size": 16,
        "learning_rate": 0.001,
        "gpu_id": "cpu",
        "precision": "fp32",
        "is_tensorboard": False,
        "save_path": str(odd.root / "weights"),
        "log_path": str(odd.root / "logs"),
    }
    path = odd.root / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(odd: Corpus, config: Path) -> Path:
    assert train.main(["--config", str(config), "--set", "bad_images=skip", "--set", "max_bad_share=1"]) == 0
    return odd.root / "weights"


def names_below(folder: Path, paths: Iterable[str]) -> list[str]:
    return [path.removeprefix(f"{folder.as_posix()}/") for path in paths]


def check_reasons(odd: Corpus, reasons: dict[str, str], column: str, word: str) -> None:
    """Hold that those that the table says so of were refused, no others, and in its words."""
    assert set(reasons) == odd.by(column, word)
    for row, files in odd.rows.items():
        for name in files.keys() & reasons.keys():
            assert reasons[name].startswith(table()[row]["handling"]), (name, reasons[name])


def test_the_table_has_a_row_for_each_image(odd: Corpus) -> None:
    assert set(table()) == set(odd.rows)
    found = read_class_folders(odd.root / "train")
    names = [name for files in odd.rows.values() for name in files]
    assert sorted(names_below(odd.odd, (s.path for s in found.samples if s.label == 0))) == sorted(names)
    assert len(set(names)) == len(names) > 50


def test_training(odd: Corpus, trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text(encoding="utf-8"))
    assert all(entry["where"] == str(odd.root / "train") for entry in report["skipped_images"])
    paths = names_below(odd.odd, (entry["path"] for entry in report["skipped_images"]))
    check_reasons(
        odd, dict(zip(paths, (e["reason"] for e in report["skipped_images"]), strict=True)), "training", "refused"
    )
    progress = load_checkpoint(trained / "net_last.pth").progress
    assert progress["pictures_trained"] == len(odd.by("training", "used")) + 3  # the plain ones


def test_training_stops_at_the_first_bad_one(odd: Corpus, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", str(config), "--set", f"save_path={odd.root / 'stopped'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("train.py: ") and err.endswith("\n")
    starts = tuple(f"{odd.odd / name}: " for name in odd.by("training", "refused"))
    assert all(line.startswith(starts) for line in err.removeprefix("train.py: ").splitlines()), err
    assert not (odd.root / "stopped" / "net.pth").exists()


def test_inference(odd: Corpus, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = odd.root / "predictions.jsonl"
    flags = ["--weights", trained / "net.pth", "--image_dir", odd.odd, "--output", output, "--device", "cpu"]
    flags += ["--save_images", odd.root / "copies"]
    assert inference.main([str(flag) for flag in flags]) == 1
    predictions = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    names = names_below(odd.odd, (prediction["file"] for prediction in predictions))
    reasons = {
        name: prediction["error"]
        for name, prediction in zip(names, predictions, strict=True)
        if prediction.get("error")
    }
    check_reasons(odd, reasons, "`inference.py`", "error")
    assert set(names) - set(reasons) == odd.by("`inference.py`", "classified")
    copies = [path for path in (odd.root / "copies").rglob("*") if path.is_file()]
    assert len(copies) == len(odd.by("`inference.py`", "classified"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(predictions) + 1  # a line break in a name makes no line of its own


def test_doctor(odd: Corpus, config: Path) -> None:
    flags = ["--config", config, "--skip_step", "--workers", 0, "--output", odd.root / "doctor"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert doctor.main([str(flag) for flag in flags]) == 1
    report = json.loads((odd.root / "doctor" / "doctor.json").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for finding in report["findings"]:
        for image in (image for group in finding["groups"] for image in group):
            found.setdefault(image["path"].removeprefix(f"{odd.odd.as_posix()}/"), set()).add(finding["kind"])
    for row, cells in table().items():
        expected = set() if cells["doctor"] == "-" else set(cells["doctor"].split("; "))
        for name in odd.rows[row]:
            assert found.get(name, set()) - {"shape"} == expected, name


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with serving(write_page(tmp_path_factory.mktemp("page"))) as one:
        yield one


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of odd metadata; `serve` ignores it too
def test_service(odd: Corpus, served: RunningService) -> None:
    for row, cells in table().items():
        for name, data in odd.rows[row].items():
            status, response, _ = served.send(body={"content": base64_of(data)})
            if cells["service"] == NO_NAME:
                continue
            assert str(status) == cells["service"], (name, response)
            if status != 200:
                assert response["msg"].startswith(f"content: {cells['handling']}"), (name, response)
