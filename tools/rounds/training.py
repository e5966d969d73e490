"""From labels to a served net: the training, its calibration, the gate and the replacement."""

from __future__ import annotations

from pathlib import Path

from artifacts.metadata_reader import read_metadata
from common.atomic_io import write_atomic, writing
from common.cli import EXIT_MISTAKE
from common.formatting import counted
from common.paths import ROOT
from projects.errors import ProjectError
from projects.round_folder import HELD_OUT, LABELLED, Result, read_result, write_list, write_result
from projects.rounds import Step
from tools.child_programs import run_child
from tools.rounds.labels import read_pseudo_labels
from tools.rounds.loop import CONFIG, Loop, held_back, read_list, training_values

TRAIN_LIST, REPORT, BEFORE = "train.txt", "gate_report.json", "served_before.pth"


def train(loop: Loop, number: int, because: str) -> Result:
    """Train on all labels, and on pseudo-labels where asked, from the served net; go on where it was stopped.

    Raises ProjectError where the training fails, Stopped, OSError.
    """
    folder, net = loop.folder, loop.net_file(number)
    if not number and loop.settings["weights"]:
        did = f"took {loop.settings['weights']} for the first net"
        return folder.finish(number, Step.TRAIN, "a net is given", did, "--weights named it", pseudo_labels=0)
    config, images = folder.round(number) / CONFIG, folder.round(number) / TRAIN_LIST
    pseudo = read_pseudo_labels(loop, number)
    if not config.exists():
        used = pseudo if loop.options.uses_pseudo_labels else {}
        with writing(folder.round(number)):
            folder.round(number).mkdir(parents=True, exist_ok=True)
        apart, labels = held_back(loop), used | loop.read_labels(LABELLED)
        trained = {image: name for image, name in labels.items() if image not in apart}
        write_list(images, trained, loop.class_names)
        write_result(config, training_values(loop, number, images))
    begun = net.with_stem("net_last").exists()
    code = run_child([str(ROOT / "train.py"), "--config", str(config), *(["--resume"] if begun else [])])
    if code:
        raise ProjectError(f"the training ended with exit code {code}; its message is above")
    best = read_result(net.parent / "report.json")["best"]
    listed = read_list(images, loop.class_names)
    added = sum(image in pseudo for image in listed)
    extra = f" and {counted(added, 'pseudo-label')}" if added else ""
    did = f"trained on {counted(len(listed) - added)}{extra}; {best['top1']:.2%} of the validation list right"
    return folder.finish(number, Step.TRAIN, "training", did, because, images=len(listed), pseudo_labels=added)


def calibrate(loop: Loop, number: int, because: str) -> Result:
    """Calibrate the new net on the calibration list; where no threshold meets the target it stays without.

    Raises ProjectError, Stopped, OSError.
    """
    net = loop.net_file(number)
    code, line = calibrate_net(loop, number, net)
    calibration = None if code else read_metadata(net).calibration
    did = f"no calibration, so that it accepts nothing: {line}"
    if calibration is not None:
        share = calibration.accepted / calibration.pictures
        did = f"calibrated: it accepts {share:.1%} at a risk of at most {calibration.target_risk:g}"
    values = calibration.to_dict() if calibration else None
    return loop.folder.finish(number, Step.CALIBRATE, "calibration", did, because, calibration=values)


def calibrate_net(loop: Loop, number: int, weights: Path) -> tuple[int, str]:
    """Fit the thresholds of a checkpoint; return 0, or 2 where no threshold meets the target, and the last line.

    Raises ProjectError, Stopped, OSError.
    """
    program = (ROOT / "inference_uncertain.py", "--weights", weights, "--calibrate", loop.calibration_list)
    flags = ("--list_root", loop.folder.images, "--target_risk", loop.settings["target_risk"])
    device = ("--device", loop.options.device)
    return loop.run(number, *program, *flags, *device, may_end_with=(0, EXIT_MISTAKE))


def compare(loop: Loop, number: int, because: str) -> Result:
    """Let the release gate compare the new net with the served one. Raises ProjectError, Stopped, OSError."""
    folder, report = loop.folder, loop.folder.round(number) / REPORT
    if not report.exists():
        nets = ("--old", folder.served, "--new", loop.net_file(number))
        images = ("--images", folder.lists / HELD_OUT, "--list_root", folder.images)
        flags = ("--report", report, "--device", loop.options.device)
        loop.run(number, "-m", "tools.release_gate", *nets, *images, *flags, may_end_with=(0, 1))
    found = read_result(report)
    new, old = (found[key] / found["images"] for key in ("new_right", "old_right"))
    did = f"{new:.2%} of {counted(found['images'])} right with the new net, {old:.2%} with the served one"
    verdict = "; ".join(found["reasons"]) or because
    return folder.finish(number, Step.COMPARE, "release gate", did, verdict, replace=found["replace"])


def replace(loop: Loop, number: int, because: str) -> Result:
    """Serve the new net; the one before stays in the round's folder. Raises ResultsError."""
    folder, before = loop.folder, loop.folder.round(number) / BEFORE
    with writing(folder.root):
        if folder.served.exists() and not before.exists():
            write_atomic(before, folder.served.read_bytes())
        write_atomic(folder.served, loop.net_file(number).read_bytes())
    kept = f"; the one before is {before}" if before.exists() else ""
    return folder.finish(number, Step.REPLACE, "release", f"{folder.served} is the new net{kept}", because)
