"""The service with --tiles: the masks and boxes of inference.py --tiles, for images of any size within the limits."""

from __future__ import annotations

import base64
import io
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.inference.mask_prediction import MaskPrediction
from deploy.inference.predictor import Predictor
from deploy.inference.tiles import DecodedImage, TiledPredictor, joining_bytes
from tests.helpers.masks_served import METADATA, PAIRS, BoxBackend, ChangeBackend
from tests.helpers.serving import GatedBackend, RunningService, base64_of, flags, running, wait

BATCH = 3


@dataclass
class BlurBackend:
    """Logits (N, 3, H, W): each the mean of a channel over a pixel and its two neighbours beside it."""

    name: str = "fake"
    device: str = "cpu"
    seconds: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.counts.append(len(images))
        time.sleep(self.seconds)
        wide = np.pad(images, ((0, 0), (0, 0), (0, 0), (1, 1)))
        return np.ascontiguousarray(wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:])


def picture(width: int, height: int) -> bytes:
    """Return a PNG of random colours."""
    file = io.BytesIO()
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def expected(predictor: TiledPredictor, folder: Path, *images: bytes) -> tuple[dict[str, object], bytes]:
    """Return the values and the mask's PNG, as inference.py --tiles writes them."""
    paths = []
    for number, content in enumerate(images):
        paths.append(str(folder / f"{number}.png"))
        Path(paths[-1]).write_bytes(content)
    source = paths[0] if len(paths) == 1 else (paths[0], paths[1])
    (prediction,) = [(found.values(), _png(found)) for found in predictor.predict_files([source], BATCH)]
    return prediction


def _png(prediction: object) -> bytes:
    assert isinstance(prediction, MaskPrediction)
    file = io.BytesIO()
    prediction.image().save(file, "PNG")
    return file.getvalue()


def mask_of(entry: dict[str, str]) -> bytes:
    return base64.b64decode(entry["mask"].removeprefix("data:image/png;base64,"))


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    predictor = TiledPredictor(BlurBackend(), METADATA, 0.25)
    limits = ("--max_megapixels", 1, "--decode_memory_mb", 60, "--tile_memory_mb", 2)
    with running(predictor, flags("--workers", 2, "--batch_size", BATCH, *limits)) as port:
        yield RunningService(port, GatedBackend())


@pytest.mark.parametrize("size", [(100, 70), (16, 16), (9, 5), (16, 300), (700, 40)])
def test_the_mask_is_that_of_inference_by_tiles(service: RunningService, size: tuple[int, int], tmp_path: Path) -> None:
    """(700, 40) takes more than the share of a small image of the 2 MB, and goes to the thread for large ones."""
    backend = BlurBackend()
    content = picture(*size)
    values, png = expected(TiledPredictor(backend, METADATA, 0.25), tmp_path, content)
    status, body, _ = service.send(body={"content": base64_of(content)})
    assert status == 200
    (entry,) = body["data"]
    assert {name: entry[name] for name in values} == values and (entry["width"], entry["height"]) == size
    assert mask_of(entry) == png


def test_images_of_one_request_keep_their_order(service: RunningService) -> None:
    sizes = [(33, 20), (700, 40), (16, 16), (50, 60)]
    status, body, _ = service.send(body={"content": [base64_of(picture(*size)) for size in sizes]})
    assert status == 200 and [(entry["width"], entry["height"]) for entry in body["data"]] == sizes
    assert service.is_empty()


def test_what_is_too_large_or_damaged_gets_a_sentence(service: RunningService) -> None:
    wide = "it is 3000x20: a row of its tiles takes 3 MB, and half of --tile_memory_mb is 1; send it in narrower parts"
    for content, text in (
        (picture(3000, 20), f"{wide}, or raise that limit"),
        (picture(1100, 1000), "1100x1000 is more than max_pixels (1000000) allows"),
        (picture(40, 40)[:-300], "it is damaged"),
    ):
        status, body, _ = service.send(body={"content": [base64_of(picture(20, 20)), base64_of(content)]})
        assert status == 422 and body["msg"].startswith(f"content[1]: {text}"), body["msg"]
    assert service.is_empty()


def test_the_memory_that_is_reckoned_is_taken_at_most() -> None:
    """Sums, means and what the next row needs are K float32 values of a row of tiles each; the rest is bytes."""
    assert joining_bytes((700, 40), METADATA) == 700 * 16 * (2 * 3 + 12 * 3 + 9) + 700 * 40 * 4
    assert joining_bytes((5, 5), METADATA) == joining_bytes((16, 16), METADATA)
    boxes = replace(METADATA, output="boxes", task="detection")
    assert joining_bytes((700, 40), boxes) == 700 * 16 * 6 + 700 * 40 * 4
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4000, 3), dtype=np.uint8)
    predictor = TiledPredictor(BlurBackend(), METADATA, 0.25)
    tracemalloc.start()
    predictor.predict_rows([DecodedImage(pixels)], BATCH)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 < (peak + pixels.nbytes) / joining_bytes((4000, 100), METADATA) < 1.02


def test_no_batch_has_more_tiles_and_a_request_that_is_given_up_ends_its_image() -> None:
    backend = BlurBackend()
    limits = flags("--workers", 1, "--batch_size", BATCH, "--request_timeout_s", 0.5)
    with running(TiledPredictor(backend, METADATA, 0.25), limits) as port:
        service = RunningService(port, GatedBackend())
        backend.counts, backend.seconds = [], 0.2
        status, body, _ = service.send(body={"content": base64_of(picture(40, 400))})  # 36 rows of 3 tiles, 7 s
        assert status == 503 and body["msg"].startswith("no response within 0.5 seconds")
        wait(service.is_empty)
        assert set(backend.counts) == {3} and len(backend.counts) < 10


def test_a_net_that_fails_fails_the_request_alone() -> None:
    class Broken(BlurBackend):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            outputs = super().__call__(images)
            return outputs[:, :2] if self.seconds and len(images) == 2 else outputs

    backend = Broken()
    with running(TiledPredictor(backend, METADATA, 0.25), flags("--workers", 1, "--batch_size", 3)) as port:
        service = RunningService(port, GatedBackend())
        backend.seconds = 0.001  # after the warm-up
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deploy.service.request_guard.logger.error", lambda *_: None)
            status, body, _ = service.send(body={"content": base64_of(picture(20, 16))})
        assert status == 503 and body["msg"] == "the net failed; try again later"
        assert service.send(body={"content": base64_of(picture(40, 40))})[0] == 200


def test_pairs_and_boxes_by_tiles(tmp_path: Path) -> None:
    before, after = picture(60, 40), picture(61, 40)
    with Image.open(io.BytesIO(after)) as wide:
        file = io.BytesIO()
        wide.crop((0, 0, 60, 40)).save(file, "PNG")
    pairs = TiledPredictor(ChangeBackend(), PAIRS, 0.5)
    values, png = expected(pairs, tmp_path, before, file.getvalue())
    with running(pairs, flags("--workers", 1, "--batch_size", BATCH)) as port:
        service = RunningService(port, GatedBackend())
        status, body, _ = service.send(body={"content": [base64_of(before), base64_of(file.getvalue())]})
        assert status == 200 and mask_of(body["data"][0]) == png
        assert body["data"][0]["shares"] == values["shares"]
        status, body, _ = service.send(body={"content": [base64_of(before), base64_of(after)]})
        assert status == 422 and body["msg"] == "content[0]: it is 60x40, but the second image is 61x40"
    metadata = replace(METADATA, output="boxes", task="detection", thresholds={"score": 0.5})
    with running(TiledPredictor(BoxBackend(), metadata, 0.0), flags("--workers", 1)) as port:
        status, body, _ = RunningService(port, GatedBackend()).send(body={"content": base64_of(picture(32, 16))})
        boxes = sorted(found["box"] for found in body["data"][0]["objects"])
        assert boxes == [[2, 10, 14, 15], [4, 4, 12, 8], [18, 10, 30, 15], [20, 4, 28, 8]]


def test_without_the_flag_images_are_resized() -> None:
    assert flags().tiles is None and flags("--tiles").tiles == 0.25 and flags("--tiles", 0.5).tiles == 0.5
    backend = BlurBackend()
    with running(Predictor(backend, METADATA), flags("--workers", 1)) as port:
        backend.counts = []
        assert RunningService(port, GatedBackend()).send(body={"content": base64_of(picture(100, 70))})[0] == 200
        assert backend.counts == [1]
