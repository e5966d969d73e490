"""Which images should be labelled next? `python -m tools.select --weights W --unlabelled DIR --num N --output PICKS`.

The folder PICKS gets the images, annotation.json, which label/start and browser/images read, picks.txt with a path a
line, the most wanted first, and picks.png, a contact sheet. With --simulate LIST instead of --unlabelled the labels of
a list are hidden, picked by every strategy and given back: simulation.png and simulation.json show the accuracy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.atomic_io import check_folder, write_atomic, writing
from common.cli import FlagParser, number, run_program
from common.console import printable
from common.formatting import parse_json
from configs.loading import process_config
from data_loader.image_files import walk_images
from data_loader.samples import NO_LABEL, Sample
from tools.select.chain import chain, read_stages
from tools.select.strategies import STRATEGIES, SelectError, Strategy

if TYPE_CHECKING:
    import numpy as np

    from configs.schema import Config
    from tools.select.observations import Net

PROGRAM = "tools.select"
DEFAULT = "random"
PLOT, VALUES = "simulation.png", "simulation.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Pick or simulate; return 0, 1 where images could not be read, or 2 for a mistake of the user's."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run_simulation(args) if args.simulate else run(args))


def run(args: argparse.Namespace) -> int:
    """Pick images and write them; return the exit code. Raises UserError, OSError."""
    start = _check(args)
    name, strategy, num = _asked(args)
    if args.unlabelled is None or num is None:
        raise SelectError("name the images with --unlabelled DIR and how many with --num N, or a list with --simulate")
    from tools.select.picks import check_output

    check_output(args.output, args.unlabelled)
    if not args.unlabelled.is_dir():
        raise SelectError(f"{args.unlabelled}: no such folder (relative paths start from {Path.cwd()})")
    samples = [Sample(path, NO_LABEL) for path in walk_images(args.unlabelled)]
    import numpy as np

    from tools.select.observations import check_fits, load_net, observe
    from tools.select.picks import write_picks

    net = load_net(args.weights, start, args.device)
    check_fits(net, name, strategy)
    labelled = _labelled(args, net)
    samples = _without(samples, labelled)
    if num > len(samples) and not args.sampling_fn:
        raise SelectError(f"--num {num} is more than the {len(samples)} images without labels")
    pool, outputs = observe(net, strategy, samples, labelled, args.batch_size, args.workers)
    count = min(num, len(outputs.files))
    rows = strategy.pick(pool, count, np.random.default_rng(args.seed))
    files = [Path(outputs.files[row]).relative_to(args.unlabelled).as_posix() for row in rows]
    names = net.metadata.class_names if net.is_trained else ()
    outcome = write_picks(args.unlabelled, files, args.output, names, net.metadata.preprocess.max_pixels)
    for line in (*outputs.skipped, *outcome.lines()):
        print(f"{PROGRAM}: {printable(line)}", file=sys.stderr)
    written = len(files) - len(outcome.left_out)
    print(f"{args.output}: {written} of {len(samples)} images, {strategy.text}")
    return 1 if outputs.skipped or outcome.left_out else 0


def run_simulation(args: argparse.Namespace) -> int:
    """Compare all strategies on a labelled list, and write table and plot; return 0. Raises UserError, OSError."""
    start = _check(args)
    if surplus := [name for name in ("unlabelled", "num", "labelled") if getattr(args, name) is not None]:
        raise SelectError(f"--simulate hides the labels of its own list: leave out --{surplus[0]}")
    check_folder(args.output)
    from tqdm import tqdm

    from deploy.uncertainty.outputs import check_not_trained_on, labelled_samples, trained_on
    from tools.select.observations import load_net, observe_known
    from tools.select.simulation import simulate

    net = load_net(args.weights, start, args.device)
    if not net.metadata.class_names:
        raise SelectError(f"{net.name}: it has no classes, and a simulation needs those of the list")
    found = labelled_samples(args.simulate, start or net.config, net.metadata, args.list_root, flag="--simulate")
    check_not_trained_on(found.samples, args.simulate, trained_on(net.config, net.metadata) or frozenset())
    known, outputs = observe_known(net, found.samples, args.batch_size, args.workers)
    with tqdm(total=args.draws * len(STRATEGIES), unit=" trials", disable=None, leave=False) as bar:
        curves = simulate(known, tuple(STRATEGIES), args.draws, bar.update)
    _write_simulation(args, net, curves, len(known.labels))
    for line in outputs.skipped:
        print(f"{PROGRAM}: {printable(line)}", file=sys.stderr)
    return 1 if outputs.skipped else 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.select."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    lines = "; ".join(f"{name}: {strategy.text}" for name, strategy in STRATEGIES.items())
    parser = FlagParser(
        prog=f"python -m {PROGRAM}", description=summary.partition(" `")[0], epilog=rest.strip(), allow_abbrev=False
    )
    add = parser.add_argument
    add("--weights", metavar="W", type=Path, help="a trained classifier, or a net of features")
    add("--config", metavar="F", type=Path, help="instead of --weights: the net of this config with its start weights")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="change a key of --config; may be repeated")
    add("--unlabelled", metavar="DIR", type=Path, help="the images to choose from, with all below the folder")
    add("--num", metavar="N", type=number(1, 10**9), help="images to choose")
    add("--strategy", choices=STRATEGIES, default=DEFAULT, help=f"{lines} (default {DEFAULT})")
    stages = "a JSON file with sampling_fn and sampling_num, as a project has them, instead of --strategy and --num"
    add("--sampling_fn", metavar="F", type=Path, help=stages)
    add("--labelled", metavar="LIST", type=Path, help="images that have labels: not chosen, and others unlike them are")
    add("--simulate", metavar="LIST", type=Path, help="compare the strategies on a labelled list, or class folders")
    add("--list_root", metavar="DIR", type=Path, help="folder that the list's paths start from")
    add("--draws", metavar="N", type=number(1, 1000), default=10, help="of a simulation (default 10)")
    add("--output", metavar="DIR", type=Path, required=True, help="the folder to write")
    add("--seed", metavar="N", type=number(0, 2**31 - 1), default=0, help="of what is drawn at random (default 0)")
    add("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--batch_size", metavar="N", type=number(1, 4096), default=32, help="images at once (default 32)")
    add("--workers", metavar="N", type=number(1, 256), default=4, help="threads that decode (default 4)")
    return parser


def _check(args: argparse.Namespace) -> Config | None:
    """Return the config of the start weights, None with --weights. Raises UserError."""
    if (args.weights is None) == (args.config is None):
        raise SelectError("name either a net with --weights, or a config with start weights with --config")
    if args.set and not args.config:
        raise SelectError("--set changes a key of --config, which is not named")
    for path in (args.labelled, args.simulate):
        if path is not None and not path.exists():
            raise SelectError(f"{path}: no such list or folder (relative paths start from {Path.cwd()})")
    return process_config(args.config, args.set, check_files=False) if args.config else None


def _asked(args: argparse.Namespace) -> tuple[str, Strategy, int | None]:
    """Return the strategy with its name, and how many images it picks. Raises SelectError."""
    if args.sampling_fn is None:
        return args.strategy, STRATEGIES[args.strategy], args.num
    if args.num is not None or args.strategy != DEFAULT:
        raise SelectError("--sampling_fn says how many images are picked and how: leave out --num and --strategy")
    try:
        config = parse_json(args.sampling_fn.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SelectError(f"{args.sampling_fn}: cannot read it: {error}") from error
    if not isinstance(config, dict):
        raise SelectError(f"{args.sampling_fn}: expected a JSON object with sampling_fn")
    stages, num = read_stages(config, str(args.sampling_fn))
    return "sampling_fn", chain(stages), num


def _labelled(args: argparse.Namespace, net: Net) -> list[Sample]:
    """Return the images that have labels already, [] without --labelled. Raises SamplesError, ListError."""
    from artifacts.sample_sources import listed_samples

    if args.labelled is None:
        return []
    return listed_samples(args.labelled, net.config, net.metadata, args.list_root, flag="--labelled").samples


def _without(samples: list[Sample], labelled: list[Sample]) -> list[Sample]:
    from deploy.uncertainty.outputs import real_paths

    known = frozenset(real_paths(labelled))
    return [sample for sample, path in zip(samples, real_paths(samples), strict=True) if path not in known]


def _write_simulation(args: argparse.Namespace, net: Net, curves: dict[str, np.ndarray], images: int) -> None:
    from tools.select.simulation import TEST_SHARE, beats_random, label_counts
    from visualization.label_curves import label_curves_image
    from visualization.raster import png_bytes

    num_test = round(TEST_SHARE * images)
    counts = label_counts(images - num_test)
    values = {
        "net": net.name,
        "list": str(args.simulate),
        "draws": args.draws,
        "labels": counts,
        "test_images": num_test,
        "accuracy": {name: found.tolist() for name, found in curves.items()},
        "beats_random": [name for name in curves if name != "random" and beats_random(curves, name)],
    }
    title = f"{args.simulate.name}: {images - num_test} images to label, {num_test} to measure, {args.draws} draws"
    plot = png_bytes(label_curves_image(curves, counts, title))
    with writing(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output / VALUES, json.dumps(values, ensure_ascii=False, indent=1) + "\n")
        write_atomic(args.output / PLOT, plot)
    print("\n".join(table(curves, counts)))
    print(f"{args.output / PLOT} and {VALUES} beside it")


def table(curves: dict[str, np.ndarray], counts: Sequence[int]) -> list[str]:
    """Return a line for each strategy: the mean accuracy by labels, and at JUDGED of them the range and a mark."""
    from tools.select.simulation import JUDGED, SHARES, beats_random

    at = SHARES.index(JUDGED)
    lines = [f"{'labels':10}" + "".join(f"{count:>9}" for count in counts) + f"{f'range at {counts[at]}':>18}"]
    for name, values in curves.items():
        low, high = values[:, at].min(), values[:, at].max()
        mark = " *" if name != "random" and beats_random(curves, name) else ""
        means = "".join(f"{mean:>9.2%}" for mean in values.mean(axis=0))
        lines.append(f"{name:10}{means}{f'{low:.1%}-{high:.1%}':>18}{mark}")
    return [*lines, f"* its mean at {counts[at]} labels is above random's best draw"]


if __name__ == "__main__":
    raise SystemExit(main())
