"""The trials of `tools.soak`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import BenchmarkError
from tools.loadtest.generators import LOST, Outcome, closed_loop, drip, harass, read_response, steady
from tools.loadtest.http_client import make_image, make_request
from tools.loadtest.service_process import Service, memory_mb
from tools.soak.large_uploads import UploadThread, large_uploads

PATH = "/predict"
CLIENTS = 32
WARM_UP_S = 60.0  # of the soak trial, before the memory is first measured
HOSTILE_SHARE = 0.1
SLOW_CLIENTS = 500
PAUSE_S, PAUSES, WORK_S = 1.0, 4, 4.0  # SIGSTOP for PAUSE_S, PAUSES times, with WORK_S between two


@dataclass(frozen=True)
class Finding:
    """A measurement of a trial, and its upper limit."""

    trial: str
    what: str
    figure: float
    limit: float

    def is_within(self) -> bool:
        """Return whether the limit is met."""
        return self.figure <= self.limit


def soak(args: argparse.Namespace) -> Iterator[Finding]:
    """70 % of the saturation for a long time, and hostile requests."""
    with _service(args) as service:
        rate = 0.7 * _saturation(service, args.seconds)[0]
        asyncio.run(_with_hostile(service.port, rate, min(WARM_UP_S, args.minutes * 30)))
        before, files = memory_mb(service.process.pid), _open_files(service)
        outcomes, faults = asyncio.run(_with_hostile(service.port, rate, args.minutes * 60))
        time.sleep(2)  # the connections of the last requests are closed
        growth = (memory_mb(service.process.pid) / before - 1) * 100
        refused = {number: outcome for number, outcome in enumerate(outcomes) if outcome.status == 503}
        others = {number: outcome for number, outcome in enumerate(outcomes) if outcome.status not in (200, 503)}
        honest = f"of {len(outcomes)} honest requests at {rate:.0f}/s"
        yield Finding("soak", f"refused with 503 {honest}{_when(refused, rate)}", len(refused), 0)
        yield Finding("soak", f"lost, or with another code, {honest}{_when(others, rate)}", len(others), 0)
        number = int(HOSTILE_SHARE * rate * args.minutes * 60)
        yield Finding("soak", f"5xx but 503, of {number} hostile requests", faults, 0)
        yield Finding("soak", f"memory growth, % of {before:.0f} MB", growth, 2)
        yield Finding("soak", "file descriptors gained", _open_files(service) - files, 0)


def overload(args: argparse.Namespace) -> Iterator[Finding]:
    """Twice the saturation."""
    with _service(args) as service:
        rate, normal = _saturation(service, args.seconds)
        outcomes = asyncio.run(steady(service.port, _requests(), 2 * rate, args.seconds))
    accepted = [outcome for outcome in outcomes if outcome.status == 200]
    refused = [outcome for outcome in outcomes if outcome.status == 503]
    others = len(outcomes) - len(accepted) - sum(outcome.has_retry_after for outcome in refused)
    yield Finding("overload", f"neither 200 nor 503 with Retry-After, of {len(outcomes)}", others, 0)
    yield Finding("overload", f"p99 of {len(accepted)} responses, ms", _p99_ms(accepted), 2 * normal)
    yield Finding("overload", f"p99 of {len(refused)} refusals, ms", _p99_ms(refused), 50)


def pause(args: argparse.Namespace) -> Iterator[Finding]:
    """70 % of the saturation, while the process is paused now and then."""

    async def pauses(service: Service) -> None:
        for _ in range(PAUSES):
            await asyncio.sleep(WORK_S)
            service.signal(signal.SIGSTOP)
            await asyncio.sleep(PAUSE_S)
            service.signal(signal.SIGCONT)

    async def run(service: Service, rate: float) -> list[Outcome]:
        honest = steady(service.port, _requests(), rate, PAUSES * (PAUSE_S + WORK_S) + WORK_S)
        outcomes, _ = await asyncio.gather(honest, pauses(service))
        return outcomes

    with _service(args) as service:
        outcomes = asyncio.run(run(service, 0.7 * _saturation(service, args.seconds)[0]))
    what = f"refused or lost, of {len(outcomes)} requests, with {PAUSES} pauses of {PAUSE_S:.0f} s"
    yield Finding("pause", what, _failures(outcomes), 0)


def slow(args: argparse.Namespace) -> Iterator[Finding]:
    """Hundreds of clients that send a byte a second, and a few honest ones."""

    async def run(port: int) -> list[Outcome]:
        clients = [asyncio.create_task(drip(port, args.seconds + 2)) for _ in range(SLOW_CLIENTS)]
        await asyncio.sleep(2)
        outcomes = await closed_loop(port, _requests(8), _until(args.seconds))
        await asyncio.gather(*clients)
        return outcomes

    with _service(args) as service:
        asyncio.run(closed_loop(service.port, _requests(8), _until(2.0)))
        alone = asyncio.run(closed_loop(service.port, _requests(8), _until(args.seconds)))
        outcomes = asyncio.run(run(service.port))
    yield Finding("slow", f"errors of {len(outcomes)} honest requests", _failures(outcomes), 0)
    yield Finding("slow", f"honest p99 with {SLOW_CLIENTS} slow clients, ms", _p99_ms(outcomes), 1.2 * _p99_ms(alone))


def stop(args: argparse.Namespace) -> Iterator[Finding]:
    """SIGTERM in the middle of a thousand requests."""
    failures: list[float] = []

    async def run(service: Service) -> list[Outcome]:
        is_signalled = False

        def is_over(outcomes: list[Outcome]) -> bool:
            nonlocal is_signalled
            if len(outcomes) >= 500 and not is_signalled:
                is_signalled = True
                service.signal(signal.SIGTERM)
            return len(outcomes) >= 1000

        watch = asyncio.create_task(_watch_readiness(service.port, failures))
        outcomes = await closed_loop(service.port, _requests(), is_over)
        await watch
        return outcomes

    with _service(args, "--drain_s", "10") as service:
        outcomes = asyncio.run(run(service))
        started = time.perf_counter()
        with contextlib.suppress(Exception):
            service.process.wait(60)
        lasted, code = time.perf_counter() - started, service.process.returncode
    yield Finding("stop", f"lost, of {len(outcomes)} requests", _failures(outcomes), 0)
    yield Finding("stop", "readiness did not fail before the port closed", len(failures) != 2, 0)
    yield Finding("stop", f"exit code, {lasted:.1f} s later", 1 if code is None else abs(code), 0)


def uploads(args: argparse.Namespace) -> Iterator[Finding]:
    """Bodies of a megabyte, each of another kind."""
    max_mb, max_s = 0.0, 0.0
    with _service(args) as service:
        for body, kind in large_uploads():
            started = time.perf_counter()
            UploadThread(service.port, PATH, body, kind).wait()
            max_s = max(max_s, time.perf_counter() - started)
            before, upload = memory_mb(service.process.pid), UploadThread(service.port, PATH, body, kind)
            while not upload.is_done():  # reading the memory stops the process: this upload is not timed
                max_mb = max(max_mb, memory_mb(service.process.pid) - before)
                time.sleep(0.02)
    yield Finding("uploads", "memory added by a body of 1 MB, MB", max_mb, 300)
    yield Finding("uploads", "longest response, s", max_s, 1)


def equal(args: argparse.Namespace) -> Iterator[Finding]:
    """Predictions under load compared with those of the same files offline."""
    from deploy.backends.loading import load_backend
    from deploy.inference.predictor import Predictor
    from deploy.service.routes import native_entry

    backend, metadata = load_backend(args.weights, device="auto")
    images = [make_image(number) for number in range(CLIENTS)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(CLIENTS)]
        for path, content in zip(paths, images, strict=True):
            path.write_bytes(content)
        offline = list(Predictor(backend, metadata).predict_files(map(str, paths), batch_size=1))
    with _service(args) as service:
        served = asyncio.run(_entries(service.port, images))
    entries = [json.loads(json.dumps(native_entry(prediction, metadata, {}))) for prediction in offline]
    pairs = list(zip(served, entries, strict=True))
    different = sum(one["class"] != two["class"] for one, two in pairs)
    difference = max(abs(one["score"] - two["score"]) for one, two in pairs)
    yield Finding("equal", f"different classes than offline, of {CLIENTS} at once", different, 0)
    yield Finding("equal", "largest difference of a score", difference, 0)


TRIALS: dict[str, Callable[[argparse.Namespace], Iterator[Finding]]] = {
    "soak": soak,
    "overload": overload,
    "pause": pause,
    "slow": slow,
    "stop": stop,
    "uploads": uploads,
    "equal": equal,
}


@contextmanager
def _service(args: argparse.Namespace, *flags: str) -> Iterator[Service]:
    command = [sys.executable, "-m", "deploy.service", "--weights", str(args.weights), "--service_port", "{port}"]
    service = Service("deploy.service", [*command, *flags, *args.service_flags.split()], "/readyz")
    try:
        yield service
    finally:
        service.close()


def _requests(count: int = CLIENTS) -> list[bytes]:
    return [make_request(PATH, make_image(number)) for number in range(count)]


def _saturation(service: Service, seconds: float) -> tuple[float, float]:
    """Return the requests a second of CLIENTS clients, and their p99 in ms."""
    asyncio.run(closed_loop(service.port, _requests(), _until(2.0)))  # to warm up
    outcomes = asyncio.run(closed_loop(service.port, _requests(), _until(seconds)))
    if _failures(outcomes):
        raise BenchmarkError(f"{_failures(outcomes)} of {len(outcomes)} requests of {CLIENTS} clients failed")
    return len(outcomes) / seconds, _p99_ms(outcomes)


def _until(seconds: float) -> Callable[[list[Outcome]], bool]:
    end = time.perf_counter() + seconds
    return lambda outcomes: time.perf_counter() > end


async def _with_hostile(port: int, rate: float, seconds: float) -> tuple[list[Outcome], int]:
    honest = steady(port, _requests(), rate, seconds)
    return await asyncio.gather(honest, harass(port, HOSTILE_SHARE * rate, seconds))


async def _watch_readiness(port: int, failures: list[float]) -> None:
    """Record when /readyz first fails, and when the port is closed."""
    request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            failures.append(time.perf_counter())
            return
        with contextlib.suppress(OSError, EOFError):
            writer.write(request)
            head, _ = await read_response(reader)
            if head[9:12] == b"503" and not failures:
                failures.append(time.perf_counter())
        writer.close()
        await asyncio.sleep(0.01)


async def _entries(port: int, images: Sequence[bytes]) -> list[dict[str, object]]:
    async def one(content: bytes) -> dict[str, object]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(make_request(PATH, content))
        _, body = await read_response(reader)
        writer.close()
        entry: dict[str, object] = json.loads(body)["data"][0]
        return entry

    return list(await asyncio.gather(*map(one, images)))


def _failures(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.status != 200 for outcome in outcomes)


def _when(outcomes: Mapping[int, Outcome], rate: float) -> str:
    """Return when these requests were sent, by their numbers at a rate (1/s), and how late at most."""
    if not outcomes:
        return ""
    first, last, late_s = min(outcomes) / rate, max(outcomes) / rate, max(each.late_s for each in outcomes.values())
    return f" (sent {first:.0f} to {last:.0f} s after the first, up to {late_s:.1f} s after they were due)"


def _p99_ms(outcomes: Sequence[Outcome]) -> float:
    seconds = [outcome.seconds for outcome in outcomes if outcome.status != LOST]
    return float(np.percentile(seconds, 99)) * 1000 if seconds else 0.0


def _open_files(service: Service) -> int:
    return sum(1 for _ in Path(f"/proc/{service.process.pid}/fd").iterdir())
