"""The programs that a quickstart runs: training, calibration, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifacts.metadata_reader import read_metadata
from common.cli import EXIT_MISTAKE
from common.paths import ROOT
from tools.child_programs import last_lines, run_child
from tools.quickstart.data import TARGET
from tools.quickstart.state import QuickstartError

WEIGHTS = "net.pth"
EXPORTED = Path("exported", "model.onnx")
LOG = "quickstart.log"


def train(out: Path) -> dict[str, Any]:
    """Train by the config in the folder, or go on with its training; return accuracy, epoch and seconds.

    Raises QuickstartError where it fails, Stopped.
    """
    begun = (out / WEIGHTS).with_stem("net_last").exists()
    code = run_child([str(ROOT / "train.py"), "--config", str(out / "config.json"), *(["--resume"] if begun else [])])
    if code:
        raise QuickstartError(f"the training ended with exit code {code}; its message is above")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        "top1": report["best"]["top1"],
        "epoch": report["best"]["epoch"],
        "images": report["num_val"],
        "seconds": report["train_seconds"],
    }


def calibrate(out: Path, root: str) -> dict[str, Any]:
    """Fit the thresholds on the calibration list; return the calibration, or in "note" why there is none.

    Raises QuickstartError where it fails for another reason, Stopped.
    """
    log = out / LOG
    flags = ["--calibrate", str(out / "lists" / "calibration.txt"), "--list_root", root]
    targets = ["--target_risk", str(TARGET.target_risk), "--confidence", str(TARGET.confidence)]
    program = [str(ROOT / "inference_uncertain.py"), "--weights", str(out / WEIGHTS)]
    code = run_child([*program, *flags, *targets], log)
    if code == EXIT_MISTAKE:  # no threshold meets the target, which the last line says
        return {"note": last_lines(log).splitlines()[-1]}
    if code:
        raise QuickstartError(f"the calibration ended with exit code {code}:\n{last_lines(log)}\n{log} has all of it")
    calibration = read_metadata(out / WEIGHTS).calibration
    assert calibration is not None
    return calibration.to_dict()


def export(out: Path) -> dict[str, Any]:
    """Write the ONNX file, compared with the net on the validation images; return its path.

    Raises QuickstartError where it cannot be written or differs, Stopped.
    """
    log, target = out / LOG, out / EXPORTED
    flags = ["--weights", str(out / WEIGHTS), "--formats", "onnx", "--output_dir", str(target.parent)]
    code = run_child(["-m", "deploy.export", *flags], log)
    if code:
        raise QuickstartError(f"the export ended with exit code {code}:\n{last_lines(log)}\n{log} has all of it")
    return {"file": str(target)}
