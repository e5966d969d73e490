"""MLflow: what a training leaves in its store, how it goes on there, and that it never ends a training."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

import train
from artifacts.checkpoint import load_checkpoint
from trainers.reporting import mlflow_tracker
from trainers.reporting.mlflow_tracker import MlflowTracker

ConfigMaker = Callable[..., Path]


class Missing(Exception):
    """What MLflow raises."""

    error_code = "RESOURCE_ALREADY_EXISTS"


class FakeClient:
    """Notes what is asked of it, as `MlflowClient` takes it; `fails` names the calls that raise."""

    calls: ClassVar[list[tuple[str, tuple[Any, ...], dict[str, Any]]]] = []
    fails: ClassVar[set[str]] = set()

    def __init__(self, tracking_uri: str) -> None:
        self._note("client", tracking_uri)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **named: self._note(name, *arguments, **named)

    def _note(self, name: str, *arguments: Any, **named: Any) -> Any:
        FakeClient.calls.append((name, arguments, named))
        if name in FakeClient.fails:
            raise Missing("\n  the server is away\nmore")
        return SimpleNamespace(
            experiment_id="7", version="3", info=SimpleNamespace(run_id="run-1", artifact_uri="file:///a/run-1")
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    """Put a stand-in in the place of MLflow."""
    modules = {"mlflow": ModuleType("mlflow"), "mlflow.tracking": ModuleType("mlflow.tracking")}
    modules |= {name: ModuleType(name) for name in ("mlflow.entities", "mlflow.exceptions")}
    modules["mlflow.tracking"].MlflowClient = FakeClient
    modules["mlflow.entities"].Param = lambda key, value: (key, value)
    modules["mlflow.entities"].Metric = lambda *values: values
    modules["mlflow.exceptions"].MlflowException = Missing
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in mlflow_tracker.SETTINGS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "set by the user")
    monkeypatch.setattr(FakeClient, "calls", [])
    monkeypatch.setattr(FakeClient, "fails", set())
    return FakeClient


def called(name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    return [call[1:] for call in FakeClient.calls if call[0] == name]


def test_a_training_and_its_resumption_are_one_run(
    fake: type[FakeClient], make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(mlflow_tracking_uri="sqlite:///m.db", mlflow_experiment="birds", mlflow_model="small")
    fake.fails = {"create_registered_model"}  # it is there already
    assert train.main(["--config", str(config)]) == 0
    params = dict(row for _, named in called("log_batch") for row in named.get("params", ()))
    assert params["learning_rate"] == "0.02" and params["mlflow_experiment"] == "birds" and params["model_args"] == "{}"
    assert all(len(named.get("params", ())) <= 100 for _, named in called("log_batch"))
    metrics = [row for _, named in called("log_batch") for row in named.get("metrics", ())]
    weights = load_checkpoint(Path(json.loads(config.read_text(encoding="utf-8"))["save_path"]) / "net_last.pth")
    points = weights.progress["curves"]["val"]
    assert {(name, value) for name, value, _, step in metrics if step == 2} == {
        (name, float(value)) for name, value in points[1].items() if name not in ("epoch", "step")
    }
    assert {"loss", "top1", "train_loss"} <= {row[0] for row in metrics} and {row[3] for row in metrics} == {1, 2}
    assert [Path(arguments[1]).name for arguments, _ in called("log_artifact")] == [
        *("report.json", "report.html", "net.pth"),
    ]
    ((_, metadata, place), _) = called("log_dict")[0]
    assert place == "model/metadata.json" and metadata["class_names"] == list(weights.metadata.class_names)
    assert called("create_model_version") == [(("small", "file:///a/run-1/model", "run-1"), {})]
    assert called("set_registered_model_alias") == [(("small", "candidate", "3"), {})]
    assert called("set_terminated") == [(("run-1", "FINISHED"), {})]
    assert "registered       models:/small@candidate, version 3" in capsys.readouterr().out

    fake.calls.clear()
    assert train.main(["--config", str(config), "--resume", "--set", "num_epochs=3"]) == 0
    assert not called("create_run") and called("update_run") == [(("run-1",), {"status": "RUNNING"})]
    assert {row[3] for _, named in called("log_batch") for row in named["metrics"]} == {3}


@pytest.mark.parametrize("call", ["client", "create_run", "log_batch", "log_artifact", "create_model_version"])
def test_it_never_ends_a_training(
    call: str, fake: type[FakeClient], make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fails = {call}
    config = make_config(mlflow_tracking_uri="http://127.0.0.1:1", mlflow_model="small", num_epochs=1)
    assert train.main(["--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert out.count("warning: MLflow: nothing more is tracked: the server is away; the training goes on") == 1
    assert len(called(call)) == 1 and "finished: best" in out


def test_an_unfinished_training_registers_nothing(fake: type[FakeClient], make_config: ConfigMaker) -> None:
    from configs.loading import process_config

    config = process_config(make_config(mlflow_tracking_uri="x", mlflow_model="small"))
    for status, state in (("interrupted by SIGTERM", "KILLED"), ("failed", "FAILED")):
        tracker = MlflowTracker(enabled=True)
        tracker.begin(config, "net")
        tracker.end(config, status, {})
        assert called("set_terminated")[-1] == (("run-1", state), {})
    assert not called("create_model_version")


def test_without_the_package_the_config_is_refused(
    make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str, *arguments: Any) -> Any:
        if name.startswith("mlflow"):
            raise ImportError(name)
        return real(name, *arguments)

    real = importlib.import_module
    monkeypatch.setattr(mlflow_tracker.importlib, "import_module", missing)
    assert train.main(["--config", str(make_config(mlflow_tracking_uri="sqlite:///m.db"))]) == 2
    message = "mlflow_tracking_uri needs MLflow, which is not installed: pip install -r requirements-mlflow.txt"
    assert capsys.readouterr().err == f"train.py: {message}\n"


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs requirements-mlflow.txt")
@pytest.mark.slow  # makes the store's tables
def test_with_the_package_itself(make_config: ConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = importlib.import_module("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = "sqlite:///m.db"
    config = make_config(mlflow_tracking_uri=uri, mlflow_experiment="birds", mlflow_model="small", mlflow_alias="best")
    assert train.main(["--config", str(config)]) == 0
    assert train.main(["--config", str(config), "--resume", "--set", "num_epochs=3"]) == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("birds").experiment_id])
    history = client.get_metric_history(run.info.run_id, "top1")
    saved = Path(json.loads(config.read_text(encoding="utf-8"))["save_path"])
    report = json.loads((saved / "report.json").read_text(encoding="utf-8"))
    assert [(each.step, each.value) for each in history] == [
        (point["epoch"], point["top1"]) for point in report["curves"]["val"]
    ]
    assert run.data.params["batch_size"] == "4" and run.info.status == "FINISHED"
    version = client.get_model_version_by_alias("small", "best")
    assert (int(version.version), version.run_id) == (2, run.info.run_id)
    mlflow.set_tracking_uri(uri)
    place = Path(mlflow.artifacts.download_artifacts("models:/small@best", dst_path=str(tmp_path / "got")))
    assert (place / "net.pth").read_bytes() == (saved / "net.pth").read_bytes()
    assert not (tmp_path / "mlruns").exists()
