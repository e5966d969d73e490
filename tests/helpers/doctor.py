"""A data set with known faults, and the doctor's report on it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.doctor import __main__ as doctor

CLASSES = ("daisy", "rose", "tulip")
Diagnosis = tuple[int, str, dict[str, Any]]  # exit code, printed, doctor.json


def soft_image(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """An image of blurred patches, unlike that of any other seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


class Planted:
    """A data set whose faults are known: lists, class names and images below `folder`."""

    def __init__(self, folder: Path, clean: int = 7, class_names: tuple[str, ...] = CLASSES) -> None:
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir(parents=True)
        self.lines: dict[str, list[str]] = {"train": [], "val": []}
        self.class_names, self.seed = class_names, 0
        for split, count in (("train", clean), ("val", 2)):
            for label in range(3):
                for number in range(count):
                    self.add(split, f"{split}_{label}_{number}.png", label)

    def add(self, split: str, name: str, label: int, image: Image.Image | bytes | None = None, **save: Any) -> None:
        if image is None:
            self.seed += 1
            image = soft_image(self.seed)
        if isinstance(image, bytes):
            (self.images / name).write_bytes(image)
        else:
            image.save(self.images / name, **save)
        self.lines[split].append(f"{name}----{label}\n")

    def config(self, **changes: Any) -> Path:
        for split, lines in self.lines.items():
            (self.folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        (self.folder / "classes.txt").write_text("".join(f"{name}\n" for name in self.class_names), encoding="utf-8")
        values = {
            "model_module_name": "GeM_ResNet_module",
            "model_net_name": "GeM_ResNet_AVP",
            "model_type": "resnet18",
            "img_height": 32,
            "img_width": 32,
            "num_classes": 3,
            "train_data_root_dir": str(self.images),
            "val_data_root_dir": str(self.images),
            "train_data_file": str(self.folder / "train.txt"),
            "val_data_file": str(self.folder / "val.txt"),
            "dataloader_workers": 0,
            "num_epochs": 1,
            "batch_size": 8,
            "gpu_id": "cpu",
            "precision": "fp32",
            "is_tensorboard": False,
            "save_path": str(self.folder / "weights"),
            "log_path": str(self.folder / "logs"),
        }
        file = self.folder / "config.json"
        file.write_text(json.dumps(values | changes), encoding="utf-8")
        return file


def examined(config: Path, *flags: str) -> Diagnosis:
    """Run the doctor without the step; return exit code, printed text and doctor.json."""
    output = config.parent / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = doctor.main(["--config", str(config), "--skip_step", "--workers", "0", "--output", str(output), *flags])
    report = output / "doctor.json"
    return code, printed.getvalue(), json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}


def found(report: dict[str, Any], kind: str) -> tuple[str, list[list[str]]]:
    """Return level and the names of the images of a finding, group by group."""
    (finding,) = [finding for finding in report["findings"] if finding["kind"] == kind]
    return finding["level"], [[Path(image["path"]).name for image in group] for group in finding["groups"]]


def kinds(report: dict[str, Any], level: str) -> set[str]:
    return {finding["kind"] for finding in report["findings"] if finding["level"] == level}
