"""Nothing lost, nothing let in: damage, faults, kills and signals, in short; docs/reliability.md has the long runs."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inference
import train
from artifacts.archive import backup_files, clear_leftovers, remove_backups
from artifacts.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from artifacts.errors import CheckpointError, DamagedCheckpointError
from data_loader.cache import Fitting
from deploy.export.__main__ import main as export_main
from tests.helpers.breaking import (
    Faults,
    arguments,
    dying_after_save,
    exit_code,
    forked,
    kill_saves,
    kill_training,
    number_of,
    numbered_checkpoint,
    ranks,
    results_of,
    small_training,
)
from trainers import checkpoint_saver
from trainers import runner as training
from trainers.reporting.loss_log import LossLog
from trainers.runtime import distributed
from trainers.runtime.out_of_memory import advice, largest_that_fits
from trainers.tasks.classification import ClassificationTask
from trainers.tasks.table import TASKS
from trainers.trainer import Trainer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork and kill")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint 3, and 2 and 1 before it."""
    path = tmp_path / "net_last.pth"
    for number in (1, 2, 3):
        save_checkpoint(numbered_checkpoint(number, 500), path, backups=2)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a small training beside its results in `whole`."""
    folder = tmp_path_factory.mktemp("trained")
    config = small_training(folder)
    assert train.main(arguments(config, folder / "whole")) == 0
    return config


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """A file that makes a folder when it is unpickled without care."""

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"format": "classic-trainer checkpoint", "net": Hostile()}, tmp_path / "evil.pth")
    yield tmp_path / "evil.pth"
    assert not (tmp_path / "made").exists()


def finish(config: Path, weights: Path, *more: str) -> int:
    return train.main([*arguments(config, weights), *more])


# --- damage ---


def test_the_checkpoints_before_are_kept_and_numbered(saved: Path) -> None:
    assert sorted(file.name for file in saved.parent.iterdir()) == ["net_last.1.pth", "net_last.2.pth", "net_last.pth"]
    assert [number_of(file) for file in (saved, *backup_files(saved))] == [3, 2, 1]
    save_checkpoint(numbered_checkpoint(4, 500), saved, backups=1)
    assert [number_of(file) for file in (saved, *backup_files(saved))][:2] == [4, 3]
    remove_backups(saved, keep=1)
    assert [number_of(file) for file in backup_files(saved)] == [3]


def test_a_file_system_without_links_keeps_them_too(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(numbered_checkpoint(4, 500), saved, backups=2)
    assert [number_of(file) for file in (saved, *backup_files(saved))] == [4, 3, 2]


def test_what_killed_saves_left_is_removed(saved: Path) -> None:
    names = (".net_last.pth.1234.tmp", ".net_last.pth.99.earlier.tmp", ".other.pth.5.tmp", "net_last.pth.tmp")
    for name in names:
        (saved.parent / name).write_bytes(b"half")
    clear_leftovers(saved)
    assert [name for name in names if (saved.parent / name).exists()] == list(names[2:])


def test_200_damaged_checkpoints_are_all_detected(saved: Path) -> None:
    """A bit flipped anywhere, or the file cut anywhere: never read, and the one before is named."""
    whole, generator = saved.read_bytes(), np.random.default_rng(8)
    assert number_of(saved) == 3
    for number in range(200):
        position = int(generator.integers(len(whole)))
        data = bytearray(whole)
        data[position] ^= 1 << int(generator.integers(8))
        saved.write_bytes(data if number % 2 else whole[:position])
        with pytest.raises(DamagedCheckpointError, match=r"net_last\.pth: .*net_last\.1\.pth is complete"):
            load_checkpoint(saved)


@pytest.mark.parametrize("back", range(1, 72))
def test_every_byte_of_the_checksum_counts(saved: Path, back: int) -> None:
    data = bytearray(saved.read_bytes())
    data[-back] ^= 4
    saved.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=r"net_last\.pth: it is damaged"):
        load_checkpoint(saved)


def test_files_of_zeros_and_without_a_checksum(saved: Path, tmp_path: Path) -> None:
    """What a power failure leaves of a file; and the checkpoints of torch.save alone, by their archive's checksums."""
    saved.write_bytes(bytes(saved.stat().st_size))
    with pytest.raises(DamagedCheckpointError, match=r"net_last\.1\.pth is complete"):
        load_checkpoint(saved)
    bare = tmp_path / "bare.pth"
    torch.save(torch.load(tmp_path / "net_last.1.pth", weights_only=True), bare)
    assert number_of(bare) == 2
    data = bytearray(bare.read_bytes())
    data[data.find(torch.arange(5.0).numpy().tobytes()) + 6] ^= 1  # "bias", a byte of its third value
    bare.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=r"bare\.pth: it is damaged: .* does not match its checksum"):
        load_checkpoint(bare)


def test_resume_takes_the_one_before_a_damaged_last(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And ends where the undisturbed training ended. What stood there before the damage is never counted as earlier."""
    weights = tmp_path / "w"
    with dying_after_save(5, KeyboardInterrupt):
        assert finish(trained, weights, "--set", "keep_checkpoints=3") == 130
    last = weights / "net_last.pth"
    assert [load_checkpoint(file).progress["step"] for file in (last, *backup_files(last))] == [5, 4, 3]
    last.write_bytes(last.read_bytes()[:-1000])
    capsys.readouterr()
    with dying_after_save(6, KeyboardInterrupt):
        assert finish(trained, weights, "--resume", "--set", "keep_checkpoints=3") == 130
    out = capsys.readouterr().out
    assert f"warning: {last}: it is damaged" in out and "going on from net_last.1.pth, the one before" in out
    assert "at step 4" in out
    assert [load_checkpoint(file).progress["step"] for file in (last, *backup_files(last))] == [6, 5, 4]
    assert finish(trained, weights, "--resume") == 0  # keep_checkpoints is 2 again
    assert len(list(backup_files(last))) == 1
    assert results_of(weights) == results_of(trained.parent / "whole")
    assert finish(trained, weights, "--set", "num_epochs=1", "--set", "save_interval_steps=0") == 0
    assert not list(backup_files(last))  # another training's past is not this one's


@pytest.mark.parametrize("is_there", [True, False])
def test_resume_replaces_a_best_checkpoint_that_was_lost(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_there: bool
) -> None:
    """Of the last epoch, of an earlier one, and where epochs are left: what is named in the end can be read."""
    weights = tmp_path / "w"
    best, last = weights / "net.pth", weights / "net_last.pth"
    assert finish(trained, weights) == 0
    whole, of_last = load_checkpoint(best), load_checkpoint(last)

    def lose() -> None:
        best.write_bytes(best.read_bytes()[:-1]) if is_there else best.unlink()

    for step in (of_last.progress["step"], 1):
        lose()
        of_last.progress["best"]["step"] = step
        save_checkpoint(of_last, last)
        capsys.readouterr()
        assert finish(trained, weights, "--resume") == 0
        out = capsys.readouterr().out
        assert f"warning: {best} {'is damaged' if is_there else 'is not there'}: " in out
        assert ("written again from the last" in out) == (step != 1) and ("takes its place" in out) == (step == 1)
        assert weights_sha256(load_checkpoint(best).deployed()) == weights_sha256(of_last.deployed())
        assert load_checkpoint(last).progress["best"] == load_checkpoint(best).progress["best"]
    lose()
    assert finish(trained, weights, "--resume", "--set", "num_epochs=4") == 0
    assert load_checkpoint(best).progress["epoch"] >= 3
    lose()
    before = best.read_bytes() if is_there else None
    assert finish(trained, weights) == 0  # begun anew, it asks for nothing that was there
    assert best.read_bytes() != before
    assert weights_sha256(load_checkpoint(best).net) == weights_sha256(whole.net)


# --- faults ---


def test_every_fault_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net_last.pth"
    for number in (1, 2):
        save_checkpoint(numbered_checkpoint(number, 500), path, backups=1)
    with Faults(tmp_path)() as faults:
        save_checkpoint(numbered_checkpoint(3, 500), path, backups=1)
    assert {"open", "write", "read", "fsync", "link", "replace", "open folder"} == set(faults.done)
    old, survived = 3, 0
    for at in range(len(faults.done)):
        for code in (errno.EIO, errno.ENOSPC, errno.EACCES):
            for for_good in (False, True):
                try:
                    with Faults(tmp_path, at, code, for_good=for_good)():
                        save_checkpoint(numbered_checkpoint(old + 1, 500), path, backups=1)
                except CheckpointError as error:
                    assert str(error) == f"{path}: cannot write the checkpoint: {os.strerror(code)}"
                    assert number_of(path) in (old, old + 1)
                else:
                    assert faults.done[at] == "link" and not for_good  # copied in its place
                    assert number_of(path) == old + 1
                    survived += 1
                assert all(number_of(file) <= number_of(path) for file in backup_files(path))
                assert not list(tmp_path.glob(".*.tmp"))
                old = number_of(path)
    assert survived == 3


@pytest.mark.parametrize("what", ["open", "write", "fsync", "replace"])
def test_a_training_reports_a_fault_and_goes_on_later(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    weights = tmp_path / "w"
    weights.mkdir()
    for name in ("net_last.pth", "net.pth"):
        shutil.copy(trained.parent / "whole" / name, weights)
    faults = Faults(weights, 0, errno.EIO, for_good=True)
    real = faults.count
    monkeypatch.setattr(faults, "count", lambda name, path: real(name, path) if name == what else None)
    with faults():
        assert finish(trained, weights, "--resume", "--set", "num_epochs=4") in (1, 2)
    err = capsys.readouterr().err
    assert f"{weights}/net" in err and ": cannot write the checkpoint: Input/output error" in err
    assert "Traceback" not in err
    assert load_checkpoint(weights / "net_last.pth").progress["epoch"] == 3
    load_checkpoint(weights / "net.pth")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_stops_the_training_in_good_order(
    trained: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = small_disk / "w"
    assert finish(trained, weights, "--set", "num_epochs=1") == 0
    digests = results_of(weights)[0]
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free - 1_000_000))
    capsys.readouterr()
    assert finish(trained, weights, "--resume", "--set", "num_epochs=2") == 2
    err = capsys.readouterr().err
    assert f"{weights}/net_last.pth: cannot write the checkpoint: No space left on device" in err
    assert "Traceback" not in err
    assert results_of(weights)[0] == digests
    (small_disk / "filler").unlink()
    assert finish(trained, weights, "--resume", "--set", "num_epochs=2") == 0


# --- kill -9, and the gentler signals ---


def test_killed_saves_lose_nothing(tmp_path: Path) -> None:
    found = kill_saves(tmp_path, 30)
    assert (found["kills"], found["unloadable"], found["lost"], found["earlier unloadable"]) == (30, 0, 0, 0)


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_killed_trainings_end_as_if_never_killed(trained: Path, tmp_path: Path, workers: int) -> None:
    expected = results_of(trained.parent / "whole")
    found = kill_training(tmp_path, trained, 1, workers, expected, duration=1.5)
    assert (found["kills"], found["unloadable"], found["ended otherwise"]) == (1, 0, 0), found.get("output")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_the_warning_of_a_scheduler_saves(trained: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w"
    pid = forked(lambda: finish(trained, weights, "--set", "num_epochs=5000", "--set", "dataloader_workers=1"))
    while not (weights / "net_last.pth").is_file():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it is still there
        time.sleep(0.05)
    os.kill(pid, signal.SIGUSR1)
    assert exit_code(pid) == 128 + signal.SIGUSR1
    load_checkpoint(weights / "net_last.pth")


def test_a_killed_loader_process_is_reported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    flush = LossLog.flush

    def kill_then_flush(losses: LossLog) -> Any:
        if not killed:
            (worker,) = multiprocessing.active_children()
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
        return flush(losses)

    monkeypatch.setattr(LossLog, "flush", kill_then_flush)
    assert finish(trained, tmp_path / "w", "--set", "dataloader_workers=1", "--set", "num_epochs=50") == 1
    err = capsys.readouterr().err
    assert "train.py: a loader process died: lower dataloader_workers, or give the machine more memory or shared" in err
    assert "docker: --shm-size" in err


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104, "Connection reset by peer"), EOFError(), RuntimeError("received 0 items of ancdata")],
)
def test_a_loader_process_that_dies_while_it_sends_a_batch_is_reported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def lose(*_: object) -> Any:
        raise error

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data", lose)
    assert finish(trained, tmp_path / "w", "--set", "dataloader_workers=1") == 1
    err = capsys.readouterr().err
    assert err.startswith("train.py: a loader process died: lower dataloader_workers") and err.count("\n") == 1


def test_a_closed_pipe_is_no_lost_loader_process(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(LossLog, "flush", close)
    assert finish(trained, tmp_path / "w", "--set", "dataloader_workers=1") == 141  # whoever read stdout has gone
    assert capsys.readouterr().err == ""


def test_a_loader_process_that_dies_while_images_are_fitted_is_reported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, row = os.getpid(), Fitting.row

    def die(fitting: Fitting, path: str) -> Any:
        if os.getpid() != home:
            os.kill(os.getpid(), signal.SIGKILL)
        return row(fitting, path)

    monkeypatch.setattr(Fitting, "row", die)
    monkeypatch.setattr("data_loader.cache_builder.BLOCK", 4)
    cached = ("--set", "data_cache=disk", "--set", f"data_cache_dir={tmp_path / 'kept'}")
    assert finish(trained, tmp_path / "w", "--set", "dataloader_workers=1", *cached) == 1
    err = capsys.readouterr().err
    assert err.startswith("train.py: a loader process died: lower dataloader_workers") and "Traceback" not in err
    assert not list((tmp_path / "kept").iterdir())


def test_a_loader_process_that_dies_during_a_save_spoils_no_checkpoint(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's handler of SIGCHLD raises where it interrupts, which would be in the middle of the write."""
    saved: list[Path] = []
    save = save_checkpoint

    def kill_and_save(checkpoint: Any, path: Path, **options: Any) -> None:
        if not saved:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            worker.join(5)
            time.sleep(0.2)
        save(checkpoint, path, **options)
        saved.append(Path(path))

    monkeypatch.setattr(checkpoint_saver, "save_checkpoint", kill_and_save)
    assert finish(trained, tmp_path / "w", "--set", "dataloader_workers=1", "--set", "num_epochs=50") == 1
    assert "train.py: a loader process died: " in capsys.readouterr().err
    assert len(saved) == 1
    load_checkpoint(saved[0])


def test_an_unexpected_error_leaves_no_loader_process(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ignore SIGTERM, so a program that still had one would wait for it forever."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ClassificationTask, "training_step", fail)
    with pytest.raises(ZeroDivisionError):
        try:
            finish(trained, tmp_path / "w", "--set", "dataloader_workers=1")
        except ZeroDivisionError:  # its traceback holds the loader
            assert not multiprocessing.active_children()
            raise


def test_when_a_process_is_killed_the_others_leave(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "GRACE_S", 0.3)
    program = "import os, signal, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9); time.sleep(3600)"
    assert distributed.launch(["-c", program], 2) == 128 + signal.SIGKILL
    assert "train.py: process 1 was ended by SIGKILL" in capfd.readouterr().err


# --- numbers and memory ---


def test_a_loss_that_is_not_finite_names_its_images(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, shown = ClassificationTask.training_step, []

    def spoiled(task: ClassificationTask, batch: Any, generator: Any) -> Any:
        shown.append(batch["index"].tolist())
        out = step(task, batch, generator)
        return {"loss": out["loss"] * float("nan")} if len(shown) == 4 else out  # two batches a step: of the second

    monkeypatch.setattr(ClassificationTask, "training_step", spoiled)
    assert finish(trained, tmp_path / "w") == 1
    first, *named = capsys.readouterr().err.splitlines()
    assert "the loss became nan in epoch 1, step 1" in first and first.endswith("The images of that step:")
    expected = [trained.parent / f"images/train/{index:02d}.png" for index in (*shown[2], *shown[3])]
    assert [Path(line.strip()) for line in named] == expected
    assert load_checkpoint(tmp_path / "w/net_last.pth").progress["step"] == 1


@pytest.mark.parametrize("where", ["weights", "validation", "first validation"])
def test_a_net_that_is_not_finite_is_never_saved(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    weights, whole = tmp_path / "w", trained.parent / "whole"
    shutil.copytree(whole, weights)
    more = ["--resume", "--set", "num_epochs=4"]
    if where == "weights":
        train_step = Trainer.train_step

        def spoil(trainer: Trainer, *given: Any) -> None:
            train_step(trainer, *given)
            next(trainer.task.parameters()).data.fill_(float("inf"))

        monkeypatch.setattr(Trainer, "train_step", spoil)
    else:
        monkeypatch.setattr(ClassificationTask, "predict", lambda task, images: task.net(images) * float("nan"))
    if where == "first validation":
        more = ["--set", "train_mode=update", "--set", f"pretrained_path={weights}", "--set", "pretrained_file=net.pth"]
    assert finish(trained, weights, *more) == 1
    word = "the weights became NaN or infinite" if where == "weights" else "the validation loss became "
    assert word in capsys.readouterr().err
    assert (weights / "net.pth").read_bytes() == (whole / "net.pth").read_bytes()
    parameters = load_checkpoint(weights / "net_last.pth").net.values()
    assert all(value.isfinite().all() for value in parameters)


@pytest.mark.parametrize(
    ("key", "largest", "sentence"),
    [
        ("batch_size", 5, "too small for batch_size 16: batch_size 4 fits, and with accumulation_steps 8 a step has"),
        ("batch_size", 1, "too small for batch_size 16: not even the smallest batch fits: lower img_height"),
        ("val_batch_size", 2, "too small for val_batch_size 9: val_batch_size 2 fits"),
    ],
)
def test_too_little_memory_proposes_the_batch_size_that_fits(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    key: str, largest: int, sentence: str,
) -> None:  # fmt: skip
    """The device stands in for one that has no room for more than `largest` images_of: no GPU is filled here."""

    def limited(name: str, images_of: Callable[[Any], torch.Tensor]) -> None:
        real = getattr(ClassificationTask, name)

        def method(task: ClassificationTask, given: Any, *rest: Any) -> Any:
            if len(images_of(given)) > largest:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
            return real(task, given, *rest)

        monkeypatch.setattr(ClassificationTask, name, method)

    if key == "batch_size":
        limited("training_step", lambda batch: batch["image"])
    else:
        limited("predict", lambda images: images)
    more = ["--set", "batch_size=16", "--set", "num_epochs=1"]
    assert finish(trained, tmp_path / "w", *more) == 1
    err = capsys.readouterr().err
    assert sentence in err and err.rstrip().endswith("(CUDA out of memory. Tried to allocate 2.00 GiB.)")


def test_halving_a_batch() -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > 10:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    assert largest_that_fits(attempt, 100, 2) == 6 and tried == [50, 25, 12, 6]
    assert "accumulation_steps 17" in advice("batch_size", 100, 6, 1)
    with pytest.raises(RuntimeError, match="of another kind"):
        largest_that_fits(lambda _: (_ for _ in ()).throw(RuntimeError("of another kind")), 8, 2)


# --- what is let in ---


@pytest.mark.parametrize("way", ["inference", "export", "pretrained_file", "resume"])
def test_a_hostile_checkpoint_is_refused_at_every_door(
    hostile: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    image = str(trained.parent / "images/val/00.png")
    if way == "inference":
        code = inference.main(["--weights", str(hostile), "--image", image])
    elif way == "export":
        code = export_main(["--weights", str(hostile), "--formats", "jit", "--output_dir", str(tmp_path / "out")])
    elif way == "pretrained_file":
        start = ["--set", f"pretrained_path={hostile.parent}", "--set", f"pretrained_file={hostile.name}"]
        code = finish(trained, tmp_path / "w", "--set", "train_mode=finetune", *start)
    else:
        (tmp_path / "w").mkdir()
        hostile = Path(shutil.copy(hostile, tmp_path / "w/net_last.pth"))
        code = finish(trained, tmp_path / "w", "--resume")
    err = capsys.readouterr().err
    assert code == 2
    assert f"{hostile}: it holds more than plain tensors and values" in err and "Traceback" not in err


# --- the same bits ---


def test_the_same_bits_with_0_1_and_2_workers_and_in_two_runs(trained: Path, tmp_path: Path) -> None:
    expected = results_of(trained.parent / "whole")
    for run, workers in enumerate((0, 1, 2)):
        assert train.main(arguments(trained, tmp_path / str(run), workers)) == 0
        assert results_of(tmp_path / str(run)) == expected


class DoubleNet(torch.nn.Module):
    """A net in fp64 without batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.GELU(), torch.nn.Conv2d(8, 8, 3, stride=2), torch.nn.GELU(),
            torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(32, 3),
        ).double()  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images.double())
        return logits


class DoubleTask(ClassificationTask):
    """The loss in fp64 too."""

    def cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, targets)


def test_1_2_and_4_processes_agree_in_fp64(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same global batch of 12, over gloo; the rest of 9 of 21 images is shared unevenly by 2 and by 4."""
    monkeypatch.setattr(training, "build_start_net", lambda *_, **__: DoubleNet())
    monkeypatch.setitem(TASKS, "classification", DoubleTask)
    monkeypatch.setattr("trainers.tasks.classification.best_heat_maps", lambda *_: {})
    states = []
    for count in (1, 2, 4):
        more = ["--set", f"batch_size={12 // count}", "--set", "accumulation_steps=1", "--set", "mixup_alpha=0"]
        weights = tmp_path / str(count)
        assert ranks(count, partial(finish, trained, weights, *more)) == [0] * count
        states.append(load_checkpoint(weights / "net_last.pth"))
    one = states[0]
    for other in states[1:]:
        apart = max(float((one.net[name] - other.net[name]).abs().max()) for name in one.net)
        assert all(value.dtype == torch.float64 for value in one.net.values())
        assert apart < 1e-10
        for mine, theirs in zip(one.progress["curves"]["val"], other.progress["curves"]["val"], strict=True):
            assert mine["top1"] == theirs["top1"] and mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert int(other.progress["best_result"]["cells"][:, 2].sum()) == 9  # every validation image once
    moved = max(float((one.net[name] - value).abs().max()) for name, value in DoubleNet().state_dict().items())
    assert moved > 1e-3  # there was something to agree on
