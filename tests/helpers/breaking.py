"""Kills saves and trainings on purpose and counts the losses; the tests do a few, this program many.

python -m tests.helpers.breaking saves 1000        kill -9 a loop of saves
python -m tests.helpers.breaking training 100      kill -9 a small training, with 0, 2 and 4 loader processes in turn
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import train
from artifacts.archive import backup_files
from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_sha256
from artifacts.errors import CheckpointError
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from tests.conftest import write_image
from trainers.checkpoint_saver import CheckpointSaver

RECIPE = {  # all randomness that a step can have, and a save after each of the nine steps
    "model_module_name": "shufflenet_v2_module", "model_net_name": "shufflenet_v2_x0_5", "img_height": 32,
    "img_width": 32, "num_classes": 3, "num_epochs": 3, "batch_size": 4, "accumulation_steps": 2, "gpu_id": "cpu",
    "precision": "fp32", "is_tensorboard": False, "log_interval": 1, "save_interval_steps": 1, "ema_decay": 0.9,
    "mixup_alpha": 0.2, "label_smoothing": 0.1, "learning_rate": 0.02, "learning_rate_schedule": "cosine",
}  # fmt: skip


def numbered_checkpoint(number: int, values: int = 50_000) -> Checkpoint:
    """Return a checkpoint whose weights and progress hold its number."""
    metadata = ModelMetadata(("猫", "dog"), Preprocess(32, 24, 1, "crop"), {"module": "m", "name": "n", "args": {}})
    net = {"weight": torch.full((values,), float(number)), "bias": torch.arange(5.0), "count": torch.tensor(number)}
    return Checkpoint({"num_classes": 2}, metadata, net, progress={"step": number})


def number_of(path: Path) -> int:
    """Return the number of a numbered checkpoint. Raises CheckpointError."""
    checkpoint = load_checkpoint(path)
    number = int(checkpoint.progress["step"])
    assert torch.equal(checkpoint.net["weight"], torch.full_like(checkpoint.net["weight"], float(number)))
    return number


@contextmanager
def dying_after_save(step: int, error: type[BaseException]) -> Iterator[None]:
    """Raise an error as soon as the training's step is saved, as if the power went off."""
    save_last = CheckpointSaver.save_last

    def save_then_die(saver: CheckpointSaver) -> None:
        save_last(saver)
        if saver.state.progress.step == step:
            raise error

    with mock.patch.object(CheckpointSaver, "save_last", save_then_die):
        yield


def forked(work: Callable[[], Any], output: str = os.devnull) -> int:
    """Run `work` in a fork of this process, whose stdout and stderr are appended to `output`; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
        warnings.filterwarnings("default", "This DataLoader will create")  # more processes than the machine has cores
        code = int(work() or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ranks(count: int, work: Callable[[], Any], output: str | Path = os.devnull) -> list[int]:
    """Run `work` in forks of this process with the variables that torchrun sets; return their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work_as(rank: int) -> Any:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        os.environ.update({name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()})
        return work()

    return [exit_code(pid) for pid in [forked(partial(work_as, rank), str(output)) for rank in range(count)]]


def kill_saves(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill a loop of saves repeatedly, each time after some milliseconds; return the counts of losses."""
    path, chance = folder / "net_last.pth", random.Random(seed)
    found = {"kills": 0, "unloadable": 0, "lost": 0, "earlier unloadable": 0, "in the middle of a save": 0}
    save_checkpoint(numbered_checkpoint(0), path)
    while found["kills"] < kills:
        start = number_of(path)
        reader, writer = os.pipe()
        pid = forked(lambda path=path, start=start, writer=writer: _save_on(path, start, writer))
        os.close(writer)
        announcements = os.read(reader, 4)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        while more := os.read(reader, 2**16):
            announcements += more
        os.close(reader)
        found["kills"] += 1
        found["in the middle of a save"] += any(folder.glob(".*.tmp"))
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        announced = int.from_bytes(announcements[-4:], "little")
        try:
            found["lost"] += number_of(path) < announced
        except CheckpointError:
            found["unloadable"] += 1
            save_checkpoint(numbered_checkpoint(announced), path)
        for file in backup_files(path):
            try:
                number_of(file)
            except CheckpointError:
                found["earlier unloadable"] += 1
    return found


def _save_on(path: Path, start: int, writer: int) -> None:
    for number in range(start + 1, 2**31):
        save_checkpoint(numbered_checkpoint(number), path, backups=2)
        os.write(writer, number.to_bytes(4, "little"))


def small_training(folder: Path) -> Path:
    """Write images, lists and the config of a training of nine steps; return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = dict(RECIPE)
    for split, count in (("train", 21), ("val", 9)):
        for number in range(count):
            write_image(folder / "images" / split / f"{number:02d}.png", number % 3, seed=number + 100 * (count < 20))
        lines = [f"{split}/{number:02d}.png----{number % 3}\n" for number in range(count)]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        values[f"{split}_data_root_dir"] = str(folder / "images")
        values[f"{split}_data_file"] = str(folder / f"{split}.txt")
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder / "config.json"


def arguments(config: Path, save_path: Path, workers: int = 0) -> list[str]:
    return ["--config", str(config), "--set", f"save_path={save_path}", "--set", f"dataloader_workers={workers}"]


def results_of(weights: Path) -> tuple[Any, ...]:
    """Return digests and metrics of a finished training: last and best, net and average."""
    last, best = load_checkpoint(weights / "net_last.pth"), load_checkpoint(weights / "net.pth")
    digests = [weights_sha256(state) for state in (last.net, last.deployed(), best.net, best.deployed())]
    return *digests, last.progress["curves"], last.progress["best"], last.progress["step"], last.progress["epoch"]


def kill_training(
    folder: Path, config: Path, kills: int, workers: int, expected: tuple[Any, ...], duration: float
) -> dict[str, Any]:
    """Kill a training at random moments, three times until it ends; compare each end's results with `expected`.

    `duration` is the approximate number of seconds of an undisturbed training.
    """
    chance = random.Random(workers)
    folder.mkdir(exist_ok=True)
    found: dict[str, Any] = {"workers": workers, "kills": 0, "unloadable": 0, "ended otherwise": 0, "ends": 0}
    killed_at = set()
    while found["kills"] < kills:
        weights = folder / f"killed{found['ends']}"
        given, last = arguments(config, weights, workers), weights / "net_last.pth"
        kills_here = 0
        while kills_here < 3 and found["kills"] < kills:
            pid = forked(lambda given=given, last=last: train.main(_resumed(given, last)))
            time.sleep(chance.uniform(0.1, 0.8) * duration)
            os.kill(pid, signal.SIGKILL)
            if exit_code(pid) == 0:
                duration *= 0.8  # it was faster: the machine is less busy
                break
            kills_here += 1
            found["kills"] += 1
            try:
                killed_at.add(load_checkpoint(last).progress["step"] if last.exists() else 0)
                if (weights / "net.pth").exists():
                    load_checkpoint(weights / "net.pth")
            except CheckpointError:
                found["unloadable"] += 1
        output = folder / f"output{found['ends']}.txt"
        pid = forked(lambda given=given, last=last: train.main(_resumed(given, last)), str(output))
        finished = exit_code(pid)
        if finished != 0 or results_of(weights) != expected:
            found["ended otherwise"] += 1
            found["output"] = [*found.get("output", []), finished, output.read_text(encoding="utf-8")]
        found["ends"] += 1
    return {**found, "steps saved when killed": sorted(killed_at)}


def _resumed(given: list[str], last: Path) -> list[str]:
    return [*given, "--resume"] if last.exists() else given


class Faults:
    """While entered, the operation number `at` (and with `for_good` every later one) of a save fails with `errno`.

    Counted are opens, writes, reads, fsyncs, links and renames of files in `folder`; `done` names them.
    """

    def __init__(self, folder: Path, at: int = -1, errno: int = 0, *, for_good: bool = False) -> None:
        self.folder, self.at, self.errno, self.for_good = str(folder), at, errno, for_good
        self.done: list[str] = []

    def count(self, what: str, path: Any) -> None:
        if not str(path).startswith(self.folder):
            return
        self.done.append(what)
        number = len(self.done) - 1
        if number == self.at or (self.for_good and number >= self.at >= 0):
            raise OSError(self.errno, os.strerror(self.errno), str(path))

    @contextmanager
    def __call__(self) -> Iterator[Faults]:
        real_open = Path.open

        def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if "w" not in mode:
                return real_open(path, mode, *rest, **options)
            self.count("open", path)
            return FaultyFile(real_open(path, mode, *rest, **options), self, path)

        def counted(module: Any, name: str, what: str) -> Any:
            real = getattr(module, name)

            def operation(path: Any, *rest: Any, **options: Any) -> Any:
                self.count(what, Path(f"/proc/self/fd/{path}").readlink() if what == "fsync" else path)
                return real(path, *rest, **options)

            return mock.patch.object(module, name, operation)

        with (
            mock.patch.object(Path, "open", opened),
            counted(os, "fsync", "fsync"),
            counted(os, "replace", "replace"),
            counted(os, "link", "link"),
            counted(os, "open", "open folder"),
        ):
            yield self


class FaultyFile:
    """A file whose writes and reads fail on request."""

    def __init__(self, file: Any, faults: Faults, path: Path) -> None:
        self.file, self.faults, self.path = file, faults, path

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        self.faults.count("write", self.path)
        return int(self.file.write(data))

    def read(self, size: int = -1) -> Any:
        self.faults.count("read", self.path)
        return self.file.read(size)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.helpers.breaking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("saves", "training"))
    parser.add_argument("kills", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lost = 0
    with tempfile.TemporaryDirectory(prefix="breaking-") as folder, suppress(KeyboardInterrupt):
        if args.what == "saves":
            results: Iterator[dict[str, Any]] = iter([kill_saves(Path(folder), args.kills)])
        else:
            shares = [args.kills // 3 + (number < args.kills % 3) for number in range(3)]
            pairs = zip((0, 2, 4), shares, strict=True)
            config, start = small_training(Path(folder)), time.monotonic()
            assert exit_code(forked(lambda: train.main(arguments(config, Path(folder) / "undisturbed")))) == 0
            duration, expected = time.monotonic() - start, results_of(Path(folder) / "undisturbed")
            results = (
                kill_training(Path(folder) / str(workers), config, share, workers, expected, duration)
                for workers, share in pairs
            )
        for result in results:
            print(json.dumps(result), flush=True)
            lost += sum(result.get(key, 0) for key in ("unloadable", "lost", "earlier unloadable", "ended otherwise"))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
