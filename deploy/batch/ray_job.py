"""All shards of a folder as a Ray Data job, on the machines of a Ray cluster that share a disk."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import inference
from common.errors import UserError
from common.formatting import first_line
from deploy.batch.processes import MOST_DEATHS, POLL_S, SIGNALLED, BatchError, died
from deploy.inference.shard_file import is_in_use
from deploy.inference.shards import Shard, shard_of

START = "--- a worker begins at a size of "  # of the shard's file, in bytes


def check_ray() -> None:
    """Raise UserError where ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs Ray: pip install -r requirements-ray.txt")


def run_ray(
    flags: Sequence[str],
    output: Path,
    shards: Sequence[Shard],
    at_once: int,
    log: Callable[[str], None],
    *,
    address: str | None = None,
    gpus: float = 0.0,
) -> None:
    """Run inference.py with these flags for each shard in Ray's workers, `at_once` at a time, until all are done.

    Ray starts a shard again whose worker has died, and it goes on where it was. `address` is the cluster's, None a
    cluster of this machine for this job; `gpus` is what a worker gets. Raises BatchError where a shard ends with a
    mistake, or MOST_DEATHS of its workers in turn have died without a new prediction.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers, unless told not to
    import ray
    import ray.data

    for shard in shards:
        _tries_file(shard.path(output)).unlink(missing_ok=True)  # of an earlier job
    ray.init(address=address, include_dashboard=False)
    try:
        rows = [{"shard": str(shard)} for shard in shards]
        items = ray.data.from_items(rows, override_num_blocks=len(rows))
        work = partial(_predict, flags=[*flags, "--quiet"], output=output, folder=Path.cwd())
        workers = ray.data.TaskPoolStrategy(at_once)  # whose tasks Ray Data starts again without end: _predict ends it
        found = items.map(work, compute=workers, num_cpus=1, num_gpus=gpus or None)
        for row in found.iter_rows():
            if row["code"] not in (0, 1):
                raise BatchError(f"shard {row['shard']}: {row['error']}; what is predicted is kept")
            log(f"shard {row['shard']}: done")
    finally:
        ray.shutdown()


def _predict(row: dict[str, Any], flags: Sequence[str], output: Path, folder: Path) -> dict[str, Any]:
    """Predict for a shard in a worker, from the folder that the job was started in; give up where workers only die."""
    os.chdir(folder)
    path = shard_of(row["shard"]).path(output)
    while is_in_use(path):  # by a worker of a machine that Ray has given up
        time.sleep(POLL_S)
    tries = _tries_file(path)
    size = path.stat().st_size if path.exists() else 0
    deaths, said = _deaths_before(tries, size)
    if deaths >= MOST_DEATHS:
        return {**row, "code": SIGNALLED, "error": died(deaths, said)}
    with tries.open("a", encoding="utf-8") as file:
        file.write(f"{START}{size}\n")
    try:
        with _printing_into(tries):
            code = inference.main([*flags, "--output", str(output), "--shard", row["shard"]])
    except Exception as error:  # a mistake of the program's own, of which Ray would print its own frames
        return {**row, "code": SIGNALLED, "error": f"{type(error).__name__}: {first_line(error)}"}
    _, said = _deaths_before(tries, size)
    tries.unlink(missing_ok=True)
    return {**row, "code": code, "error": f"it ended with exit code {code}: {said}"}


def _tries_file(path: Path) -> Path:
    """Return the file, beside a shard's, with what its workers have printed."""
    return path.with_name(f".{path.name}.tries")


def _deaths_before(tries: Path, size: int) -> tuple[int, str]:
    """Return how many workers in turn have died without making a shard's file larger than `size`, and their last line.

    Each begins with a line of the file's size.
    """
    lines = tries.read_text(encoding="utf-8", errors="replace").splitlines() if tries.exists() else []
    sizes = [int(line.removeprefix(START)) for line in lines if line.startswith(START)]
    said = [line.strip() for line in lines if line.strip() and not line.startswith(START)]
    return len(list(itertools.takewhile(lambda each: each == size, reversed(sizes)))), said[-1] if said else ""


@contextmanager
def _printing_into(path: Path) -> Iterator[None]:
    """Let this process, and what it starts, print into a file, which outlives it."""
    kept = [os.dup(number) for number in (1, 2)]
    with path.open("ab") as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
