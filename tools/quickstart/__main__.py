"""From a folder with one folder a class to a served model: `python -m tools.quickstart --images DIR`.

Reads every image and writes lists without those that would spoil a training, trains the recipe of
configs/finetune_config.json from ImageNet weights, calibrates on images that it was not trained on, exports to ONNX,
and says where everything is. The same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.atomic_io import check_folder, write_atomic
from common.cli import FlagParser, run_program
from common.console import printable
from common.file_lock import lock_file
from common.paths import ROOT
from configs.schema import Config
from tools.datasets.make_lists import Images, find_images
from tools.quickstart.state import LOCK, QuickstartError, State, inputs_of, open_state

PROGRAM = "tools.quickstart"
RECIPE = ROOT / "configs" / "finetune_config.json"
STEPS = ("images", "train", "calibrate", "export")
COLUMNS = 79  # some terminals wrap a full line
WARNINGS = 3  # printed
LEAST_STEPS = 80  # of a training; fewer leave the net where the fitted head has put it (docs/results.md)


def main(argv: Sequence[str] | None = None) -> int:
    """Make a model of a folder; return 0, 2 for a mistake of the user's, 128 + n for signal n."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Do the steps that are not done yet, and print the results; return 0. Raises UserError, OSError."""
    images = find_images(args.images)
    from tools.quickstart.data import check_counts  # late: --help and a wrong folder answer without numpy

    check_counts(args.images, images.class_names, [label for _, label in images.entries])
    out = args.out or Path("logs") / Path(args.images).resolve().name
    check_place(out, args.images)
    config = make_config(args, images, out)
    are_chosen = args.config != RECIPE or "num_epochs" in map(key_of, args.set)
    state = open_state(out, inputs_of(args.images, images, str(args.config), args.set))
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with lock_file(out / LOCK):
            print(f"{len(images.entries):,} images of {len(images.class_names)} classes in {args.images}")
            print(f"results in {out}")
            do_steps(args.images, images, config, state, 0 if are_chosen else LEAST_STEPS)
    except BlockingIOError as error:
        raise QuickstartError(f"{out}: another quickstart is running in this folder; wait for it") from error
    print("\n".join(summary(out, state.done)))
    return 0


def check_place(out: Path, images: str) -> None:
    """Raise QuickstartError for results among the images: they would be taken for a class."""
    if out.resolve().is_relative_to(Path(images).resolve()):
        raise QuickstartError(
            f"{out}: it lies in the folder of the images, where it would be a class; choose another --out"
        )


def make_config(args: argparse.Namespace, images: Images, out: Path) -> Config:
    """Return the recipe for these images. Raises ConfigError, QuickstartError."""
    from trainers.config_checks import training_config

    values = own_values(Path(args.images).as_posix(), len(images.class_names), out)
    for item in args.set:
        if (key := key_of(item)) in values:
            raise QuickstartError(f"--set {item}: a quickstart sets {key} itself; use train.py for another")
    settings = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return training_config(args.config, [*args.set, *settings], check_files=False)


def own_values(images: str, num_classes: int, out: Path) -> dict[str, Any]:
    """Return the keys of the recipe that follow from the images and the folder of the results."""
    return {
        "num_classes": num_classes,
        "class_names_file": (out / "lists" / "classes.txt").as_posix(),
        "train_data_root_dir": images,
        "train_data_file": (out / "lists" / "train.txt").as_posix(),
        "val_data_root_dir": images,
        "val_data_file": (out / "lists" / "val.txt").as_posix(),
        "save_path": out.as_posix(),
        "save_name": "net.pth",
        "log_path": out.as_posix(),
    }


def key_of(item: str) -> str:
    """Return the key of a --set KEY=VALUE."""
    return item.partition("=")[0].strip()


def do_steps(folder: str, images: Images, config: Config, state: State, least_steps: int) -> None:
    """Do the steps that the state does not have. Raises UserError, OSError, Stopped."""
    from tools.quickstart import steps

    out = state.folder
    state.begin()
    for number, step in enumerate(STEPS, 1):
        is_done = step in state.done
        print(f"\n{number}/{len(STEPS)}  {step}{'  (done before)' * is_done}", flush=True)
        if not is_done and step == "images":
            state.finish(step, prepare(folder, images, config, out, least_steps))
        elif not is_done and step == "train":
            state.finish(step, steps.train(out))
        elif not is_done and step == "calibrate":
            is_possible = "calibration" in state.done["images"]["counts"]
            state.finish(step, steps.calibrate(out, folder) if is_possible else too_few(images))
        elif not is_done:
            state.finish(step, steps.export(out))
        if step != "train" or is_done:
            print("\n".join(indented(line) for line in described(step, state.done[step])))


def prepare(folder: str, images: Images, config: Config, out: Path, least_steps: int) -> dict[str, Any]:
    """Check the images, write the lists and the config. Raises UserError, OSError."""
    from tools.quickstart.data import split, write_checked_lists

    lists = write_checked_lists(folder, images, split(images), config, out)
    values = {key: value for key, value in config.model_dump().items() if key in config.model_fields_set}
    results: dict[str, Any] = {"counts": lists.counts, "left_out": lists.left_out, "findings": lists.findings}
    if (epochs := epochs_for(lists.counts["train"], config.batch_size, least_steps)) > config.num_epochs:
        values["num_epochs"] = results["num_epochs"] = epochs
    write_atomic(out / "config.json", json.dumps(values, ensure_ascii=False, indent=2) + "\n")
    return results


def epochs_for(num_images: int, batch_size: int, least_steps: int) -> int:
    """Return how many epochs make so many steps."""
    return math.ceil(least_steps / math.ceil(num_images / batch_size))


def too_few(images: Images) -> dict[str, Any]:
    """Return why there is no calibration list."""
    from deploy.uncertainty.calibration import least_images
    from tools.quickstart.data import MOST_TO_CALIBRATE, TARGET

    needed = least_images(TARGET) + len(images.class_names)
    total = int(needed / MOST_TO_CALIBRATE)
    return {"note": f"left out: it needs {needed} images that are neither trained on nor validated, so {total} in all"}


def described(step: str, results: dict[str, Any]) -> list[str]:
    """Return what a step has found, in lines."""
    if step == "images":
        counts = {"train": "to train on", "val": "to validate", "calibration": "to calibrate"}
        lines = [
            ", ".join(
                f"{results['counts'][name]:,} {text}" for name, text in counts.items() if name in results["counts"]
            )
        ]
        if results["left_out"]:
            lines.append(
                "left out: " + ", ".join(f"{count:,} {reason}" for reason, count in results["left_out"].items())
            )
        if "num_epochs" in results:
            lines.append(f"they are few: {results['num_epochs']} epochs, which is {LEAST_STEPS} steps or a few more")
        lines += [f"warning: {text}" for text in results["findings"][:WARNINGS]]
        return lines + ["... and more in doctor.html"] * (len(results["findings"]) > WARNINGS)
    if step == "train":
        return [f"{results['top1']:.2%} of {results['images']:,} validation images right, in epoch {results['epoch']}"]
    if step == "export":
        return ["model.onnx, compared with the net on the validation images"]
    if "note" in results:
        return [results["note"]]
    accepted = f"accepts {results['accepted']:,} of {results['pictures']:,} images, {results['wrong']:,} of them wrong"
    risk = f"accepted predictions are wrong in at most {results['target_risk']:.0%}, with confidence"
    return [accepted, f"{risk} {results['confidence']:g}; the others are set aside for a person"]


def summary(out: Path, done: dict[str, dict[str, Any]]) -> list[str]:
    """Return where the results are, and the command that serves them."""
    trained, calibration, exported = done["train"], done["calibrate"], done["export"]["file"]
    rows = {"accuracy": described("train", trained)[0]}
    if "accepted" in calibration:
        rows["accepted"] = f"{calibration['accepted'] / calibration['pictures']:.0%} of the predictions, by calibration"
    places = {"report": "report.html", "images": "doctor.html", "checkpoint": "net.pth", "config": "config.json"}
    rows |= {name: str(out / file) for name, file in places.items()} | {"exported": exported}
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    command = shlex.join([python, "-m", "deploy.service", "--weights", exported])
    return [
        "",
        *(f"{name:<12}{printable(text)}" for name, text in rows.items()),
        "",
        "serve it at http://127.0.0.1:8080",
        f"  {command}",
    ]


def indented(text: str) -> str:
    """Return a text wrapped for a terminal, under its step's title."""
    return textwrap.fill(
        printable(text), COLUMNS, initial_indent=" " * 5, subsequent_indent=" " * 5, break_on_hyphens=False
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.quickstart."""
    summary_line, _, rest = (__doc__ or "").partition("\n\n")
    description = f"{summary_line.partition(':')[0]}."
    parser = FlagParser(prog=f"python -m {PROGRAM}", description=description, epilog=rest.strip(), allow_abbrev=False)
    add = parser.add_argument
    add("--images", metavar="DIR", required=True, help="folder with one folder a class")
    add("--out", metavar="DIR", type=Path, help="where the results go (default: logs/ and the name of --images)")
    add("--config", metavar="F", type=Path, default=RECIPE, help="recipe (default: configs/finetune_config.json)")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the recipe; repeatable")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
