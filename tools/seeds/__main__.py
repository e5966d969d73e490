"""Train a config with several seeds and report them together: `python -m tools.seeds --config F --seeds 5`.

Each seed trains in a folder of its own, one after the other. The same command again keeps the finished ones and goes
on with the one that was stopped; a larger --seeds adds some. Writes seeds.json and seeds.html: mean, range and standard
deviation of the measure, the recall of each class, and the validation images whose prediction changes between seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.atomic_io import check_folder
from common.cli import FlagParser, number, run_program
from common.console import printable_lines
from common.errors import UserError
from common.file_lock import lock_file
from common.formatting import short_json
from common.paths import ROOT
from configs.schema import DEFAULT_CONFIG, Config
from trainers.config_checks import training_config

if TYPE_CHECKING:
    from tools.seeds.results import SeedResult

PROGRAM = "tools.seeds"
LOCK = ".seeds.lock"
MOST = 100
OWN_KEYS = ("seed", "save_path", "log_path")  # differ from seed to seed
REPORT = "seeds.json"


class SeedsError(UserError):
    """What keeps the seeds from being trained; the message is one sentence for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train and report; return 0, 2 for a mistake of the user's or a training that fails, 128 + n for signal n."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Train the seeds that are not finished, and write the report after each; return 0. Raises UserError, OSError."""
    config = training_config(args.config, args.set)
    if config.next_stage:
        raise SeedsError(f"{args.config}: it has two stages; train the first, and name a config of the second alone")
    output = args.output or Path(f"{config.save_path}_seeds")
    check_same(output, config)
    check_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(output / LOCK):
            return train_all(args, config, output)
    except BlockingIOError as error:
        raise SeedsError(f"{output}: seeds are being trained in this folder already; wait for them") from error


def train_all(args: argparse.Namespace, config: Config, output: Path) -> int:
    """Train each seed and report all so far; return 0. Raises UserError, OSError, Stopped."""
    from tools.seeds.page import terminal_text, write_json, write_page  # late: mistakes are found without torch
    from tools.seeds.results import finished_report, summarize

    seeds = range(config.seed, config.seed + int(args.seeds))
    labels: dict[str, int] = {}
    results: list[SeedResult] = []
    report: dict[str, Any] = {"config": shared_values(config), "wanted": list(seeds), "seeds": []}
    if not (output / REPORT).exists():
        write_json(report, output)
    for place, seed in enumerate(seeds, 1):
        print(f"\nseed {seed}, {place} of {len(seeds)}", flush=True)
        of_seed = config.model_copy(update=own_values(output, seed))
        is_new = finished_report(Path(of_seed.save_path)) is None
        results.append(train_seed(args, of_seed))
        if results[-1].predictions and not labels:
            labels = labels_of(of_seed)
        report = {"config": shared_values(config), **summarize(results, seeds, labels)}
        if is_new or place == len(seeds):
            write_json(report, output)
    from artifacts.metadata import preprocess_of

    page = write_page(report, preprocess_of(config), output)
    print(f"\n{printable_lines(terminal_text(report))}\n\nreport      {page}\neverything  {output / REPORT}")
    return 0


def train_seed(args: argparse.Namespace, config: Config) -> SeedResult:
    """Return a seed's result; train it, or go on with it, unless it is finished. Raises UserError, OSError, Stopped."""
    from tools.child_programs import run_child
    from tools.seeds.results import SeedResult, finished_report, predict

    folder = Path(config.save_path)
    report = finished_report(folder)
    if report is None:
        settings = [f"{key}={json.dumps(getattr(config, key))}" for key in OWN_KEYS]
        flags = [part for item in [*args.set, *settings] for part in ("--set", item)]
        resumes = ["--resume"] if config.last_checkpoint().exists() else []
        code = run_child([str(ROOT / "train.py"), "--config", str(args.config), *flags, *resumes])
        report = finished_report(folder)
        if code or report is None:
            kept = "those that are finished are kept, and the same command goes on"
            raise SeedsError(f"seed {config.seed}: the training ended with exit code {code}; {kept}")
    else:
        print(f"finished before: {folder}")
    return SeedResult(config.seed, folder, report, predict(config))


def own_values(output: Path, seed: int) -> dict[str, Any]:
    """Return the keys in which a seed's config differs."""
    folder = str(output / f"seed_{seed}")
    return {"seed": seed, "save_path": folder, "log_path": folder}


def shared_values(config: Config) -> dict[str, Any]:
    """Return the keys that all seeds have in common, as JSON holds them."""
    return config.model_dump(mode="json", exclude=set(OWN_KEYS))


def check_same(output: Path, config: Config) -> None:
    """Raise SeedsError where a folder has the seeds of another config: their mean would mean nothing."""
    file = output / REPORT
    if not file.exists():
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SeedsError(f"{file}: it cannot be read; choose another --output") from error
    now = shared_values(config)
    defaults = {key: field.get_default(call_default_factory=True) for key, field in Config.model_fields.items()}
    before = {**defaults, **before}  # a key that is newer than the seeds
    changed = [key for key in now if before[key] != now[key]]
    if changed:
        pairs = ", ".join(f"{key} was {short_json(before[key])}, is {short_json(now[key])}" for key in changed)
        raise SeedsError(f"{output}: it has seeds of another config: {pairs}; choose another --output")


def labels_of(config: Config) -> dict[str, int]:
    """Return the labels of the validation images by path. Raises ListError."""
    from trainers.data.sample_lists import read_lists

    return {sample.path: sample.label for sample in read_lists(config)[1].samples}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.seeds."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    description = f"{summary.partition(':')[0]}."
    parser = FlagParser(prog=f"python -m {PROGRAM}", description=description, epilog=rest.strip(), allow_abbrev=False)
    add = parser.add_argument
    add("--config", metavar="F", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the config; repeatable")
    add("--seeds", metavar="N", type=number(1, MOST), default=5, help="how many, from the config's seed on (default 5)")
    add("--output", metavar="DIR", type=Path, help="where they go (default: save_path with _seeds at its end)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
