"""Check a training's data and try a few steps of it, before hours are spent: `python -m tools.doctor --config F`.

Reads the config and every image: unreadable and unusual images, duplicates and near-duplicates, images in both training
and validation, contradictory labels, class counts, sizes, mean and std; then trains a few steps for memory and time.
Writes doctor.json and doctor.html, which shows the images. The exit code is 1 where a problem would spoil the
training, 2 for a mistake, else 0.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.metadata import preprocess_of
from common.atomic_io import check_folder
from common.cli import FlagParser, run_program
from common.errors import UserError
from configs.schema import DEFAULT_CONFIG, Config
from data_loader.decode_guard import GUARD
from data_loader.packs import is_pack
from datasets.filters import parse_names
from nets.net_interface import declared_task
from trainers.config_checks import BOX_TASK, MASK_TASKS, training_config
from trainers.data.sample_lists import read_lists

PROGRAM = "tools.doctor"
MAX_WORKERS = 32


class DoctorError(UserError):
    """A mistake of the user's; the message is one sentence for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Examine a training; return 0, 1 where a problem would spoil it, or 2 for a mistake of the user's."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Examine a training, write and print the report; return the exit code. Raises UserError, OSError."""
    config = training_config(args.config, args.set)
    if args.skip_step and args.try_compile:
        raise DoctorError("--try_compile trains steps, --skip_step trains none: use only one of them")
    if args.drop_look_alikes and not args.fix:
        raise DoctorError("--drop_look_alikes changes the lists that --fix writes: add --fix DIR")
    if args.reviewed and not args.fix:
        raise DoctorError("--reviewed leaves images out of the lists that --fix writes: add --fix DIR")
    task = declared_task(config.model_module_name, config.model_net_name)
    if (args.fix or args.wrong_labels) and task in (*MASK_TASKS, BOX_TASK):
        flag, what = "--fix" if args.fix else "--wrong_labels", "boxes" if task == BOX_TASK else "masks"
        raise DoctorError(f"{flag} is for images with one label each, and this training learns {what}")
    if args.fix and (is_pack(config.train_data_file) or is_pack(config.val_data_file)):
        raise DoctorError(
            "--fix writes lists of files, and these images lie in packs: clean what they were packed from"
        )
    if args.wrong_labels:
        check_start_weights(config)
    if args.workers < 0:
        raise DoctorError(f"--workers must be at least 0, got {args.workers}")
    output = args.output or Path(config.save_path)
    from tools.doctor.fix import check_target, find_dropped_rows, find_refused_rows, write_lists
    from tools.doctor.report import terminal_text, write_report
    from tools.doctor.review_set import refused_paths
    from tools.doctor.wrong_labels import write_list

    check_folder(output)
    refused = refused_paths(args.reviewed, parse_names(args.drop_tags)) if args.reviewed else []
    if args.fix:
        check_target(args.fix)
        check_folder(args.fix)
    study, report, ranking = examine(config, args)
    if args.fix:
        dropped = find_refused_rows(study, refused)
        dropped |= find_dropped_rows(study, near_duplicates=args.drop_look_alikes)
        report["fix"] = write_lists(study, args.fix, dropped)
    page = write_report(report, study, output)
    print(terminal_text(report))
    print(f"\nwith images {page}\neverything    {page.with_name('doctor.json')}")
    if ranking is not None:
        print(f"all labels    {write_list(ranking, study, output)}")
    return int(report["exit_code"])


def check_start_weights(config: Config) -> None:
    """Raise DoctorError where a config has no features to judge labels by, or no labels."""
    if config.learns_without_labels():
        raise DoctorError("--wrong_labels judges labels, and this training uses none")
    if config.train_mode == "fromscratch":
        raise DoctorError(
            '--wrong_labels judges labels by the features of a trained net, and train_mode "fromscratch" has none: '
            "take --config configs/finetune_config.json, and --set num_classes and the images to those of this config"
        )


def examine(config: Config, args: argparse.Namespace) -> tuple[Any, dict[str, Any], Any]:
    """Read the lists and the images, and try steps; return the Study, the report, and the Ranking or None.

    Raises ListError, ScanError.
    """
    from tools.doctor.checks import LEVELS, PROBLEM, Study, check
    from tools.doctor.report import build_report
    from tools.doctor.scan import scan
    from tools.doctor.step_check import judge_compiling, judge_disk, judge_step, try_steps
    from tools.doctor.target_files import UNITS, read_target_files
    from tools.doctor.types import TrialData
    from tools.doctor.wrong_labels import judge_labels
    from trainers.data.band_ranges import with_measured_bands
    from trainers.runtime.distributed import World
    from trainers.tasks.table import task_of_config

    GUARD.timeout_s = config.decode_timeout_s
    config = with_measured_bands(config, World(), print)
    target = task_of_config(config).target(config)
    train, val = read_lists(config, target, check_files=False)  # a missing file is a finding
    preprocess = preprocess_of(config)
    paths = [sample.path for samples in (train, val) for sample in samples.samples]
    study = Study.of(config, train, val, preprocess, scan(paths, len(train.samples), preprocess, args.workers))
    files = None
    if target.needs_scan:
        files = read_target_files(config, target, train, val, set(study.images.errors), args.workers)
        study = replace(study, unit=UNITS[target.noun], counts=files.class_counts())
    findings = [*check(study), *(files.findings if files else ())]
    ranking = None
    if args.wrong_labels:
        ranking, of_labels = judge_labels(study, args.workers)
        findings += of_labels
    step: dict[str, Any] = {}
    if not args.skip_step and (files is None or files.is_usable):
        bad_train, bad_val = study.by_list(study.images.errors)
        data = TrialData(train, val, set(bad_train), {study.index(row) for row in bad_val})
        if files is not None:
            data = TrialData(files.lists[0], files.lists[1], set(), set())
        step = try_steps(config, data, compiles_too=args.try_compile)
        findings += [*judge_step(step), *judge_compiling(config, step)]
    disk, disk_findings = judge_disk(config, step)
    findings = sorted([*findings, *disk_findings], key=lambda finding: LEVELS.index(finding.level))
    report = build_report(study, str(args.config), findings, step, disk)
    report["wrong_labels"] = ranking.summary() if ranking else {}
    report["exit_code"] = int(any(finding.level == PROBLEM for finding in findings))
    return study, report, ranking


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.doctor."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    description = f"{summary.partition(':')[0]}."
    parser = FlagParser(prog=f"python -m {PROGRAM}", description=description, epilog=rest.strip(), allow_abbrev=False)
    add = parser.add_argument
    add("--config", metavar="F", default=DEFAULT_CONFIG, help=f"default: {DEFAULT_CONFIG}")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the config; repeatable")
    add("--output", metavar="DIR", type=Path, help="where doctor.json and doctor.html go (default: save_path)")
    cleaned = "write lists there without unreadable, repeated, contradictory and leaked images"
    add("--fix", metavar="DIR", type=Path, help=cleaned)
    similar = "with --fix: drop training images that are near-duplicates of validation images"
    add("--drop_look_alikes", action="store_true", help=similar)
    reviewed = "with --fix: drop what a review of doctor.json in browser/images tagged"
    add("--reviewed", metavar="F_browser.json", type=Path, help=reviewed)
    add("--drop_tags", metavar="a,b", default="invalid", help="the tags that drop an image (default invalid)")
    judged = "rank the labels by how much they contradict what the other images predict: wrong_labels.csv"
    add("--wrong_labels", action="store_true", help=judged)
    add("--skip_step", action="store_true", help="do not build the net and train a few steps")
    add("--try_compile", action="store_true", help='also train steps with "compile", and report whether it pays back')
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    add("--workers", metavar="N", type=int, default=workers, help="processes that read images (default: the cores)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
