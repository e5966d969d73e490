"""Micro-batching: order, batches, limits, cancelled requests, and that no image stays in memory."""

import asyncio
import base64
import io
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import ImageError, Preprocess
from deploy.backends.base import BackendError, HeatMap
from deploy.inference import predictor
from deploy.inference.predictor import Predictor, Prepared
from deploy.service import image_decoder
from deploy.service.admission import QueueFullError
from deploy.service.batching import MicroBatcher
from deploy.service.heatmaps import HeatMaps
from deploy.service.image_decoder import DecodingError, ImageDecoder
from tests.helpers.serving import METADATA, PATIENCE_S, GatedBackend, png


@contextmanager
def batching(
    backend: GatedBackend, metadata: ModelMetadata = METADATA, decoder: ImageDecoder | None = None, **changes: Any
) -> Iterator[MicroBatcher]:
    values = {"batch_size": 4, "queue_size": 100, "workers": 2, "topk": 2, **changes}
    decoder = decoder or ImageDecoder(metadata, 10**6, 10**9, values["workers"], PATIENCE_S)
    batcher = MicroBatcher(Predictor(backend, metadata), decoder, **values)
    try:
        yield batcher
    finally:
        backend.gate.set()
        batcher.close()
        decoder.close()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


# --- predictions and batches


def test_predictions_are_the_predictors_in_order() -> None:
    backend = GatedBackend()
    requests = [[png(value + 7 * index) for index in range(count)] for value, count in ((0, 3), (100, 1), (200, 5))]
    decode = METADATA.preprocess.decode
    expected = [Predictor(GatedBackend(), METADATA).predict_images(list(map(decode, r)), 2) for r in requests]

    async def main() -> None:
        predictions = await asyncio.gather(*map(batcher.submit, requests))
        for got, wanted in zip(predictions, expected, strict=True):
            assert [(a.label, a.class_name, a.file, a.error) for a in got] == [
                (a.label, a.class_name, "", "") for a in wanted
            ]
            assert [a.score for a in got] == pytest.approx([a.score for a in wanted])
            assert [len(a.top_k) for a in got] == [2] * len(wanted)
        assert batcher.held == 0

    with batching(backend) as batcher:
        run(main)
    assert backend.threads == {"net"}
    assert sum(backend.sizes) == 9


@pytest.mark.parametrize(
    ("name", "precision", "batch_size", "sizes"),
    [
        ("fake", "fp32", 4, [1, 4, 3]),
        ("fake", "fp32", 32, [1, 7]),
        ("fake", "fp32", 1, [1] * 8),
        ("fake", "int8", 32, [1, 7]),
        ("openvino", "int8", 32, [1, 4, 2, 1]),  # programs for powers of two: nothing is filled up
        ("openvino", "int8", 6, [1, 4, 2, 1]),
    ],
)
def test_images_that_wait_make_the_next_batch(name: str, precision: str, batch_size: int, sizes: list[int]) -> None:
    backend = GatedBackend(name)
    counts: list[int] = []
    metadata = ModelMetadata(METADATA.class_names, METADATA.preprocess, METADATA.net, precision=precision)

    async def main() -> None:
        backend.gate.clear()
        first = batcher.submit([png()])
        await until(backend.entered.is_set)
        others = [batcher.submit([png()]) for _ in range(7)]
        await until(lambda: len(batcher._ready) == 7)
        backend.gate.set()
        await asyncio.gather(first, *others)

    with batching(backend, metadata, batch_size=batch_size, on_batch=lambda count, _: counts.append(count)) as batcher:
        run(main)
    assert backend.sizes == counts == sizes


def test_predictions_and_outputs_share_a_batch() -> None:
    backend = GatedBackend()
    pixels = np.stack([np.full((3, 8, 8), value, np.float32) for value in (-1, 1)])

    async def main() -> None:
        backend.gate.clear()
        first = batcher.submit([png()])
        await until(backend.entered.is_set)
        predictions, outputs = batcher.submit([png(0), png(250)]), batcher.submit_for_outputs(pixels)
        damaged = batcher.submit_for_outputs([b"text"])
        await until(lambda: len(batcher._ready) == 4)
        backend.gate.set()
        assert [found.class_name for found in await predictions] == ["dark", "bright"]
        assert np.array_equal(await outputs, [[1, -1, 0], [-1, 1, 0]])
        assert "it is not an image of a known format" in (await damaged)[0].error
        await first

    with batching(backend) as batcher:
        run(main)
    assert backend.sizes == [1, 4]


def test_a_batch_waits_for_more_images_with_batch_wait_ms_only() -> None:
    async def at_once() -> None:
        backend.gate.clear()
        first = batcher.submit([png()])
        await until(backend.entered.is_set)  # with one image, although the batch has room for four
        second = batcher.submit([png()])
        backend.gate.set()
        await asyncio.gather(first, second)

    async def patiently() -> None:
        first = batcher.submit([png()])
        await until(lambda: len(batcher._ready) == 1)
        await asyncio.sleep(0.05)
        await asyncio.gather(first, batcher.submit([png()]))

    backend = GatedBackend()
    with batching(backend) as batcher:
        run(at_once)
    assert backend.sizes == [1, 1]
    backend = GatedBackend()
    with batching(backend, batch_size=2, batch_wait_ms=10**6) as batcher:
        run(patiently)  # full long before the time is over
    assert backend.sizes == [2]
    with batching(backend, batch_size=2, batch_wait_ms=100) as batcher:
        started = time.perf_counter()

        async def main() -> None:
            await batcher.submit([png()])

        run(main)
        assert time.perf_counter() - started > 0.1


def test_the_warm_up_runs_every_batch_size_in_the_nets_thread() -> None:
    backend = GatedBackend()
    with batching(backend, batch_size=6) as batcher:
        assert batcher.warm_up().class_name == "bright"  # mid grey lies a little above ImageNet's mean
    assert backend.sizes == [1, 2, 4, 6, 6]
    assert backend.threads == {"net"}


# --- errors and limits


def test_a_damaged_image_does_not_affect_the_others() -> None:
    async def main() -> None:
        other = batcher.submit([png(250)])
        predictions = await batcher.submit([png(0), b"", png(250), b"GIF89a"])
        assert [prediction.class_name for prediction in predictions] == ["dark", "", "bright", ""]
        assert predictions[1].error == "it is empty (0 bytes)"
        assert "not an image of a known format" in predictions[3].error or "damaged" in predictions[3].error
        assert (await other)[0].class_name == "bright"
        only_bad = await batcher.submit([b"", b"x"])
        assert all(prediction.error for prediction in only_bad)
        assert batcher.held == 0

    with batching(GatedBackend()) as batcher:
        run(main)


def test_a_full_queue_admits_no_image_of_a_request() -> None:
    backend = GatedBackend()

    async def main() -> None:
        backend.gate.clear()
        taken = [batcher.submit([png()]), batcher.submit([png()] * 2)]
        assert batcher.is_ready()
        with pytest.raises(QueueFullError):
            batcher.submit([png()] * 2)
        assert batcher.held == 3 and not batcher.is_ready()
        with pytest.raises(QueueFullError):
            batcher.check_room()
        backend.gate.set()
        assert [len(predictions) for predictions in await asyncio.gather(*taken)] == [1, 2]
        assert batcher.held == 0 and batcher.is_ready()

    with batching(backend, queue_size=4) as batcher:
        run(main)


@pytest.mark.parametrize("failure", [BackendError("no memory"), RuntimeError("a bug")])
def test_a_failure_of_the_net_fails_its_requests_only(failure: Exception) -> None:
    backend = GatedBackend()

    async def main() -> None:
        backend.failure = failure
        results = await asyncio.gather(*(batcher.submit([png()] * 3) for _ in range(3)), return_exceptions=True)
        assert results == [failure] * 3
        backend.failure = None
        assert (await batcher.submit([png(250)]))[0].class_name == "bright"
        await until(lambda: batcher.held == 0)

    with batching(backend) as batcher:
        run(main)


def test_a_bug_while_decoding_fails_the_request_and_nothing_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(ImageDecoder, "prepare", lambda *_, **__: divmod(1, 0))
            with pytest.raises(ZeroDivisionError):
                await batcher.submit([png()] * 3)
            await until(lambda: batcher.held == 0)
        assert not (await batcher.submit([png()]))[0].error

    with batching(GatedBackend()) as batcher:
        run(main)


# --- cancelled requests


def test_cancelled_requests_are_skipped_and_leave_nothing() -> None:
    backend = GatedBackend()

    async def main() -> None:
        backend.gate.clear()
        first = batcher.submit([png()])
        await until(backend.entered.is_set)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(batcher.submit([png()] * 5), 0.05)
        leaving, staying = batcher.submit([png()] * 2), batcher.submit([png(250)])
        await until(lambda: len(batcher._ready) == 8)
        leaving.cancel()
        backend.gate.set()
        await asyncio.gather(first, staying)
        await until(lambda: batcher.held == 0)

    with batching(backend, batch_size=16) as batcher:
        run(main)
        assert backend.sizes == [1, 1]  # of the eight that were ready, one
        assert not batcher._ready


def test_no_image_outlives_its_prediction() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    prepare = predictor.prepare

    def noted(*args: Any) -> np.ndarray:
        pixels = prepare(*args)
        alive.append(weakref.ref(pixels))
        return pixels

    async def main() -> None:
        for _ in range(5):
            predictions = await batcher.submit([png()] * 10)
            assert len(predictions) == 10
        assert len(alive) == 50
        await until(lambda: not [ref for ref in alive if ref() is not None])

    with pytest.MonkeyPatch.context() as patch, batching(GatedBackend()) as batcher:
        patch.setattr("deploy.inference.predictor.prepare", noted)
        run(main)


def test_closing_finishes_the_queue_and_ends_the_threads() -> None:
    backend = GatedBackend()
    before = threading.active_count()

    async def main() -> None:
        backend.gate.clear()
        waiting = [batcher.submit([png()] * 3) for _ in range(4)]
        await until(backend.entered.is_set)
        threading.Timer(0.1, backend.gate.set).start()
        await asyncio.to_thread(batcher.close)
        assert [len(predictions) for predictions in await asyncio.gather(*waiting)] == [3] * 4

    with batching(backend) as batcher:
        run(main)
    assert threading.active_count() == before


def test_an_event_loop_that_has_ended_stops_nothing() -> None:
    backend = GatedBackend()

    async def leave() -> None:
        backend.gate.clear()
        batcher.submit([png()])
        await until(backend.entered.is_set)

    async def main() -> None:
        assert len(await batcher.submit([png()])) == 1

    with batching(backend) as batcher:
        asyncio.run(leave())
        backend.gate.set()
        run(main)


def test_calls_run_in_the_nets_thread_between_batches() -> None:
    backend = GatedBackend()

    async def main() -> None:
        backend.gate.clear()
        first = batcher.submit([png()])
        await until(backend.entered.is_set)
        calls = [batcher.in_net_thread(lambda n: (threading.current_thread().name, n), n) for n in range(3)]
        failing = batcher.in_net_thread(divmod, 1, 0)
        assert calls[1].cancel()
        backend.gate.set()
        await first
        assert [await asyncio.wrap_future(calls[i]) for i in (0, 2)] == [("net", 0), ("net", 2)]
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(failing)
        assert batcher.in_pool(lambda: threading.current_thread().name).result().startswith("decode")

    with batching(backend) as batcher:
        run(main)


# --- decoding


def test_large_images_are_decoded_one_at_a_time_and_delay_no_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoder, "MIN_SMALL_PIXELS", 100)
    original = ImageDecoder.prepare
    at_once, max_at_once, proceed = 0, 0, threading.Event()

    def slow(decoder: ImageDecoder, data: bytes, *, may_be_large: bool) -> Prepared | None:
        nonlocal at_once, max_at_once
        prepared = original(decoder, data, may_be_large=may_be_large)  # None for a large one at the first try
        if may_be_large:
            at_once += 1
            max_at_once = max(max_at_once, at_once)
            assert proceed.wait(PATIENCE_S)
            time.sleep(0.01)
            at_once -= 1
        return prepared

    async def main() -> None:
        large = [batcher.submit([png(size=(40, 50))]) for _ in range(5)]
        small = await asyncio.gather(*(batcher.submit([png(size=(10, 10))]) for _ in range(5)))
        assert not any(predictions[0].error for predictions in small)
        proceed.set()
        assert not any(predictions[0].error for predictions in await asyncio.gather(*large))
        error = (await batcher.submit([png(size=(40, 51))]))[0].error
        assert error == "40x51 is more than max_pixels (2000) allows"

    monkeypatch.setattr(ImageDecoder, "prepare", slow)
    # 40 bytes a pixel: 2000 for the large one, and 100 for each of two workers
    decoder = ImageDecoder(METADATA, max_pixels=2000, memory_bytes=40 * 2200, workers=2, timeout_s=PATIENCE_S)
    with batching(GatedBackend(), decoder=decoder) as batcher:
        run(main)
    assert max_at_once == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_heat_maps_of_small_and_large_images(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoder, "MIN_SMALL_PIXELS", 100)
    metadata = ModelMetadata(METADATA.class_names, Preprocess(8, 8, channels), METADATA.net)
    decoder = ImageDecoder(metadata, max_pixels=2000, memory_bytes=40 * 2100, workers=1, timeout_s=PATIENCE_S)
    calls: list[tuple[tuple[int, ...], int, str]] = []

    def mapper(image: np.ndarray, label: int) -> HeatMap:
        calls.append((image.shape, label, threading.current_thread().name))
        return HeatMap(np.eye(8, dtype=np.float32))

    async def main() -> None:
        heatmaps = HeatMaps(mapper, metadata, decoder, batcher, 1)
        for size in ((8, 10), (50, 40)):
            url = await heatmaps.data_url(png(size=size), 2)
            drawn = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
            assert drawn.format == "JPEG" and drawn.width * size[1] == drawn.height * size[0]
            assert len(set(drawn.convert("L").tobytes())) > 20  # the map is visible on a plain image
        with pytest.raises(ImageError, match="more than max_pixels"):
            await heatmaps.data_url(png(size=(50, 41)), 2)

    with batching(GatedBackend(), metadata, decoder) as batcher:
        run(main)
    assert calls == [((channels, 8, 8), 2, "net")] * 2


def test_a_damaged_avif_is_an_image_error() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(file, "AVIF")
    half = len(file.getvalue()) // 2
    data = file.getvalue()[:half] + bytes(half)
    assert error_of(data, METADATA).startswith("it is damaged: Failed to decode ")


def test_the_nets_own_pixel_limit_applies_as_well() -> None:
    metadata = ModelMetadata(METADATA.class_names, Preprocess(8, 8, max_pixels=50), {})
    assert error_of(png(size=(10, 10)), metadata) == "10x10 is more than max_pixels (50) allows"


def error_of(data: bytes, metadata: ModelMetadata) -> str:
    with closing(ImageDecoder(metadata, 10**6, 10**9, 1, PATIENCE_S)) as decoder:
        prepared = decoder.prepare(data, may_be_large=True)
        assert prepared is not None
        return prepared.error


def test_too_little_memory_to_decode_is_an_error_that_names_the_minimum() -> None:
    message = r"--decode_memory_mb must be at least 420 for images of 10 megapixels and 2 workers, got 419"  # 40 * 10.5
    with pytest.raises(DecodingError, match=message):
        ImageDecoder(METADATA, 10 * 10**6, 419 * 10**6, 2, 10.0)
    ImageDecoder(METADATA, 10 * 10**6, 420 * 10**6, 2, 10.0)
