"""Shards of inference.py and their merge: byte for byte what one run writes, each image once, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import inference
from common.paths import ROOT
from deploy.inference import predictor
from deploy.inference.shard_file import is_in_use, read_shard
from deploy.inference.shards import Shard
from tests.helpers import masks_served
from tests.helpers.exported import paint
from tests.helpers.in_process import BOXES, InProcess
from tests.helpers.sharded import BROKEN, folder_of_images, infer, infer_shards, merged, write_net

ORDER = [*(f"img{number}.png" for number in range(8)), "a/猫.png", "b/=1+1.png", BROKEN, 'b/say "hi", you.png']


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_net(tmp_path_factory.mktemp("net") / "model.onnx")


@pytest.fixture(autouse=True)
def decoded_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "DecoderPool", InProcess)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder_of_images(tmp_path)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(capsys: pytest.CaptureFixture[str], output: Path) -> str:
    """Merge what cannot be merged, and return the message."""
    capsys.readouterr()
    assert merged(output) == 2 and not output.exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.removeprefix("deploy.batch.merge: ").strip().replace(f"{output.parent}/", "")


@pytest.mark.parametrize(("suffix", "count"), [(".csv", 3), (".json", 1), (".jsonl", 13)])
def test_the_merge_is_what_one_run_writes(
    suffix: str, count: int, weights: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, output = images.with_name(f"whole{suffix}"), images.with_name(f"parts{suffix}")
    assert infer(weights, images, whole) == 1
    infer_shards(weights, images, output, count)
    capsys.readouterr()
    assert merged(output) == 1
    assert output.read_bytes() == whole.read_bytes()
    shards = "1 shard" if count == 1 else f"{count} shards"
    assert capsys.readouterr().out == (
        f"12 images of {shards}, each once: 11 answered, 1 failed; results in {output}\n"
    )


def test_each_shard_has_each_nth_image_in_natural_order(weights: Path, images: Path) -> None:
    output = images.with_name("r.csv")
    infer_shards(weights, images, output, 3)
    for number in range(3):
        content = read_shard(Shard(number + 1, 3).path(output), Shard(number + 1, 3))
        assert [entry[0] for entry in content.images] == ORDER[number::3]
        assert all(size == (images / str(name)).stat().st_size for name, size in content.images)
        assert content.is_complete and content.done == 4 and content.failed == (BROKEN in ORDER[number::3])


def test_a_shard_that_is_cut_anywhere_goes_on_and_predicts_the_others_alone(
    weights: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a kill leaves is any beginning of the file from its second line on."""
    output = images.with_name("r.csv")
    infer(weights, images, output, "--shard", "1/2")
    path = Shard(1, 2).path(output)
    whole = path.read_bytes()
    ends = [match.end() for match in re.finditer(rb"\n", whole)]
    assert len(ends) == 9  # head, images, 6 rows, end
    for cut, rows in ((ends[1], 0), (ends[3] + 30, 2), (ends[7] - 1, 5), (ends[7], 6), (ends[8] - 1, 6), (ends[8], 6)):
        path.write_bytes(whole[:cut])
        capsys.readouterr()
        assert infer(weights, images, output, "--shard", "1/2") == 1
        assert path.read_bytes() == whole
        before = f"{rows} predicted before, " if rows else ""
        numbers = re.search(r"(\d+) answered, (\d+) failed, (.*?)[0-9.]+ images/s", capsys.readouterr().out)
        assert numbers and int(numbers[1]) + int(numbers[2]) == 6 - rows and numbers[3] == before


def test_damage_is_found_and_what_is_behind_it_predicted_again(
    weights: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = images.with_name("r.csv")
    infer_shards(weights, images, output, 2)
    path = Shard(2, 2).path(output)
    whole = path.read_bytes()
    place = whole.index(b'"index":2') + 8
    path.write_bytes(whole[:place] + b"3" + whole[place + 1 :])
    assert refusal(capsys, output) == (
        "r.csv.2-of-2.shard: not finished, of shard 2/2: 4 images without a prediction, img5.png, img7.png, "
        'b/=1+1.png, b/say "hi", you.png; inference.py with the same flags goes on'
    )
    assert infer(weights, images, output, "--shard", "2/2") == 0
    assert path.read_bytes() == whole


def test_a_full_disk_takes_no_row_that_was_written(
    weights: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = images.with_name("r.csv")
    path = Shard(1, 2).path(output)
    infer(weights, images, output, "--shard", "1/2")
    whole = path.read_bytes()
    fifth = [match.end() for match in re.finditer(rb"\n", whole)][4]
    path.unlink()
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (fifth + 20, before[1]))  # the system writes what fits
    try:
        assert infer(weights, images, output, "--shard", "1/2") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = "the predictions of 3 of 6 images are kept, and the same command goes on"
    assert f"inference.py: {path}: cannot write it: File too large; {kept}\n" in capsys.readouterr().err
    assert path.read_bytes() == whole[:fifth]
    assert infer(weights, images, output, "--shard", "1/2") == 1 and path.read_bytes() == whole


KILLED = """
import os, signal, sys
import inference
from deploy.inference import shard_file
count, half, real = int(sys.argv[1]), sys.argv[2] == "half", shard_file._write
calls = 0
def write(file, data):
    global calls
    calls += 1
    if calls == count:
        real(file, data[: len(data) // 2] if half else data)
        os.kill(os.getpid(), signal.SIGKILL)
    real(file, data)
shard_file._write = write
sys.exit(inference.main(sys.argv[3:]))
"""


def test_a_killed_shard_goes_on_with_its_copies(weights: Path, images: Path) -> None:
    """Killed by SIGKILL in the middle of a row and behind one."""
    whole, output, copies = images.with_name("whole.csv"), images.with_name("r.csv"), images.with_name("copies")
    infer(weights, images, whole, "--save_images", images.with_name("all"))
    flags = ["--weights", weights, "--image_dir", images, "--output", output, "--quiet", "--save_images", copies]
    flags += ["--runtime", "onnxruntime", "--workers", 1, "--device", "cpu", "--batch_size", 3, "--shard", "1/1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for count, how in ((4, "half"), (3, "whole")):
        command = [sys.executable, "-c", KILLED, str(count), how, *map(str, flags)]
        assert subprocess.run(command, cwd=ROOT, env=environment).returncode == -signal.SIGKILL
    assert read_shard(Shard(1, 1).path(output), Shard(1, 1)).done == 6
    assert inference.main([*map(str, flags)]) == 1
    assert merged(output) == 1 and output.read_bytes() == whole.read_bytes()
    assert snapshot(copies) == snapshot(images.with_name("all")) and len(snapshot(copies)) == 11


def test_shards_of_other_runs_are_refused(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = images.with_name("r.csv")
    other = write_net(tmp_path / "other.onnx", seed=1)
    first, second = (Shard(number, 2).path(output) for number in (1, 2))
    infer(weights, images, output, "--shard", "1/2")
    begun = "r.csv.1-of-2.shard: it was begun otherwise, and now there is "
    hint = "; start as then, or move the file away, which has 6 of 6 predictions"
    of_another = "r.csv.2-of-2.shard: it is of another run than r.csv.1-of-2.shard: it has "

    def differing(weights: Path, *more: object) -> tuple[str, str]:
        """Go on otherwise with the first shard, and merge it with a second that is otherwise."""
        capsys.readouterr()
        assert infer(weights, images, output, "--shard", "1/2", *more) == 2
        message = capsys.readouterr().err.removeprefix("inference.py: ").strip().replace(f"{output.parent}/", "")
        second.unlink(missing_ok=True)
        assert infer(weights, images, output, "--shard", "2/2", *more) in (0, 1)
        return message, refusal(capsys, output)

    assert differing(other) == (f"{begun}other weights{hint}", f"{of_another}other weights")
    text = "--topk 2, not 5"
    assert differing(weights, "--topk", 2) == (f"{begun}{text}{hint}", f"{of_another}{text}")
    with (images / "img3.png").open("ab") as file:
        file.write(b"a byte")
    text = "other images (names or sizes)"
    assert differing(weights) == (f"{begun}{text}{hint}", f"{of_another}{text}")
    paint(images / "c.png", 0, 77)
    text = "13 images, not 12"
    assert differing(weights) == (f"{begun}{text}{hint}", f"{of_another}{text}")
    shutil.copy(first, second)
    assert refusal(capsys, output) == "r.csv.2-of-2.shard: it holds shard 1/2; give it back its name"


def test_what_is_missing_is_named(weights: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = images.with_name("r.csv")
    assert refusal(capsys, output) == (
        f"r.csv: no shards beside it; inference.py --output {output} --shard 1/N writes the first".replace(
            f"{output.parent}/", ""
        )
    )
    infer(weights, images, output, "--shard", "2/8")
    assert refusal(capsys, output) == "r.csv: 7 of 8 shards are missing: 1/8, 3/8, 4/8, 5/8, 6/8 and 2 more"
    infer(weights, images, output, "--shard", "2/4")
    assert refusal(capsys, output) == "r.csv: beside it lie shards of 4 and 8 parts; move those of one run away"
    path = Shard(2, 8).path(output)
    path.write_bytes(b"something else")
    assert infer(weights, images, output, "--shard", "2/8") == 2
    assert capsys.readouterr().err.endswith(
        "r.csv.2-of-8.shard: not a shard that this program can go on with; move the file away\n"
    )


def test_one_process_at_a_time(weights: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = images.with_name("r.csv")
    path = Shard(1, 2).path(output)
    holder = "import sys; from pathlib import Path; from common.file_lock import lock_file\n"
    holder += "with lock_file(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    lock = path.with_name(f".{path.name}.lock")
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline()
        assert is_in_use(path) and infer(weights, images, output, "--shard", "1/2") == 2
        process.communicate()
    assert not is_in_use(path)
    assert capsys.readouterr().err == f"inference.py: {path}: another process is at this shard\n"
    assert infer(weights, images, output, "--shard", "1/2") == 1 and not lock.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--shard", "0/4"), 'must be I/N with I from 1 to N and N at most 1000, as 1/4, 2/4, 3/4 and 4/4, got "0/4"'),
        (("--shard", "5/4"), 'got "5/4"'),
        (("--shard", "1/1001"), 'got "1/1001"'),
        (("--shard", "1"), 'got "1"'),
        (("--shard", "1/2", "--image", "a.png"), "--shard 1/2 is a part of a folder: name it with --image_dir, not"),
        (("--shard", "1/2", "--save_images", "x"), "--shard 1/2 needs --output FILE: the shard's own file lies"),
        (("--shard", "1/2", "--pytorch2onnx"), "a conversion has no parts: leave out --shard 1/2"),
    ],
)
def test_mistakes_in_the_flags(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = inference.main(list(flags))
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["voc", "yolo", "coco", "studio"])
def test_label_files_are_those_of_one_run(
    kind: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of two images of one stem, which are in two shards."""
    paint(images / "img3.bmp", 1, 7)
    net = (masks_served.BoxBackend(), BOXES)
    monkeypatch.setattr(inference, "load_net", lambda *_: net)
    weights, found = tmp_path / "net.onnx", []
    weights.write_bytes(b"")
    for name in ("whole", "parts"):
        output, flags = tmp_path / name / "r.jsonl", ("--labels", kind, "--save_images", tmp_path / name)
        if name == "whole":
            assert infer(weights, images, output, *flags) == 1
        else:
            infer_shards(weights, images, output, 4, *flags)
            assert merged(output) == 1
        found.append({name: data for name, data in snapshot(tmp_path / name).items() if not name.endswith(".shard")})
    assert found[0] == found[1]
    assert len(json.loads(b"[" + found[0]["r.jsonl"].replace(b"}\n", b"},")[:-1] + b"]")) == 13
    assert len(found[0]) == 13 + {"voc": 12, "yolo": 13, "coco": 2, "studio": 2}[kind]


def test_masks_are_those_of_one_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = (masks_served.ColourBackend(), masks_served.METADATA)
    monkeypatch.setattr(inference, "load_net", lambda *_: net)
    weights = tmp_path / "net.onnx"
    weights.write_bytes(b"")
    assert infer(weights, images, tmp_path / "whole.csv", "--save_images", tmp_path / "whole") == 1
    infer_shards(weights, images, tmp_path / "parts.csv", 3, "--save_images", tmp_path / "parts")
    assert merged(tmp_path / "parts.csv") == 1
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert snapshot(tmp_path / "parts") == snapshot(tmp_path / "whole") and len(snapshot(tmp_path / "parts")) == 22
