"""Predict for a folder in parts, and merge them: `python -m deploy.batch --shards 8 --output F --image_dir DIR ...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.cli import FlagParser, named_path, number, run_program
from common.signals import ended_by_signals
from deploy.batch.merge import merge
from deploy.inference.shards import MOST_SHARDS, Shard

PROGRAM = "deploy.batch"
ENGINES = ("processes", "ray")


def main(argv: Sequence[str] | None = None) -> int:
    """Predict and merge; return the exit code: that of the merge, 2 a mistake, 128 + n stopped by signal n."""
    args, flags = _parser().parse_known_args(argv)
    return run_program(PROGRAM, lambda: _run(args, flags))


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(
        prog=f"python -m {PROGRAM}",
        description="Run inference.py for a folder in parts, by processes that are started again when they are killed, "
        "and merge them. Started again itself, it goes on. All other flags are those of inference.py.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output", metavar="F", type=named_path, required=True, help="the results file, as inference.py's")
    add("--shards", metavar="N", type=number(1, MOST_SHARDS), default=8, help="parts (default 8)")
    add("--at_once", metavar="K", type=number(1, MOST_SHARDS), default=2, help="parts at a time (default 2)")
    add(
        "--engine",
        choices=ENGINES,
        default="processes",
        help="processes of this machine (default), or a Ray Data job; needs requirements-ray.txt",
    )
    add("--address", metavar="A", help="with ray: of the cluster (default: one of this machine, for this job)")
    add("--gpus", metavar="X", type=number(0.0, 64.0), default=0.0, help="with ray: GPUs for a part (default 0)")
    return parser


def _run(args: argparse.Namespace, flags: Sequence[str]) -> int:
    from deploy.batch.processes import BatchError, run_processes

    if taken := [flag for flag in flags if flag.partition("=")[0] == "--shard"]:
        raise BatchError(f"{taken[0]}: leave it out; --shards N runs all parts")
    shards = [Shard(index + 1, args.shards) for index in range(args.shards)]
    with ended_by_signals():
        if args.engine == "ray":
            from deploy.batch.ray_job import check_ray, run_ray

            check_ray()
            run_ray(flags, args.output, shards, args.at_once, _log, address=args.address, gpus=args.gpus)
        else:
            run_processes(flags, args.output, shards, args.at_once, _log)
        return merge(args.output)


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
