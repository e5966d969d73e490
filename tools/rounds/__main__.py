"""One round of the loop, again and again: `python -m tools.rounds --folder R --incoming DIR`.

Images come in; the served net predicts for them; what it is sure of becomes pseudo-labels, and the doubtful ones wait
for a person; with their labels it is trained on, calibrated, and compared with the served net, which it replaces if it
is better and keeps its target risk. The same command goes on where it was stopped. Exit code 0: the served net was
replaced; 1: it stays, and the round is over or was to stop; 3: a person has to do something first; 2: a mistake.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.atomic_io import check_folder
from common.cli import FlagParser, named_path, number, run_program
from common.console import printable
from common.file_lock import lock_file
from projects.errors import ProjectError
from projects.round_folder import TO_LABEL, RoundFolder
from projects.rounds import Step, next_step
from tools.select.strategies import STRATEGIES

if TYPE_CHECKING:
    from tools.rounds.loop import Loop

PROGRAM, LOCK = "tools.rounds", ".rounds.lock"
REPLACED, STAYS, WAITS = 0, 1, 3  # exit codes
DOUBT = "doubt"
FINDINGS, COLUMNS = 5, 79  # printed


def main(argv: Sequence[str] | None = None) -> int:
    """Go on with a round; return the exit code: 0, 1 or 3, 2 for a mistake, 128 + n for signal n."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Begin the loop or go on with its round; return the exit code. Raises UserError, OSError, Stopped."""
    check_folder(args.folder)
    folder = RoundFolder(args.folder)
    if not folder.has_begun and args.config is None:
        raise ProjectError(f"{args.folder}: no loop has begun there; begin one with --config F and the lists")
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(args.folder / LOCK):
            return go_on(_opened(folder, args), args.until)
    except BlockingIOError as error:
        raise ProjectError(f"{args.folder}: another command is working in this folder; wait for it") from error


def go_on(loop: Loop, until: str) -> int:
    """Do the steps of the newest round that are not done yet, or of a new one; return the exit code."""
    from tools.rounds.steps import do_step

    loop.folder.complete_decisions()
    last = loop.folder.last_round()
    if next_step(loop.state(last)).step is None:
        last += 1
    while (following := next_step(loop.state(last))).step is not None:
        if following.waits:
            print(waiting(loop.folder.round(last), following.because))
            return WAITS
        print(f"round {last}, {following.step}", flush=True)
        result = do_step(loop, last, following.step, following.because)
        if result is None:
            print("every image has a label: nothing to do")
            return STAYS
        print_result(result)
        if following.step == until:
            return STAYS
        if following.step == Step.CLOSE and not last and loop.options.incoming:
            last = 1  # the first net is there
    is_served = loop.folder.results(last)[Step.CLOSE]["is_served"]
    return REPLACED if is_served else STAYS


def print_result(result: Mapping[str, Any]) -> None:
    """Print what a step did and why, wrapped for a terminal."""
    findings = [f"warning: {text}" for text in result.get("findings", ())[:FINDINGS]]
    for text in (result["did"], f"because {result['because']}", *findings):
        print(textwrap.fill(printable(text), COLUMNS, initial_indent="  ", subsequent_indent="    "), flush=True)


def waiting(folder: Path, because: str) -> str:
    """Return what a person has to do before a round can go on."""
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    images = str(folder / TO_LABEL)
    command = shlex.join([python, "-m", "tools.antgo", "label/start", "--src", images, "--tgt", images])
    return f"waiting for labels, because {because}; label them, press Finish, and give this command again:\n  {command}"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.rounds."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = FlagParser(
        prog=f"python -m {PROGRAM}", description=summary.partition(":")[0], epilog=rest.strip(), allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--folder",
        metavar="R",
        type=named_path,
        required=True,
        help="the loop's folder: images, lists, rounds, served.pth",
    )
    add("--incoming", metavar="DIR", type=named_path, action="append", default=[], help="new images; repeatable")
    add(
        "--num",
        metavar="N",
        type=number(1, 10**9),
        default=0,
        help="images to label in a round (default: all doubtful)",
    )
    how = "how they are picked: the most doubtful, or by a strategy of tools.select (default doubt)"
    add("--strategy", choices=(DOUBT, *STRATEGIES), default=DOUBT, help=how)
    add("--pseudo_labels", action="store_true", help="train on what the served net accepts, too")
    known = "take labels from a list or class folders, by the images' bytes, instead of waiting for a person"
    add("--labels_from", metavar="LIST", type=named_path, help=known)
    add("--until", choices=tuple(map(str, Step)), default="", help="stop after this step")
    add("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add = parser.add_argument_group("the beginning (kept in the folder; needed once)").add_argument
    add(
        "--config",
        metavar="F",
        type=named_path,
        help="the training; its lists are the labelled and the validation list",
    )
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="change a key of --config; repeatable")
    add("--calibration", metavar="LIST", type=named_path, help="labelled images to calibrate on; later: another list")
    add(
        "--held_out",
        metavar="LIST",
        type=named_path,
        help="labelled images that compare the nets, used for nothing else",
    )
    add("--list_root", metavar="DIR", type=named_path, help="folder that these lists' paths start from")
    add("--weights", metavar="W", type=named_path, help="the first net served, a checkpoint (default: it is trained)")
    risk = "share of wrong predictions among the accepted (default 0.05)"
    add("--target_risk", metavar="P", type=number(0.001, 0.5), help=risk)
    add("--seed", metavar="N", type=number(0, 2**31 - 1), help="of what is drawn at random (default 0)")
    return parser


def _opened(folder: RoundFolder, args: argparse.Namespace) -> Loop:
    """Return the loop of a folder, which begins where there is none. Raises UserError, OSError, Stopped."""
    from tools.rounds.beginning import begin, check_same, resolved
    from tools.rounds.loop import Loop, Options
    from tools.rounds.recalibration import recalibrate

    settings = folder.settings() if folder.has_begun else begin(folder, args)
    check_same(folder, settings, args)
    options = Options(
        incoming=tuple(args.incoming),
        num=args.num,
        strategy="" if args.strategy == DOUBT else args.strategy,
        uses_pseudo_labels=args.pseudo_labels,
        labels_from=args.labels_from,
        list_root=args.list_root,
        device=args.device,
    )
    loop = Loop(folder, settings, options)
    if args.calibration is not None and resolved(args.calibration) != settings["calibration"]:
        return Loop(folder, recalibrate(loop, args), options)
    return loop


if __name__ == "__main__":
    raise SystemExit(main())
