"""All shards of a folder as a Ray Data job, on the machines of a Ray cluster that share a disk."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import inference
from common.errors import UserError
from deploy.batch.processes import POLL_S, BatchError
from deploy.inference.shard_file import is_in_use
from deploy.inference.shards import Shard, shard_of


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

    Ray starts a shard again whose worker has died, as often as that happens, and it goes on where it was. `address` is
    the cluster's, None a cluster of this machine for this job; `gpus` is what a worker gets. Raises BatchError where a
    shard ends with a mistake.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers, unless told not to
    import ray
    import ray.data

    ray.init(address=address, include_dashboard=False)
    try:
        rows = [{"shard": str(shard)} for shard in shards]
        items = ray.data.from_items(rows, override_num_blocks=len(rows))
        work = partial(_predict, flags=[*flags, "--quiet"], output=output, folder=Path.cwd())
        workers = ray.data.TaskPoolStrategy(at_once)  # whose tasks Ray Data starts again without end
        found = items.map(work, compute=workers, num_cpus=1, num_gpus=gpus or None)
        for row in found.iter_rows():
            if row["code"] not in (0, 1):
                raise BatchError(f"shard {row['shard']} ended with exit code {row['code']}; what is predicted is kept")
            log(f"shard {row['shard']}: done")
    finally:
        ray.shutdown()


def _predict(row: dict[str, Any], flags: Sequence[str], output: Path, folder: Path) -> dict[str, Any]:
    """Predict for a shard in a worker, from the folder that the job was started in."""
    os.chdir(folder)
    while is_in_use(shard_of(row["shard"]).path(output)):  # by a worker of a machine that Ray has given up
        time.sleep(POLL_S)
    return {**row, "code": inference.main([*flags, "--output", str(output), "--shard", row["shard"]])}
