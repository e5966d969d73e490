"""The tianji platform's three programs: their flags, files and JSON shapes, and nothing else (docs/tianji.md)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from common.cli import FlagParser, named_path, number, run_program
from common.paths import ROOT
from deploy.service.cli_args import EPILOG, add_service_flags
from deploy.service.launcher import serve
from deploy.service.routes import NATIVE
from platforms.tianji.evaluate import run_test
from platforms.tianji.files import MODULES, find_model
from platforms.tianji.response import ROUTE
from platforms.tianji.train import run_training

DEFAULT_RUNS = ROOT / "runs"
EXIT_CODES = "exit codes: 0 done; 1 failed; 2 a mistake of the user's, or a full disk; 128 + n stopped by signal n"


def train(argv: Sequence[str] | None = None) -> int:
    """Run `client_train.py` and return its exit code."""
    started = time.perf_counter()
    args = train_parser().parse_args(argv)
    return run_program("client_train.py", lambda: run_training(args, started))


def test(argv: Sequence[str] | None = None) -> int:
    """Run `client_test.py` and return its exit code."""
    args = test_parser().parse_args(argv)
    return run_program("client_test.py", lambda: run_test(args))


def inference(argv: Sequence[str] | None = None) -> int:
    """Run `client_inference.py` until a signal ends it, and return its exit code."""
    args = inference_parser().parse_args(argv)
    routes = [ROUTE, NATIVE]  # the platform's, and the one that the page uses
    return run_program("client_inference.py", lambda: serve(find_model(args.model_path, args.used_model), routes, args))


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of `client_train.py`."""
    parser = _parser("client_train.py", "Train a model for the tianji platform.")
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


def test_parser() -> argparse.ArgumentParser:
    """Return the parser of `client_test.py`."""
    parser = _parser("client_test.py", "Measure a model of the tianji platform on test.")
    _add_dataset(parser)
    _add_model(parser)
    _add_device(parser)
    _add_runs(parser)
    return parser


def inference_parser() -> argparse.ArgumentParser:
    """Return the parser of `client_inference.py`."""
    parser = FlagParser(
        prog="client_inference.py",
        description="Serve a model to the tianji platform: POST /autotable/predict.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_model(parser)
    _add_device(parser)
    add = parser.add_argument
    add("--service_port", metavar="N", type=number(0, 65535), default=8080, help="default 8080; 0: any free port")
    add_service_flags(parser)
    parser.set_defaults(allowed_hosts=["*"])  # the platform's name for it is the platform's affair
    return parser


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    return FlagParser(prog=program, description=description, epilog=EXIT_CODES, allow_abbrev=False)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset_path",
        metavar="DIR",
        type=named_path,
        help="holds {train,valid,test}/images/<class>/ (default: /data/CUB_200/ or, for SimSiam, "
        "/data/flower_classifier/)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_path", metavar="DIR", type=named_path, required=True, help="a model's folder, .../runs/models/<uuid>")
    add(
        "--used_model", metavar="NAME", required=True, help="the model's file in it, with or without .pth, or an export"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="D", default="cuda", help="cuda (default), cuda:N, cpu, or auto")


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs_dir", metavar="DIR", type=named_path, default=DEFAULT_RUNS, help="default: runs beside the programs"
    )
