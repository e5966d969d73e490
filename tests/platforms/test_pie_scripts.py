"""A script that a user wrote for the platform, with its aiUtils, runs with ours: on a folder, and on a store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.paths import ROOT
from platforms.pie_engine.nets import SEGMENTATION
from tests.helpers import masks, s3
from tests.helpers.pie import LABELS

SCRIPT = ROOT / "tests/data/pie_linknet34.py"


def run(folder: Path, environment: dict[str, str], resume: str = "") -> str:
    """Run the script in a folder, with nothing of this project but platforms/compat on its path; return its output."""
    values = {
        **{"training_id": "t", "dataset_id": "d1", "label": json.dumps(LABELS[SEGMENTATION]), "load_size": "32,32"},
        **{"model_name": "linknet34", "learning_rate": "0.001", "epochs": 2, "batch_size": 5, "resume_path": resume},
    }
    folder.mkdir(exist_ok=True)
    (folder / "traincfg.json").write_text(json.dumps(values), encoding="utf-8")
    path = os.pathsep.join(filter(None, (str(ROOT / "platforms/compat"), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, **environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    shutil.copy(SCRIPT, folder / "train.py")
    result = subprocess.run([sys.executable, "train.py"], cwd=folder, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_users_script_on_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sets/d1").mkdir(parents=True)
    masks.write_scenes(tmp_path / "sets/d1", train=5, valid=2)
    environment = {"PIE_DATASET_ROOT": str(tmp_path / "sets")}
    assert run(tmp_path / "run", environment) == "[Process: 1/2]\n[Process: 2/2]\n"
    log = json.loads((tmp_path / "run/output/trainlog.json").read_text(encoding="utf-8"))
    assert [row["epoch"] for row in log["epochs"]] == ["1", "2"]
    assert (tmp_path / "run/output/files/linknet34.th").stat().st_size > 80_000_000


@pytest.mark.slow
def test_a_users_script_on_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3", reason="requirements-pie.txt")
    pytest.importorskip("moto", reason="the S3 server of these tests: pip install moto[server]")
    from platforms.pie_engine.storage import new_client

    (tmp_path / "d1").mkdir()
    masks.write_scenes(tmp_path / "d1")
    with s3.moto_server() as port:
        environment = s3.environment(f"http://127.0.0.1:{port}")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        client = new_client()
        client.create_bucket(Bucket=s3.BUCKET)
        s3.upload(client, tmp_path / "d1", "images-of-mine/d1/")
        environment["PIE_DATASET_ROOT"] = f"s3://{s3.BUCKET}/images-of-mine"
        with pytest.raises(AssertionError, match="there is no such object"):  # its replace changes the folder, too
            run(tmp_path / "run", environment)
        s3.upload(client, tmp_path / "d1", "sets/d1/")
        environment["PIE_DATASET_ROOT"] = f"s3://{s3.BUCKET}/sets"
        assert run(tmp_path / "run", environment) == "[Process: 1/2]\n[Process: 2/2]\n"
        weights = (tmp_path / "run/output/files/linknet34.th").read_bytes()
        client.put_object(Bucket=s3.BUCKET, Key="runs/1/linknet34.th", Body=weights)
        out = run(tmp_path / "run", environment, resume=f"s3://{s3.BUCKET}/runs/1")
        assert out == "resumed\n[Process: 1/2]\n[Process: 2/2]\n"
