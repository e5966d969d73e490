"""The tianji platform's three programs: their flags, files and JSON shapes, and nothing else (docs/tianji.md)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from common.cli import number
from common.paths import ROOT
from deploy.service.cli_args import EPILOG, add_service_flags
from deploy.service.launcher import serve
from deploy.service.routes import NATIVE
from platforms.base import told
from platforms.tianji.evaluate import run_test
from platforms.tianji.files import MODULES, find_model
from platforms.tianji.response import ROUTE
from platforms.tianji.train import run_training

DEFAULT_RUNS = ROOT / "runs"
EXIT_CODES = (
    "exit codes: 0 done; 1 it failed; 2 a mistake in what was asked, or a full disk; 128 + n stopped by signal n"
)


def train(argv: Sequence[str] | None = None) -> int:
    """Train as `client_train.py` does, and give the exit code."""
    started = time.perf_counter()
    args = _train_parser().parse_args(argv)

    def work() -> int:
        run_training(args, started)
        return 0

    return told("client_train.py", work)


def test(argv: Sequence[str] | None = None) -> int:
    """Evaluate as `client_test.py` does, and give the exit code."""
    args = _test_parser().parse_args(argv)

    def work() -> int:
        run_test(args)
        return 0

    return told("client_test.py", work)


def inference(argv: Sequence[str] | None = None) -> int:
    """Serve as `client_inference.py` does until a signal comes, and give the exit code."""
    args = _inference_parser().parse_args(argv)
    # The platform's path, and the page's.
    return told(
        "client_inference.py", lambda: serve(find_model(args.model_path, args.used_model), [ROUTE, NATIVE], args)
    )


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="client_train.py",
        description="Train a model for the tianji platform.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    add = parser.add_argument
    _add_dataset(parser)
    _add_device(parser)
    add("--trial_name", metavar="NAME", default="autotables-2503-train-1", help="default: %(default)s")
    add(
        "--annotation_data",
        metavar="LITERAL",
        default="{'advance_settings':{}}",
        help="a Python or JSON literal whose advance_settings override keys of the config (default: %(default)s)",
    )
    add("--model", choices=tuple(MODULES), help="default: SimSiam where train has no class folders, else FGVC_PIM")
    _add_runs(parser)
    return parser


def _test_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="client_test.py",
        description="Measure a model of the tianji platform on test.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    _add_dataset(parser)
    _add_model(parser)
    _add_device(parser)
    _add_runs(parser)
    return parser


def _inference_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="client_inference.py",
        description="Serve a model to the tianji platform: POST /autotable/predict.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_model(parser)
    _add_device(parser)
    add = parser.add_argument
    add("--service_port", metavar="N", type=number(0, 65535), default=8080, help="default 8080; 0: any that is free")
    add_service_flags(parser)
    return parser


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset_path",
        metavar="DIR",
        type=_path,
        help="holds {train,valid,test}/images/<class>/ (default: /data/CUB_200/ or, for SimSiam, "
        "/data/flower_classifier/)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_path", metavar="DIR", type=_path, required=True, help="a model's folder, .../runs/models/<uuid>")
    add(
        "--used_model", metavar="NAME", required=True, help="the model's file in it, with or without .pth, or an export"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="D", default="cuda", help="cuda (default), cuda:N, cpu, or auto")


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs_dir", metavar="DIR", type=_path, default=DEFAULT_RUNS, help="default: runs beside the programs"
    )


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text")
    return Path(text)
