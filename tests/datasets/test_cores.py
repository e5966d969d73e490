"""Work over the cores gives what work in one process gives, and a worker that dies is a mistake with a sentence."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from datasets import cores
from datasets.errors import DatasetError
from datasets.outcome import Outcome
from datasets.packing import divide, readable_rows, write_tfrecords
from tests.helpers.records import odd_records, write_set

ROWS = list(range(10))
PARTS = [range(4), range(4, 5), range(5, 10)]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "CORES", 2)
    monkeypatch.setattr(cores, "FEW", 0)


def squares(rows: Sequence[int], part: range) -> tuple[int, list[int]]:
    return os.getpid(), [rows[index] ** 2 for index in part]


def test_parts_come_in_order_from_two_processes() -> None:
    made = cores.over_cores(squares, ROWS, PARTS)
    assert [squared for _, squared in made] == [[0, 1, 4, 9], [16], [25, 36, 49, 64, 81]]
    assert made[0][0] == made[2][0] != made[1][0] and os.getpid() not in {process for process, _ in made}
    assert cores.equal_parts(5) == [range(2), range(2, 5)]


def test_mistakes_of_a_process(tmp_path: Path) -> None:
    def fails(rows: Sequence[int], part: range) -> int:
        if 4 in part:
            raise DatasetError("four")
        return 0

    def dies(rows: Sequence[int], part: range) -> int:
        if 4 in part:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with pytest.raises(DatasetError, match="four"):
        cores.over_cores(fails, ROWS, PARTS)
    with pytest.raises(DatasetError, match="a process died at work"):
        cores.over_cores(dies, ROWS, PARTS)


def test_packs_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("crc32c")
    write_set(tmp_path / "set")
    (tmp_path / "set/joints.jpg").unlink()
    rows = [(record, tmp_path / "set") for record in odd_records()]
    made = []
    for few in (0, 1000):
        monkeypatch.setattr(cores, "FEW", few)
        outcome, folder = Outcome(), tmp_path / str(few)
        folder.mkdir()
        entries = write_tfrecords(readable_rows(rows, outcome), folder, divide(5, 2, "P"))
        made.append((entries, outcome, {path.name: path.read_bytes() for path in folder.iterdir()}))
    assert made[0] == made[1]
    assert [name for name, _ in made[0][1].left_out] == ["joints.jpg"] and len(made[0][2]) == 6
