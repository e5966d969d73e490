"""The base of the platforms: the metric file of a run at each of its ends, and no import of a platform."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ProgramError
from common.paths import ROOT
from common.signals import Stopped
from platforms import base
from platforms.base import UNFINISHED, PlatformError, TrainingFailedError, metric_file, write_json


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PlatformError("a wrong flag"), "a wrong flag"),
        (ProgramError("no memory"), "no memory"),
        (TrainingFailedError("the training failed", 7), "the training failed"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (Stopped(15), "stopped by SIGTERM"),
        (KeyboardInterrupt(), "stopped by SIGINT"),
        (ValueError("operands"), "ValueError: operands"),  # a bug
    ],
)
def test_a_failed_run_leaves_its_reason(error: BaseException, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "trial.txt"
    with pytest.raises(type(error)), metric_file(path, lambda reason: {"error": reason}):
        assert json.loads(path.read_text()) == {"error": UNFINISHED}
        raise error
    assert json.loads(path.read_text()) == {"error": reason}


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_full_disk_leaves_its_reason_too(length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file can be made any more; the reason stands in the bytes of the first one."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path, reason = tmp_path / "trial.txt", "the disk " * (length // 9)
    with pytest.raises(PlatformError), metric_file(path, lambda text: {"acc": None, "error": text}):
        size = path.stat().st_size
        monkeypatch.setattr(base, "write_atomic", full)
        raise PlatformError(reason)
    values = json.loads(path.read_text(encoding="ascii"))
    assert values["acc"] is None and values["error"] and reason.startswith(values["error"])
    assert path.stat().st_size == size


def test_the_values_of_a_run_that_succeeds_stay(tmp_path: Path) -> None:
    with metric_file(tmp_path / "trial.txt", lambda reason: {"error": reason}):
        write_json(tmp_path / "trial.txt", {"acc": 0.5, "name": "试验"})
    assert (tmp_path / "trial.txt").read_bytes() == b'{"acc": 0.5, "name": "\\u8bd5\\u9a8c"}'


def test_the_base_imports_no_platform() -> None:
    code = "import sys, platforms.base; sys.exit(any(name.startswith('platforms.tianji') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
