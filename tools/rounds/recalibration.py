"""Calibrates the served net on another list: what a broken promise asks for."""

from __future__ import annotations

import argparse
import shutil

from artifacts.metadata import build_metadata
from common.atomic_io import write_atomic, writing
from common.formatting import counted
from projects.errors import ProjectError
from projects.image_store import ImageStore
from projects.round_folder import HELD_OUT, LABELLED, RECALIBRATION, VALIDATION, Result, write_list
from tools.rounds.beginning import keep_images, labelled_list, resolved
from tools.rounds.loop import CONFIG, Loop
from tools.rounds.training import calibrate_net
from trainers.config_checks import training_config


def recalibrate(loop: Loop, args: argparse.Namespace) -> Result:
    """Calibrate the served net on --calibration, replace it, and return the settings that name the list.

    Images of the other lists are left out. Raises UserError; then everything stays as it was.
    """
    folder, config = loop.folder, training_config(loop.folder.root / CONFIG, check_files=False)
    if not folder.served.exists():
        raise ProjectError(f"--calibration {args.calibration}: no net is served yet that another list could calibrate")
    metadata = build_metadata(config, loop.class_names)
    samples = labelled_list(args.calibration, None, metadata, args)
    store = ImageStore(folder.images, metadata.preprocess)
    found, unreadable = keep_images(store, samples, loop.class_names, args.calibration)
    others = {image for name in (HELD_OUT, VALIDATION, LABELLED) for image in loop.read_labels(name)}
    labels = {image: name for image, name in found.items() if image not in others}
    if not labels:
        what = f"{len(found)} are in the loop's other lists, and {len(unreadable)} cannot be read"
        raise ProjectError(f"--calibration {args.calibration}: no image of it is left: {what}")
    settings = {
        **loop.settings,
        "calibration": resolved(args.calibration),
        "recalibrations": loop.settings["recalibrations"] + 1,
    }
    following, last = Loop(folder, settings, loop.options), folder.last_round()
    write_list(following.calibration_list, labels, loop.class_names)
    copy = folder.root / "recalibrated.pth"
    with writing(copy):
        shutil.copyfile(folder.served, copy)
    code, line = calibrate_net(following, last, copy)
    with writing(folder.served):
        calibrated = copy.read_bytes()
        copy.unlink()
        if code:
            raise ProjectError(line)
        write_atomic(folder.served, calibrated)
    did = f"calibrated the served net on {counted(len(labels))}; {len(samples) - len(labels)} were left out"
    name = f"{RECALIBRATION}-{settings['recalibrations']}"
    folder.finish(last, name, "another calibration list", did, f"--calibration named {args.calibration}")
    folder.write_settings(settings)
    return settings
