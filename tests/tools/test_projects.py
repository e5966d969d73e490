"""The commands of projects: what each changes in the file, what `show` tells, and every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datasets.files import write_annotations
from projects.book import Book
from projects.models import Run
from tests.conftest import CLASSES, write_image
from tools import antgo

URL = "git@host:team/birds.git"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project "birds" with an experiment "small" of one run, and a pack of three records; go there."""
    monkeypatch.chdir(tmp_path)
    run("create project", "--git", URL)
    run("create exp", "--project", "birds", "--name", "small")
    with Book().changing("birds") as project:
        metric = {"score": {"top_1": 0.9}}
        project.exp["small"].append(Run(exp="small", id="1", metric=metric, state="finish", commit="a1b2c3d"))
    for number in range(3):
        write_image(Path(f"set/{number}.png"), number, seed=number)
    records = [{"image_file": f"{number}.png", "image_label": number} for number in range(3)]
    write_annotations(Path("set"), records, CLASSES)
    run("package/tfrecord", "--src", "set/annotation.json", "--tgt", "packs", "--prefix", "P", "--num", "2")
    return tmp_path / "runs/projects"


def run(words: str, *flags: str) -> None:
    assert antgo.main([*words.split(), *flags]) == 0


def values() -> dict[str, Any]:
    return Book().read("birds").values()


def test_products_baselines_and_experts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (home.parent.parent / "small/main.py").is_file() and values()["git"] == URL
    run("add product", "--exp", "small")
    run("add baseline", "--exp", "small", "--id", "1")
    run("add expert", "--exp", "small", "--id", "1", "--project", "birds")
    assert [values()[key] for key in ("product", "baseline", "expert")] == ["small", "small.1", ["small.1"]]
    assert antgo.main(["add", "expert", "--exp", "small", "--id", "1"]) == 2
    assert "birds: small.1 is an expert already" in capsys.readouterr().err
    run("show exp")
    assert "small  1   finish  supervised  top_1 0.9000  a1b2c3d  product, baseline, expert" in capsys.readouterr().out
    run("del expert", "--exp", "small", "--id", "1")
    run("del product")
    run("del baseline")
    assert [values()[key] for key in ("product", "baseline", "expert")] == ["", "", []]
    assert len(Book().history("birds")) == 8


def test_data_are_counted_and_must_be_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("add train/label", "--tags", "spring", "--address", "packs/P-00000-of-00002")
    run("add train/unlabel", "--tags", "rest", "--address", "packs/P-*", "--num", "7")
    run("add test", "--tags", "held", "--address", "packs/P-*-tfrecord")
    data = values()["dataset"]
    label = {"tag": "spring", "num": 3, "status": True, "address": "packs/P-00000-of-00002"}
    assert data["train"]["label"] == [label] and data["train"]["unlabel"][0]["num"] == 7
    assert data["test"]["num"] == 3 and data["val"] == {}
    capsys.readouterr()
    for words, message in {
        "add train/label --tags spring --address packs/P-*": 'train/label has a tag "spring" already',
        "add val --tags a,b --address packs/P-*": '--tags must be one name without a comma, got "a,b"',
        "add val --tags a --address packs/Q-*": "packs/Q-*-tfrecord: no file fits",
        "del train/label --tags sprnig": 'birds: train/label: no tag "sprnig"; did you mean "spring"?',
    }.items():
        assert antgo.main(words.split()) == 2
        assert message in capsys.readouterr().err
    run("del train/label", "--tags", "spring")
    run("del test")
    assert values()["dataset"]["train"]["label"] == [] and values()["dataset"]["test"] == {}


def test_packs_at_addresses_are_counted_by_their_meta_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = pytest.importorskip("fsspec").filesystem("memory")
    system.put("packs", "/remote/packs", recursive=True)
    try:
        run("add train/label", "--tags", "spring", "--address", "memory://remote/packs/P-*")
        run("add train/label", "--tags", "autumn", "--address", "memory://remote/packs/P-00001-of-00002", "--num", "2")
        label = values()["dataset"]["train"]["label"]
        assert [(data["num"], data["address"]) for data in label] == [
            (3, "memory://remote/packs/P-*"),
            (2, "memory://remote/packs/P-00001-of-00002"),
        ]
        capsys.readouterr()
        system.pipe("/remote/packs/Q-meta.json", b'{"shards": []}')
        for name, message in (
            ("R", "memory://remote/packs/R-meta.json: it is not there"),
            ("Q", "memory://remote/packs/Q-meta.json: expected what package/tfrecord writes"),
        ):
            assert antgo.main(f"add val --tags a --address memory://remote/packs/{name}-*".split()) == 2
            assert message in capsys.readouterr().err
    finally:
        system.rm("/remote", recursive=True)


def test_updates_set_what_is_given_and_leave_the_rest(home: Path) -> None:
    run("update project/submitter", "--gpu", "2", "--cpu", "10", "--memory", "10000")
    run("update project/submitter", "--gpu", "1", "--ssh")
    assert values()["submitter"] == {"method": "ssh", "gpu_num": 1, "cpu_num": 10, "memory": 10000}
    Path("label.py").write_text("type = 'SKELETON'\ncategory = ['heron']\nmeta = dict(skeleton=[[0, 1]])\n")
    run("update project/label", "--config", "label.py")
    assert values()["tool"]["label"] == {"type": "SKELETON", "category": ["heron"], "meta": {"skeleton": [[0, 1]]}}
    Path("semi.json").write_text('{"temperature": 0.7}')
    run("update project/semi", "--name", "mpl", "--config", "semi.json")
    run("update project/distillation", "--name", "logits")
    assert values()["tool"]["semi"] == {"method": "mpl", "config": {"temperature": 0.7}}
    run("update project/semi", "--name=", "--config=")
    assert values()["tool"]["semi"] == {"method": "", "config": {}}


def test_what_show_tells_is_the_files(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Book().changing("birds") as project:
        project.decisions = [{"time": str(n), "event": "added", "did": "trained", "because": "data"} for n in range(12)]
        project.best = project.exp["small"][0]
    capsys.readouterr()
    run("show project", "--project", "birds", "--json")
    assert json.loads(capsys.readouterr().out) == json.loads((home / "birds.json").read_text(encoding="utf-8"))
    for word in ("exp", "best"):
        run(f"show {word}", "--project", "birds", "--json")
        assert json.loads(capsys.readouterr().out) == values()[word]
    run("show project")
    assert "birds    1     1     -        small.1 (top_1 0.9000)  git@host:team/birds.git" in capsys.readouterr().out
    run("show project", "--project", "birds")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("  added: trained")]
    assert [line.split()[0] for line in lines] == [str(number) for number in range(2, 12)]
    run("show best")
    assert "top_1  0.9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("create project --git a/birds", "birds.json: the project is there already; choose another --name"),
        ("create project --git a/b --name ../x", '"../x" can be no project\'s name'),
        ("create exp --name small", 'birds: it has an experiment "small" already'),
        ("create project --git a/b\udcff --name b", "b: a name or address is not UTF-8; give it in UTF-8"),
        ("show exp --project brids", 'no project "brids"; did you mean "birds"?'),
        ("show exp --home nowhere", "nowhere: name a project with --project; there is none yet"),
        ("add product --exp smal", 'birds: no experiment "smal"; did you mean "small"?'),
        ("add baseline --exp small --id 3", 'birds: small: no run "3"; there are 1'),
        ("del expert --exp small --id 1", 'birds: no expert "small.1"; there is none yet'),
        ("add prodcut --exp small", '"add prodcut" is no command; did you mean "product"?'),
        ("add product --expp small", "--exp"),
        ("ad product", '"ad" is no command; did you mean "add"?'),
        ("update project/submitter", "name what to set: --ssh, --gpu, --cpu or --memory"),
        ("update project/semi --name dense", '"dense" is for detectors, of which there is no semi; known: mpl'),
        ("update project/semi --name mlp", 'semi: no method "mlp"; known: mpl'),
        ("update project/semi", "name a method with --name, or its settings with --config"),
        ("update project/label --config nope.json", "nope.json: no such file"),
        ("update project/label --config bones.json", "bones.json: SKELETON needs meta.skeleton"),
        ("update project/label --config wrong.json", "wrong.json: type: input should be '', 'class', 'rect'"),
        ("update project/label --config other.json", 'other.json: unknown key "typ"'),
    ],
)
def test_mistakes(home: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    Path("bones.json").write_text('{"type": "SKELETON"}')
    Path("wrong.json").write_text('{"type": "BOX"}')
    Path("other.json").write_text('{"typ": "CLASS"}')
    before = (home / "birds.json").read_bytes()
    try:
        assert antgo.main(words.split()) == 2
    except SystemExit as error:  # argparse
        assert error.code == 2
    assert message in capsys.readouterr().err and (home / "birds.json").read_bytes() == before
