"""browser/images as a program: its mistakes, its end, and a kill in the middle."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.paths import ROOT
from tests.helpers.records import records_of, write_set
from tests.helpers.reviewing import started
from tools import antgo


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set")


def mistake(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that is a mistake; return its one sentence. Nothing may have been written."""
    folder = Path(str(words[1])).parent if words else Path()
    before = files(folder)
    assert antgo.main(["browser/images", *map(str, words), "--port", "0"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("browser/images: ")
    assert files(folder) == before
    return err.removeprefix("browser/images: ").strip()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}  # a lock stays after a kill


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tags", "a,b,a"], '--tags "a,b,a" has "a" twice'),
        (["--tags", "a,,b"], '--tags "a,,b" has an empty tag, and a tag cannot hold a comma; write valid,invalid'),
        (["--tags", "a,b\udcff"], "--tags: 'b\\udcff' is not UTF-8"),
        (["--tags", "x" * 257], f'--tags: "{"x" * 20}..." is longer than 256 letters'),
        (
            ["--white-users", "ann"],
            '--white-users: user "ann" has no password; write ann:PASSWORD,bo:PASSWORD, or @FILE with name:password',
        ),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others connect; name who may, with --white-users ann:PASSWORD"),
        (["--user-input", "--input-root", "nowhere"], "--input-root nowhere: no such folder"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_mistakes_in_flags(source: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert message in mistake(capsys, "--src", source, *flags)


def test_a_source_that_is_not_there_or_not_of_the_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "--src", tmp_path / "x.json").startswith(f'--src "{tmp_path}/x.json": it is not there')
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    assert "expected annotations in a file that ends in .json" in mistake(capsys, "--src", tmp_path / "a.txt")
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": []}', encoding="utf-8")
    assert "got COCO's form" in mistake(capsys, "--src", tmp_path / "coco.json")
    (tmp_path / "coco.json").write_text("[]", encoding="utf-8")
    assert mistake(capsys, "--src", tmp_path / "coco.json") == f"{tmp_path}/coco.json: no record in it"
    assert mistake(capsys) == "name the annotations with --src F.json, or let a person name them with --user-input"


def test_unknown_flags_name_the_nearest(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        antgo.main(["browser/images", "--src", str(source), "--feedbak"])
    assert caught.value.code == 2 and 'did you mean "--feedback"?' in capsys.readouterr().err


def test_a_busy_port(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert antgo.main(["browser/images", "--src", str(source), "--feedback", "--port", str(port)]) == 2
    expected = (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; stop what listens there, or choose another --port"
    )
    assert capsys.readouterr().err == f"browser/images: {expected}\n"
    assert not list(source.parent.glob("*_browser*"))


def test_a_result_without_its_journal_is_not_replaced(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = source.with_name("annotation_browser.json")
    result.write_text("{}", encoding="utf-8")
    expected = f"{result}: it is there already, without its journal; move it away or add --overwrite"
    assert mistake(capsys, "--src", source, "--feedback") == expected
    with started(source, "--feedback", "--overwrite"):
        pass


def test_annotations_that_have_changed_since(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started(source, "--feedback") as (_, client):
        client.post("change", records=[0], tag="valid")
    source.write_text(source.read_text(encoding="utf-8").replace("pond", "lake"), encoding="utf-8")
    message = mistake(capsys, "--src", source, "--feedback")
    assert message.startswith(f"{source}: it has changed since the review that annotation_browser.log.jsonl holds")


def test_finish_ends_it_with_0(source: Path) -> None:
    with started(source, "--feedback", "--tags", "keep") as (process, client):
        client.post("change", records=list(range(6)), tag="keep")
        client.post("finish")
        assert process.wait(60) == 0
        assert process.stderr and process.stderr.read() == ""
    result: Any = records_of(source.with_name("annotation_browser.json"))
    assert {index: entries[0]["tag"] for index, entries in result.items()} == {
        str(index): ["keep"] for index in range(6)
    }


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_writes_what_there_is(source: Path, number: signal.Signals) -> None:
    with started(source, "--feedback") as (process, client):
        client.post("change", records=[1, 4], tag="invalid")
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    result: Any = records_of(source.with_name("annotation_browser.json"))
    assert list(result) == ["1", "4"] and result["4"][0]["tag"] == ["invalid"]
    with started(source, "--feedback") as (_, client):  # and the same command goes on
        assert client.begin()["reviewed"] == 2


def test_a_kill_loses_no_press_that_was_acknowledged(source: Path) -> None:
    with started(source, "--feedback") as (process, client):
        for record in (3, 1, 5):
            client.post("change", records=[record], tag="valid")
        process.kill()
        process.wait()
    with started(source, "--feedback") as (_, client):
        assert client.get("/api/list?tag=valid")["records"] == [1, 3, 5]
        assert client.post("undo")["marks"]["5"]["tags"] is None


def test_help_needs_no_torch() -> None:
    code = "import sys, tools.datasets.browser_images; assert not {'torch', 'onnxruntime'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
