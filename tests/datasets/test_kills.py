"""SIGKILL between the writes of each verb: whole files alone, the last one missing, and the same command goes on."""

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import atomic_io
from tests.helpers.records import odd_records, picture, write_set
from tools import antgo

LAST = {  # the file that a verb writes last, by the beginning of its words
    **{"package/coco": "_annotations.coco.json", "package/tfrecord": "P-meta.json", "package/kv": "P-meta.json"},
    **{"label/studio --to": "annotation_studio.json", "label/studio --from": "export_label.json"},
    **{"label/merge": "annotation_merge.json", "package/list": "config.json", "package/yolo": ""},
    "doctor/annotations": "doctor.json",
}
VERBS = [  # extract/yolo and package/voc write as the others of their pair do, extract/videos as extract/images
    *("extract/images --max-size 16", "extract/coco", "extract/voc", "extract/crop", "label/merge"),
    *("label/studio --to", "label/studio --from", "doctor/annotations", "package/coco", "package/yolo"),
    *("package/list --split 0.5,0.5 --target boxes --config recipe.json", "package/tfrecord", "package/kv"),
]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Make the input of each verb; return it by the beginning of the verb's words."""
    monkeypatch.chdir(tmp_path)
    records = [{**odd_records()[0], "image_file": name, "clip_tag": ""} for name in ("a.png", "b/c.png")]
    write_set(Path("set"), records)
    Path("recipe.json").write_text("{}")
    picture(Path("photos/a.png"), (20, 20))
    picture(Path("photos/b.png"), (20, 20), 1)
    for verb, target in (("label/studio --to", "task"), ("package/coco", "coco"), ("package/voc", "voc")):
        assert antgo.main([*verb.split(), "--src", "set/annotation.json", "--tgt", target]) == 0
    shutil.copy("task/annotation_studio.json", "set/export.json")
    coco = next(path for path in Path("coco").rglob("*.json"))
    made = {"extract/images": "photos", "extract/coco": str(coco), "extract/voc": "voc"}
    return made | {"label/studio --from": "set/export.json", "label/merge": "set/annotation.json,set/annotation.json"}


def in_a_child(words: list[str], prepare: Callable[[], None]) -> int:
    """Run a command in a forked process; return how it ended, -9 for SIGKILL."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            prepare()
            code = antgo.main(words)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def written_beside(folder: Path) -> None:
    """Let the process kill itself where it opens a file for writing under the name that it is to have."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = Path(os.fsdecode(args[0])).absolute()
            if folder in path.parents and not path.name.endswith(".tmp"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def killed_before_name(number: int) -> None:
    """Let the process kill itself before its file `number` gets its name."""
    real, calls = atomic_io.move_into_place, 0

    def move(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **kwargs)

    atomic_io.move_into_place = move


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder but those that are not whole yet, by their paths."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("verb", VERBS)
def test_a_kill_between_any_two_writes(tmp_path: Path, sources: dict[str, str], verb: str) -> None:
    if verb == "package/kv":
        pytest.importorskip("lmdb")
    if verb in ("package/tfrecord", "package/kv"):
        pytest.importorskip("crc32c")
        verb += " --prefix P"
    source = next((path for words, path in sources.items() if verb.startswith(words)), "set/annotation.json")
    last = next((name for words, name in LAST.items() if verb.startswith(words)), "annotation.json")
    target = tmp_path / "out"
    words = [*verb.split(), "--src", source, "--tgt", "out"]
    assert in_a_child(words, lambda: written_beside(target)) in (0, 1)
    whole = content_of(target)
    assert whole and (not last or last in whole)
    shutil.rmtree(target)
    number = 1
    while (code := in_a_child(words, functools.partial(killed_before_name, number))) == -signal.SIGKILL:
        found = content_of(target)
        assert len(found) < len(whole) and last not in found
        assert found.items() <= whole.items()
        if number == 2:
            again = words if verb.startswith("label/studio --from") else [*words, "--overwrite"]
            assert in_a_child(again, lambda: None) in (0, 1)
            assert content_of(target) == whole and not list(target.rglob("*.tmp"))
        shutil.rmtree(target)
        number += 1
    assert code in (0, 1) and number > 1 and content_of(target) == whole
