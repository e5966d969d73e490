"""Small images and configs that the tests make for themselves."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common import malloc
from deploy.export import timing

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Who starts the tests by nohup, or with &, has it ignored, and so would every program that they start and stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the tests run side by side
# Once torch.export has made torch believe in a GPU, the first backward pass starts threads for it, and no copy of the
# process can train any more. A backward pass before that starts none.
torch.zeros(1, requires_grad=True).sum().backward()

CLASSES = ("circle", "方块", "stripes")
GEM_RESNET = {"model_module_name": "GeM_ResNet_module", "model_net_name": "GeM_ResNet_AVP", "model_type": "resnet18"}


def slow_but(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Mark as slow the cases of a parametrization that are not among the quick ones: `make test` leaves them out."""
    known = list(cases)
    assert set(quick) <= set(known)
    return [
        case if case in quick else pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow)
        for case in known
    ]


@pytest.fixture(scope="session", autouse=True)
def freed_memory_is_given_back() -> Iterator[None]:
    """Two processes do all tests: what each of them once took would stay theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(malloc, "keep_freed_memory", lambda: None)
        yield


def write_image(path: Path, label: int, seed: int, size: int = 24) -> None:
    """Write a noisy image of class 0, 1 or 2: a bright disc, square or stripes."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 80, (size, size, 3))
    y, x = np.mgrid[:size, :size] - size // 2 + generator.integers(-3, 4, 2)[:, None, None]
    shape = [x**2 + y**2 < 50, (abs(x) < 6) & (abs(y) < 6), y % 6 < 2][label]
    pixels[shape] = np.array([250, 200, 60]) - generator.integers(0, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="session", autouse=True)
def one_round() -> Iterator[None]:
    """Time each exported file once: here its speed is no matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ROUNDS", 1)
        patch.setattr(timing, "LEAST_ROUNDS", 1)
        yield


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Make 21 training and 9 validation images of three classes with their lists and classes.txt."""
    for split, count in (("train", 21), ("val", 9)):
        lines = []
        for number in range(count):
            name = f"{split}/{number:02d}.png"
            write_image(tmp_path / "images" / name, number % 3, seed=number + 100 * (split == "val"))
            lines.append(f"{name}----{number % 3}\n")
        (tmp_path / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def make_config(dataset: Path) -> Callable[..., Path]:
    """Return a function that writes a small config on `dataset`, of a net that trains fast, with any keys changed."""

    def make(**changes: Any) -> Path:
        values = {
            "model_module_name": "shufflenet_v2_module",
            "model_net_name": "shufflenet_v2_x0_5",
            "img_height": 32,
            "img_width": 32,
            "num_classes": 3,
            "train_data_root_dir": str(dataset / "images"),
            "val_data_root_dir": str(dataset / "images"),
            "train_data_file": str(dataset / "train.txt"),
            "val_data_file": str(dataset / "val.txt"),
            "dataloader_workers": 0,
            "num_epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.02,
            "gpu_id": "cpu",
            "precision": "fp32",
            "is_tensorboard": False,
            "save_path": str(dataset / "weights"),
            "log_path": str(dataset / "logs"),
        }
        file = dataset / "config.json"
        file.write_text(json.dumps(values | changes), encoding="utf-8")
        return file

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread from torch's seed 0, whatever the tests before have left."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
