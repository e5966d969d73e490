"""The files that an export leaves in its folder, however it ends: stopped, killed, out of disk, with nobody reading."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from artifacts.checkpoint import load_checkpoint, save_checkpoint
from common.signals import Stopped, ended_by_signals
from deploy.export import console, staging, writers
from deploy.export.__main__ import main as export_main
from deploy.export.errors import ExportError
from tests.helpers.exported import ENVIRONMENT, export, mistake, names_in, paint, report_of, train_net


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_net(tmp_path_factory.mktemp("trained"))


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "deploy.export", *map(str, arguments)]


# --- nothing is made


def test_a_net_that_returns_nan_is_refused_before_anything_is_made(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(trained)
    bias = next(name for name in checkpoint.net if name.endswith("bias") and checkpoint.net[name].shape == (3,))
    checkpoint.net[bias][1] = float("nan")
    save_checkpoint(checkpoint, tmp_path / "net.pth")
    monkeypatch.delattr(writers, "write_jit")
    out = tmp_path / "deep/out"
    sentence = mistake(capsys, "--weights", tmp_path / "net.pth", "--formats", "jit", "--output_dir", out)
    first = f"{trained.parent}/images/val/00.png"
    assert sentence == (
        f"the net itself returns NaN or infinite logits for 40 of 40 images, the first {first}; "
        "no file can be compared with them"
    )
    assert names_in(tmp_path) == ["net.pth"]


@pytest.mark.parametrize("flag", ["--output_dir", "--weights", "--samples", "--config", "--samples_root"])
def test_an_empty_path_is_a_mistake(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        export_main(["--weights", "net.pth", "--formats", "jit", flag, ""])
    assert caught.value.code == 2
    assert f"argument {flag}: must be a path, got an empty text" in capsys.readouterr().err


def test_a_folder_that_libraries_cannot_open_is_a_mistake(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"out\xff")
    with pytest.raises(ExportError, match="this path is not UTF-8, which some of the libraries"):
        export(trained, ["jit"], out)
    assert names_in(tmp_path) == []


# --- the temporary folder


def test_folders_that_stay_empty_are_removed_and_others_are_kept(tmp_path: Path) -> None:
    with staging.staging_folder(tmp_path / "a/b/c") as folder:
        assert folder.parent == tmp_path / "a/b/c"
        (folder / "x").touch()
    assert names_in(tmp_path) == []
    with staging.staging_folder(tmp_path / "a/b"):
        (tmp_path / "a/x").touch()
    assert names_in(tmp_path / "a") == ["x"]
    (tmp_path / "mine").mkdir()
    with staging.staging_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()  # it was there before
    with staging.staging_folder(tmp_path / "out"):
        (tmp_path / "out/model.pt").touch()
    assert names_in(tmp_path / "out") == ["model.pt"]


def test_temporary_files_lie_on_the_disk_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with staging.staging_folder(tmp_path) as folder, tempfile.NamedTemporaryFile() as file:
        assert Path(file.name).parent == folder
    assert tempfile.tempdir == "/nonexistent"


@contextmanager
def another_export(output_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that works in a folder until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from deploy.export.staging import staging_folder\n"
        "with staging_folder(Path(sys.argv[1])) as f:\n"
        " (f / 'model.pt').touch(); print('there', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(output_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout.readline() == "there\n"
        yield process
        process.kill()


def test_what_a_killed_export_left_is_removed_and_a_living_one_is_respected(tmp_path: Path) -> None:
    with another_export(tmp_path) as process:
        [left] = names_in(tmp_path)
        assert left.startswith(".export-")
        with (
            pytest.raises(ExportError, match="another export is running in this folder; wait for it, or choose"),
            staging.staging_folder(tmp_path),
        ):
            pass
        assert names_in(tmp_path) == [left]
        process.kill()
        process.wait()
        assert names_in(tmp_path) == [left]
        with staging.staging_folder(tmp_path) as folder:
            assert names_in(tmp_path) == [folder.name]
    assert names_in(tmp_path) == []


def test_another_machines_folder_and_what_is_no_exports_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    for name in (".export-there-abc/lock", ".export-here-2-abc/lock", ".export-here-abc/other", ".export-notes/x"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / ".export-here-gone").mkdir()
    (tmp_path / ".export-here-gone/lock").touch()
    before = names_in(tmp_path)
    with staging.staging_folder(tmp_path):
        pass
    assert names_in(tmp_path) == [name for name in before if name != ".export-here-gone"]


def test_an_engine_is_built_from_this_exports_own_description(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch2json import engine

    seen = []

    def write_engine(description: Path, path: Path) -> None:
        (tmp_path / "model.json").write_text("of another export")
        seen.append((description.read_text("utf-8"), (description.parent / "model.safetensors").stat().st_size))
        path.write_bytes(b"engine")
        path.with_name("model.engine.facts.json").write_text("{}")

    monkeypatch.setattr(engine, "write_engine", write_engine)
    monkeypatch.setattr("pytorch2json.tensorrt_library.library_problem", lambda: "")
    assert export(trained, ["engine"], tmp_path, device="cpu") == 0
    [(text, size)] = seen
    assert json.loads(text)["facts"]["weights_sha256"] == load_checkpoint(trained).metadata.weights_sha256
    assert size == (tmp_path / "model.safetensors").stat().st_size
    assert "model.engine" in names_in(tmp_path)


# --- ends


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_it_leaves_nothing_and_reports_it(number: signal.Signals, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = program("--weights", trained, "--formats", "onnx", "--output_dir", out, "--device", "cpu")
    before = signal.signal(number, signal.SIG_DFL)  # who starts the tests by nohup, or with &, has it ignored
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=tmp_path) as process:
        signal.signal(number, before)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/.export-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(tmp_path.glob("out/.export-*"))
        time.sleep(1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    last = errors.splitlines()[-1]  # Python may warn of a module's file that it was reading
    assert last == f"python -m deploy.export: stopped by {number.name}; the files already verified are kept", errors
    assert names_in(tmp_path) == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            with pytest.raises(Stopped, match="stopped by SIGTERM"):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def raising(error: BaseException) -> Callable[..., None]:
    def make(source: writers.Source, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    return make


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (OSError(28, "No space left on device"), "{}/model.onnx: cannot write it: No space left on device", 2),
        (Stopped(signal.SIGTERM), "stopped by SIGTERM", 143),
    ],
)
def test_what_ends_early_leaves_a_report_of_what_there_is(
    error: BaseException, reason: str, code: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = reason.format(tmp_path)
    (tmp_path / "export_report.json").write_text('{"of": "an earlier export"}')
    (tmp_path / "model.json").write_text("of an earlier export")
    monkeypatch.setattr(writers, "write_onnx", raising(error))
    asked = ["--weights", str(trained), "--output_dir", str(tmp_path), "--device", "cpu"]
    assert export_main([*asked, "--formats", "jit,onnx,json"]) == code
    formats = {entry["format"]: entry for entry in report_of(tmp_path)["formats"]}
    assert {name: entry["status"] for name, entry in formats.items()} == {
        "jit": "written",
        "onnx": "not made",
        "json": "not made",
    }
    assert formats["json"]["reason"] == f"the export ended before it: {reason}"
    assert formats["json"]["older_file_kept"] and not formats["onnx"]["older_file_kept"]
    assert names_in(tmp_path) == ["export_report.json", "model.json", "model.pt"]


def test_what_ends_before_it_made_anything_leaves_the_earlier_report(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "export_report.json").write_text('{"of": "an earlier export"}')
    monkeypatch.setattr(writers, "write_jit", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export(trained, ["jit", "pt2"], tmp_path, device="cpu")
    assert report_of(tmp_path) == {"of": "an earlier export"}


def test_a_report_that_cannot_be_written_leaves_none_of_an_earlier_export(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "export_report.json").write_text('{"of": "an earlier export"}')
    monkeypatch.setattr("deploy.export.report.ExportReport.write", fail)
    with pytest.raises(ExportError, match=r"export_report.json: cannot write it: No space left on device"):
        export(trained, ["jit"], tmp_path, device="cpu")
    assert names_in(tmp_path) == ["model.pt"]


def test_too_little_memory_to_make_a_file_is_reported(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "write_jit", raising(MemoryError()))
    assert export(trained, ["jit"], tmp_path, device="cpu") == 3
    assert report_of(tmp_path)["formats"][0]["reason"] == "too little memory to make it"


@pytest.mark.parametrize(("file_format", "name"), [("jit", "model.pt"), ("pt2", "model.pt2"), ("json", "model.json")])
def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(
    file_format: str, name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file may grow beyond 1 MB, which the system reports as it reports a full disk: an error of the write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / name).write_bytes(b"of an earlier export")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    try:
        asked = ("--weights", trained, "--formats", file_format, "--output_dir", tmp_path, "--device", "cpu")
        sentence = mistake(capsys, *asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sentence == f"{tmp_path / name}: cannot write it: File too large"
    assert names_in(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"of an earlier export"


def test_what_the_system_refuses_anywhere_is_one_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setattr("deploy.export.preparation.load_torch", refuse)
    sentence = mistake(capsys, "--weights", trained, "--formats", "jit", "--output_dir", tmp_path)
    assert sentence == "/secret: Permission denied"


# --- who reads


@pytest.mark.parametrize("place", ["closed pipe", "full disk"])
def test_a_table_that_nobody_reads_loses_no_report(place: str, trained: Path, tmp_path: Path) -> None:
    if place == "full disk" and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    reading, writing = os.pipe()
    os.close(reading)
    asked = ("--weights", trained, "--formats", "jit", "--output_dir", tmp_path, "--max_samples", "8")
    try:
        with Path("/dev/full").open("w") if place == "full disk" else os.fdopen(os.dup(writing), "w") as out:
            done = subprocess.run(
                program(*asked), stdout=out, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120
            )
    finally:
        os.close(writing)
    sentence = (
        "python -m deploy.export: the table cannot be printed (No space left on device); all is written, see "
        f"{tmp_path}/export_report.json"
    )
    captured = done.stderr.splitlines()
    assert captured[0].startswith("model.pt: written (")  # a log has a line a format
    assert (done.returncode, captured[1:]) == ((2, [sentence]) if place == "full disk" else (141, []))
    assert report_of(tmp_path)["formats"][0]["status"] == "written"


def test_paths_that_are_not_utf8_are_reported_escaped(trained: Path, tmp_path: Path) -> None:
    samples = tmp_path / os.fsdecode(b"images\xff")
    for number in range(2):
        paint(tmp_path / "made.png", number, number)
        samples.mkdir(exist_ok=True)
        shutil.move(tmp_path / "made.png", samples / os.fsdecode(b"\xfe%d.png" % number))
    assert export(trained, ["jit"], tmp_path / "out", samples=samples, device="cpu") == 0
    source = report_of(tmp_path / "out")["samples"]["source"]
    assert os.fsencode(source) == os.fsencode(samples)


def test_progress_is_for_terminals_and_a_line_a_format_for_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.log_progress("making model.pt")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console.log_progress("making model.pt")
    assert capsys.readouterr().err == "making model.pt ...\n"


def test_a_closed_terminal_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Gone:
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    console.log("a line")  # which raises nothing
    assert tried
