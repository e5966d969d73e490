"""`python -m tools.soak --weights F`: the service under load for as long as it takes, with hostile senders beside.

Each trial prints what it found beside what is promised; the exit code is 1 where a promise was not held.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gc
import io
import json
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import BenchmarkError
from tools.loadtest.generators import LOST, Outcome, answer_of, closed_loop, drip, harass, steady
from tools.loadtest.http_client import image, request
from tools.loadtest.service_process import Service, memory_mb

PATH = "/predict"
CLIENTS = 32
WARM_S = 60.0  # of the long trial, before its memory is first looked at
HOSTILE_SHARE = 0.1
SLOW_SENDERS = 500
PAUSE_S, PAUSES, WORK_S = 1.0, 4, 4.0  # the process stands still, so often, and works between two pauses
MEGABYTE = 10**6


@dataclass(frozen=True)
class Finding:
    """One line of the table: a figure, and what it may be at most."""

    trial: str
    what: str
    figure: float
    limit: float

    def is_held(self) -> bool:
        """Say whether the promise was kept."""
        return self.figure <= self.limit


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--weights", metavar="F", type=Path, required=True, help="a checkpoint, or any export of it")
    add("--minutes", metavar="N", type=float, default=30.0, help="of the long trial (default 30)")
    add("--seconds", metavar="N", type=float, default=20.0, help="of each other trial (default 20)")
    add("--trials", nargs="+", choices=tuple(TRIALS), default=list(TRIALS), help="default all")
    add("--service_flags", metavar="TEXT", default="", help='further flags of the service, e.g. "--queue 32"')
    add("--json", metavar="F", type=Path, help="write the findings as well")
    args = parser.parse_args(argv)
    findings = []
    try:
        for name in args.trials:
            for finding in TRIALS[name](args):
                sign = "held    " if finding.is_held() else "NOT HELD"
                print(
                    f"{sign} {finding.trial:9} {finding.what}: {finding.figure:.4g} (at most {finding.limit:.4g})",
                    flush=True,
                )
                findings.append(finding)
    except BenchmarkError as error:
        print(f"python -m tools.soak: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", encoding="utf-8")
    return 0 if all(finding.is_held() for finding in findings) else 1


def soak(args: argparse.Namespace) -> Iterator[Finding]:
    """Seven tenths of the saturation for a long time, with hostile requests beside."""
    with _service(args) as service:
        rate = 0.7 * _saturation(service, args.seconds)[0]
        asyncio.run(_with_hostile(service.port, rate, min(WARM_S, args.minutes * 30)))
        before, files = memory_mb(service.process.pid), _open_files(service)
        outcomes, faults = asyncio.run(_with_hostile(service.port, rate, args.minutes * 60))
        time.sleep(2)  # what the last requests have opened is closed again
        growth = (memory_mb(service.process.pid) / before - 1) * 100
        refused = {number: outcome for number, outcome in enumerate(outcomes) if outcome.status == 503}
        others = {number: outcome for number, outcome in enumerate(outcomes) if outcome.status not in (200, 503)}
        honest = f"of {len(outcomes)} honest requests at {rate:.0f}/s"
        yield Finding("soak", f"refused with 503 {honest}{_when(refused, rate)}", len(refused), 0)
        yield Finding("soak", f"lost or answered otherwise {honest}{_when(others, rate)}", len(others), 0)
        number = int(HOSTILE_SHARE * rate * args.minutes * 60)
        yield Finding("soak", f"5xx but 503, of {number} hostile requests", faults, 0)
        yield Finding("soak", f"memory growth, % of {before:.0f} MB", growth, 2)
        yield Finding("soak", "file descriptors gained", _open_files(service) - files, 0)


def overload(args: argparse.Namespace) -> Iterator[Finding]:
    """Twice what it can answer."""
    with _service(args) as service:
        rate, normal = _saturation(service, args.seconds)
        outcomes = asyncio.run(steady(service.port, _requests(), 2 * rate, args.seconds))
    taken = [outcome for outcome in outcomes if outcome.status == 200]
    refused = [outcome for outcome in outcomes if outcome.status == 503]
    others = len(outcomes) - len(taken) - sum(outcome.has_retry_after for outcome in refused)
    yield Finding("overload", f"neither 200 nor 503 with Retry-After, of {len(outcomes)}", others, 0)
    yield Finding("overload", f"p99 of {len(taken)} answers, ms", _p99_ms(taken), 2 * normal)
    yield Finding("overload", f"p99 of {len(refused)} refusals, ms", _p99_ms(refused), 50)


def pause(args: argparse.Namespace) -> Iterator[Finding]:
    """Seven tenths of the saturation, while the process is stopped now and then."""

    async def stopped(service: Service) -> None:
        for _ in range(PAUSES):
            await asyncio.sleep(WORK_S)
            service.signal(signal.SIGSTOP)
            await asyncio.sleep(PAUSE_S)
            service.signal(signal.SIGCONT)

    async def beside(service: Service, rate: float) -> list[Outcome]:
        honest = steady(service.port, _requests(), rate, PAUSES * (PAUSE_S + WORK_S) + WORK_S)
        outcomes, _ = await asyncio.gather(honest, stopped(service))
        return outcomes

    with _service(args) as service:
        outcomes = asyncio.run(beside(service, 0.7 * _saturation(service, args.seconds)[0]))
    what = f"refused or lost, of {len(outcomes)} requests, beside {PAUSES} pauses of {PAUSE_S:.0f} s"
    yield Finding("pause", what, _bad(outcomes), 0)


def slow(args: argparse.Namespace) -> Iterator[Finding]:
    """Hundreds that send a byte a second, beside a few honest clients."""

    async def beside(port: int) -> list[Outcome]:
        senders = [asyncio.create_task(drip(port, args.seconds + 2)) for _ in range(SLOW_SENDERS)]
        await asyncio.sleep(2)
        outcomes = await closed_loop(port, _requests(8), _until(args.seconds))
        await asyncio.gather(*senders)
        return outcomes

    with _service(args) as service:
        asyncio.run(closed_loop(service.port, _requests(8), _until(2.0)))
        alone = asyncio.run(closed_loop(service.port, _requests(8), _until(args.seconds)))
        outcomes = asyncio.run(beside(service.port))
    yield Finding("slow", f"errors of {len(outcomes)} honest requests", _bad(outcomes), 0)
    yield Finding("slow", f"honest p99 beside {SLOW_SENDERS} slow senders, ms", _p99_ms(outcomes), 1.2 * _p99_ms(alone))


def stop(args: argparse.Namespace) -> Iterator[Finding]:
    """SIGTERM in the middle of a thousand requests."""
    unready: list[float] = []

    async def stopped(service: Service) -> list[Outcome]:
        is_told = False

        def is_over(outcomes: list[Outcome]) -> bool:
            nonlocal is_told
            if len(outcomes) >= 500 and not is_told:
                is_told = True
                service.signal(signal.SIGTERM)
            return len(outcomes) >= 1000

        watch = asyncio.create_task(_readiness(service.port, unready))
        outcomes = await closed_loop(service.port, _requests(), is_over)
        await watch
        return outcomes

    with _service(args, "--drain_s", "10") as service:
        outcomes = asyncio.run(stopped(service))
        started = time.perf_counter()
        with contextlib.suppress(Exception):
            service.process.wait(60)
        lasted, code = time.perf_counter() - started, service.process.returncode
    yield Finding("stop", f"lost, of {len(outcomes)} requests", _bad(outcomes), 0)
    yield Finding("stop", "did not fail readiness before it let nobody in", len(unready) != 2, 0)
    yield Finding("stop", f"exit code, {lasted:.1f} s later", 1 if code is None else abs(code), 0)


def uploads(args: argparse.Namespace) -> Iterator[Finding]:
    """Bodies of a megabyte, each of another kind."""
    most_mb, most_s = 0.0, 0.0
    with _service(args) as service:
        for body, kind in _megabytes():
            started = time.perf_counter()
            _Asking(service.port, body, kind).wait()
            most_s = max(most_s, time.perf_counter() - started)
            before, asking = memory_mb(service.process.pid), _Asking(service.port, body, kind)
            while not asking.done():  # a look at the memory stops the process: it is not timed
                most_mb = max(most_mb, memory_mb(service.process.pid) - before)
                time.sleep(0.02)
    yield Finding("uploads", "memory added by a body of 1 MB, MB", most_mb, 300)
    yield Finding("uploads", "longest answer, s", most_s, 1)


def equal(args: argparse.Namespace) -> Iterator[Finding]:
    """Answers under load beside those of the files."""
    from deploy.backends.loading import load_backend
    from deploy.inference.predictor import Predictor
    from deploy.service.routes import native_entry

    backend, metadata = load_backend(args.weights, device="auto")
    images = [image(number) for number in range(CLIENTS)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(CLIENTS)]
        for path, content in zip(paths, images, strict=True):
            path.write_bytes(content)
        offline = list(Predictor(backend, metadata).predict_files(map(str, paths), batch_size=1))
    with _service(args) as service:
        served = asyncio.run(_answers(service.port, images))
    entries = [json.loads(json.dumps(native_entry(answer, metadata, {}))) for answer in offline]
    pairs = list(zip(served, entries, strict=True))
    other = sum(one["class"] != two["class"] for one, two in pairs)
    apart = max(abs(one["score"] - two["score"]) for one, two in pairs)
    yield Finding("equal", f"other classes than offline, of {CLIENTS} at once", other, 0)
    yield Finding("equal", "largest difference of a score", apart, 0)


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
    return [request(PATH, image(number)) for number in range(count)]


def _saturation(service: Service, seconds: float) -> tuple[float, float]:
    """Requests a second that 32 clients get answered, and their p99 in ms."""
    asyncio.run(closed_loop(service.port, _requests(), _until(2.0)))  # to warm up
    outcomes = asyncio.run(closed_loop(service.port, _requests(), _until(seconds)))
    if _bad(outcomes):
        raise BenchmarkError(f"{_bad(outcomes)} of {len(outcomes)} requests of {CLIENTS} clients were not answered")
    return len(outcomes) / seconds, _p99_ms(outcomes)


def _until(seconds: float) -> Callable[[list[Outcome]], bool]:
    end = time.perf_counter() + seconds
    return lambda outcomes: time.perf_counter() > end


async def _with_hostile(port: int, rate: float, seconds: float) -> tuple[list[Outcome], int]:
    honest = steady(port, _requests(), rate, seconds)
    return await asyncio.gather(honest, harass(port, HOSTILE_SHARE * rate, seconds))


async def _readiness(port: int, unready: list[float]) -> None:
    """Note when /readyz first fails, and when nobody is let in any more."""
    asked = b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            unready.append(time.perf_counter())
            return
        with contextlib.suppress(OSError, EOFError):
            writer.write(asked)
            head, _ = await answer_of(reader)
            if head[9:12] == b"503" and not unready:
                unready.append(time.perf_counter())
        writer.close()
        await asyncio.sleep(0.01)


async def _answers(port: int, images: Sequence[bytes]) -> list[dict[str, object]]:
    async def one(content: bytes) -> dict[str, object]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(PATH, content))
        _, body = await answer_of(reader)
        writer.close()
        entry: dict[str, object] = json.loads(body)["data"][0]
        return entry

    return list(await asyncio.gather(*map(one, images)))


class _Asking:
    """A request of urllib in a thread."""

    def __init__(self, port: int, body: bytes, kind: str) -> None:
        from concurrent.futures import ThreadPoolExecutor

        headers = {"content-type": kind}
        self._request = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", body, headers)
        self._pool = ThreadPoolExecutor(1)
        self._answer = self._pool.submit(self._ask)

    def done(self) -> bool:
        """Say whether the answer has come."""
        if self._answer.done():
            self._pool.shutdown()
            return True
        return False

    def wait(self) -> None:
        """Wait until the answer has come."""
        self._answer.result()
        self._pool.shutdown()

    def _ask(self) -> None:
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(self._request, timeout=60):
            pass


def _megabytes() -> Iterator[tuple[bytes, str]]:
    """Bodies of about a megabyte: large images, bombs, and forms and texts made to cost."""
    yield _in_json(_flat_png(7000, 3400)), "application/json"  # within 24 megapixels
    yield _in_json(_flat_png(20_000, 9_000)), "application/json"
    noise = np.random.default_rng(0).integers(0, 256, (560, 560, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    yield _in_json(file.getvalue()), "application/json"
    yield b'{"content": ' + b"[" * MEGABYTE, "application/json"
    yield b'{"content": "' + b"A" * MEGABYTE + b'"}', "application/json"
    yield b"&".join([b"a=b"] * (MEGABYTE // 4)), "application/x-www-form-urlencoded"
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'
    yield part * (MEGABYTE // len(part)), "multipart/form-data; boundary=x"


def _flat_png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def _in_json(content: bytes) -> bytes:
    """An image's request, filled up with blanks to a megabyte."""
    return json.dumps({"content": base64.b64encode(content).decode()}).encode().ljust(MEGABYTE)


def _bad(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.status != 200 for outcome in outcomes)


def _when(outcomes: Mapping[int, Outcome], rate: float) -> str:
    """About when these requests were sent, by their numbers, in seconds from the first of all."""
    if not outcomes:
        return ""
    first, last, late_s = min(outcomes) / rate, max(outcomes) / rate, max(each.late_s for each in outcomes.values())
    return f" (sent {first:.0f} to {last:.0f} s after the first, up to {late_s:.1f} s after they were due)"


def _p99_ms(outcomes: Sequence[Outcome]) -> float:
    answered = [outcome.seconds for outcome in outcomes if outcome.status != LOST]
    return float(np.percentile(answered, 99)) * 1000 if answered else 0.0


def _open_files(service: Service) -> int:
    return sum(1 for _ in Path(f"/proc/{service.process.pid}/fd").iterdir())


if __name__ == "__main__":
    gc.disable()  # to collect what half an hour leaves would hold requests back, which would then come all at once
    sys.exit(main())
