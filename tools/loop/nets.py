"""A candidate's way to the best net: exported and verified, calibrated, compared on the test data, and put in place."""

from __future__ import annotations

from pathlib import Path

from artifacts.metadata_reader import read_metadata
from common.atomic_io import writing
from common.cli import EXIT_MISTAKE
from datasets.pictures import place_file
from projects.errors import ProjectError
from projects.loop import decided, refuted
from projects.models import Data, Project, Run
from projects.round_folder import read_result
from projects.rounds import Step
from projects.runs import find_run
from tools.loop.work import LOG, Done, Work, program

FOLDER, NET, REPORT = "loop", "net.onnx", "gate_report.json"  # of a run
PASSES, STAYS = "passes the gate", "does not pass the gate"
REFUSED = 3  # an export's exit code


def calibrate(work: Work, run: Run) -> Done:
    """Export a run's net, verified, and fit its thresholds on the val data. Raises UserError, OSError."""
    folder, val = Path(run.root) / FOLDER, work.project().dataset.val
    assert isinstance(val, Data)
    main, checkpoint = work.main_of(run), Path(run.checkpoint)
    words = ("--exp", run.exp, "--process", "export", "--gpu-id", "-1", "--root", run.root, "--checkpoint", checkpoint)
    code, line = work.run(folder / LOG, main, *words, may_end_with=(0, REFUSED))
    if code:
        values = {"net": "", "calibrated": False, "val": val.address}
        return Done(f"{run.name} is not exported", f"the export was refused: {line}", values)
    exported = Path(run.root, run.exp, "output", "export", f"{run.exp}-{checkpoint.stem}-model.onnx")
    net, images = folder / NET, work.listed("val", val)
    with writing(net):
        net.unlink(missing_ok=True)
        place_file(exported, net, may_link=False)  # what is exported stays as it is
    fit = ("--weights", net, "--calibrate", images, "--list_root", images.parent)
    flags = ("--target_risk", work.options.target_risk, *work.device)
    code, line = work.run(folder / LOG, program("inference_uncertain.py"), *fit, *flags, may_end_with=(0, EXIT_MISTAKE))
    values = {"net": str(net), "calibrated": not code, "val": val.address}
    if code:
        return Done(f"exported {run.name}, which accepts nothing", line, values)
    calibration = read_metadata(net).calibration
    assert calibration is not None
    share, risk = calibration.accepted / calibration.pictures, calibration.target_risk
    return Done(f"exported and calibrated {run.name}", f"it accepts {share:.1%} at a risk of at most {risk:g}", values)


def compare(work: Work, run: Run) -> Done:
    """Let the gate judge a candidate beside the best net on the test data. Raises UserError, OSError."""
    project = work.project()
    done, test = decided(project), project.dataset.test
    assert isinstance(test, Data)
    own = done[run.name][Step.CALIBRATE]
    values = {"replace": False, "test": test.address}
    if not own.get("net"):
        return Done(f"{run.name} {STAYS}", "it is not exported", values)
    if not own.get("calibrated") or own.get("val") in refuted(project):
        return Done(f"{run.name} {STAYS}", "it is not calibrated, or an audit has refuted its calibration", values)
    if not isinstance(project.best, Run):
        because = "it is exported and calibrated, and there is no best yet"
        return Done(f"{run.name} {PASSES}", because, _passed(values))
    before = done.get(project.best.name, {}).get(Step.CALIBRATE, {}).get("net")
    if not before:
        raise ProjectError(f"{project.best.name}: the best has no exported net that {run.name} could be compared with")
    images, report = work.listed("test", test), Path(run.root) / FOLDER / REPORT
    words = ("--old", before, "--new", own["net"], "--images", images, "--list_root", images.parent)
    flags = ("--gate", work.options.gate, "--report", report, *work.device)
    work.run(report.with_name(LOG), "-m", "tools.release_gate", *words, *flags, may_end_with=(0, 1))
    found = read_result(report)
    right = " beside ".join(f"{found[key] / found['images']:.2%}" for key in ("new_right", "old_right"))
    looks = 1 + sum(row.get("test") == test.address and "looks" in row for row in project.decisions)
    values |= {"looks": looks}
    measured = f"{right} of {found['images']} images right, look {looks} at them"
    if found["replace"]:
        return Done(f"{run.name} {PASSES}", measured, _passed(values))
    return Done(f"{run.name} {STAYS}", "; ".join([measured, *found["reasons"]]), values)


def replace(work: Work, run: Run) -> Done:
    """Make a candidate that has passed the best."""

    def change(project: Project) -> None:
        project.best = find_run(project, run.id).model_copy(deep=True)

    return Done(f"{run.name} is the best", "it has passed the gate", change=change)


def _passed(values: dict[str, object]) -> dict[str, object]:
    return values | {"replace": True}
