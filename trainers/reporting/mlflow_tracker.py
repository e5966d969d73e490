"""A training as a run of MLflow: its config, the numbers of each epoch, its files, and its net in the registry.

A tracker that is not enabled does nothing and imports nothing. MLflow never ends a training: what it raises ends the
tracking, with a warning.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from common.errors import UserError
from common.formatting import first_line
from configs.schema import Config

INSTALL = "pip install -r requirements-mlflow.txt"
PLACES = ("epoch", "step")  # of a point of a curve, beside its numbers
REPORTS = ("report.json", "report.html")
SQLITE = "sqlite:///"
ARTEFACTS = "mlflow-artifacts"  # beside a data base
MOST_PARAMS, LONGEST_PARAM = 100, 500  # of a call; characters, of which MLflow keeps 6,000 and shows fewer
SETTINGS = {  # of MLflow, unless the user has set them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # of 7, with growing pauses: a server that is away would hold the training
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds, of 120
}
STATUS = {"finished": "FINISHED", "stopped early": "FINISHED", "failed": "FAILED"}  # by a training's; else KILLED
P = ParamSpec("P")
Method = Callable[Concatenate["MlflowTracker", P], None]


class TrackerError(UserError):
    """A config that asks for MLflow where it is not installed; the message is one sentence for the user."""


def check_installed(config: Config) -> None:
    """Raise TrackerError where a config asks for MLflow, and it is not there."""
    if config.mlflow_tracking_uri:
        _client_module()


def while_answering(method: Method[P]) -> Method[P]:
    """Skip a method where nothing is tracked, and end the tracking where MLflow raises anything."""

    @functools.wraps(method)
    def tracked(self: MlflowTracker, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.enabled:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # MLflow's own, its data base's, its server's: whatever it is, the training goes on
            self.enabled = False
            self.log(f"warning: MLflow: nothing more is tracked: {first_line(error)}; the training goes on")

    return tracked


@dataclass
class MlflowTracker:
    """Tracks a training if `enabled`; the caller enables it in the main process only.

    `run_id` is the run that a resumed training goes on with, "" for a new one.
    """

    enabled: bool = False
    log: Callable[[str], None] = lambda text: None
    run_id: str = ""
    _client: Any = None

    @while_answering
    def begin(self, config: Config, name: str) -> None:
        """Begin a run with the config as its parameters, or go on with the one that was begun."""
        for key, value in SETTINGS.items():
            os.environ.setdefault(key, value)
        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        self._client = _client_module().MlflowClient(tracking_uri=config.mlflow_tracking_uri)
        if self.run_id:
            self._client.update_run(self.run_id, status="RUNNING")
            return
        experiment = self._experiment(config.mlflow_experiment, config.mlflow_tracking_uri)
        self.run_id = self._client.create_run(experiment, run_name=name).info.run_id
        entities = importlib.import_module("mlflow.entities")
        values = config.model_dump().items()
        params = [entities.Param(key, _text(value)[:LONGEST_PARAM]) for key, value in values]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + MOST_PARAMS])

    @while_answering
    def epoch(self, values: Mapping[str, Any], epoch: int) -> None:
        """Add the numbers of an epoch, counted from 1."""
        entities, now = importlib.import_module("mlflow.entities"), int(1000 * time.time())
        numbers = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
        metrics = [entities.Metric(key, value, now, epoch) for key, value in numbers.items() if key not in PLACES]
        self._client.log_batch(self.run_id, metrics=metrics)

    @while_answering
    def end(self, config: Config, status: str, metadata: Mapping[str, Any]) -> None:
        """Add the report and the best net, register it where a name is given, and end the run."""
        for name in REPORTS:
            if (path := Path(config.save_path) / name).is_file():
                self._client.log_artifact(self.run_id, str(path), "report")
        state = STATUS.get(status, "KILLED")
        if config.best_checkpoint().is_file() and state == "FINISHED":
            self._client.log_artifact(self.run_id, str(config.best_checkpoint()), "model")
            self._client.log_dict(self.run_id, dict(metadata), "model/metadata.json")
            if config.mlflow_model:
                self._register(config.mlflow_model, config.mlflow_alias)
        self._client.set_terminated(self.run_id, state)

    def _experiment(self, name: str, uri: str) -> str:
        """Return the id of an experiment, which is made where there is none; its files lie beside a data base."""
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = None
        if uri.startswith(SQLITE):
            place = (Path(uri.removeprefix(SQLITE)).absolute().parent / ARTEFACTS / name).as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))

    def _register(self, name: str, alias: str) -> None:
        errors = importlib.import_module("mlflow.exceptions")
        try:
            self._client.create_registered_model(name)
        except errors.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(self.run_id).info.artifact_uri}/model"
        version = self._client.create_model_version(name, source, self.run_id).version
        self._client.set_registered_model_alias(name, alias, version)
        self.log(f"  registered       models:/{name}@{alias}, version {version}")


def _client_module() -> Any:
    """Return the module of MLflow with its client. Raises TrackerError."""
    try:
        return importlib.import_module("mlflow.tracking")
    except ImportError as error:
        raise TrackerError(f"mlflow_tracking_uri needs MLflow, which is not installed: {INSTALL}") from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
