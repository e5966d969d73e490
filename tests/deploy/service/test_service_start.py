"""The service as a program: start, signals, stop, and mistakes in its flags."""

import base64
import io
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.backends.base import BackendError
from deploy.backends.loading import load_backend
from deploy.inference.predictor import Predictor
from deploy.service import launcher
from deploy.service.cli_args import TOKEN_VARIABLE
from deploy.service.limits import Limits
from nets.net_interface import build_net
from tests.helpers.serving import (
    METADATA,
    PATIENCE_S,
    GatedBackend,
    RunningService,
    base64_of,
    png,
    port_of,
    start,
    wait,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    metadata = ModelMetadata(
        ("猫", "dog", "bird"), Preprocess(32, 32), {"module": "resnet_module", "name": "resnet18", "args": {}}
    )
    net = build_net("resnet_module", "resnet18", num_classes=3, img_height=32, img_width=32, model_args={})
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    save_checkpoint(Checkpoint({}, metadata, net.state_dict()), path)
    return path


def noise(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_checkpoint_is_served_with_heat_maps_until_a_signal(weights: Path) -> None:
    program = "import sys; from deploy.service.launcher import main; raise SystemExit(main())"
    process = start(
        program, "--weights", weights, "--service_port", 0, "--device", "cpu", "--batch_size", 2, "--drain_s", 0
    )
    try:
        port, start_message = port_of(process)
        one = RunningService(port, GatedBackend())
        assert start_message.splitlines() == [
            "serving resnet18 (3 classes, 32x32) on torch cpu",
            f"  address  http://127.0.0.1:{port}",
            f"  net      {weights}",
            "  paths    POST /predict; GET / /docs /metrics /v2",
        ]
        assert one.get("/info")[1]["heatmap"] is True
        data = noise((60, 40))
        response = one.send("/predict", {"content": base64_of(data), "need_heatmap": True})[1]
        (entry,) = response["data"]
        (prediction,) = Predictor(*load_backend(weights, device="cpu")).predict_images([Image.open(io.BytesIO(data))])
        assert (entry["label"], entry["class"]) == (prediction.label, prediction.class_name)
        assert entry["score"] == pytest.approx(prediction.score, abs=1e-5)
        head, _, image = entry["heatmap"].partition(",")
        assert head == "data:image/jpeg;base64"
        drawn = Image.open(io.BytesIO(base64.b64decode(image)))
        assert drawn.width / drawn.height == 60 / 40 and drawn.getextrema() != ((0, 0),) * 3
        assert "heatmap" not in one.send("/predict", {"content": base64_of(data)})[1]["data"][0]
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, output, errors) == (0, "", "")
    finally:
        process.kill()
        process.communicate()


SLOW_SERVICE = """
import sys, time
import deploy.backends.loading
from deploy.service.launcher import main
from tests.helpers.serving import METADATA, GatedBackend
class Slow(GatedBackend):
    def __call__(self, images):
        time.sleep(0.3)
        return super().__call__(images)
deploy.backends.loading.load_backend = lambda *_, **__: (Slow(), METADATA)
raise SystemExit(main())
"""


def is_listening(service: RunningService) -> bool:
    try:
        service.connect().close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_completed_before_the_end(weights: Path, number: signal.Signals) -> None:
    process = start(SLOW_SERVICE, "--weights", weights, "--service_port", 0, "--no_batching", "--drain_s", 0)
    try:
        port, _ = port_of(process)
        one = RunningService(port, GatedBackend())
        responses: list[tuple[int, Any, Any]] = []
        body = {"content": [base64_of(png(250))] * 2}
        threads = [threading.Thread(target=lambda: responses.append(one.send("/predict", body))) for _ in range(2)]
        with one.connect():  # it sends nothing, and delays nothing
            for thread in threads:
                thread.start()
            wait(lambda: one.metric("service_queue_pictures") >= 3)
            process.send_signal(number)
            wait(lambda: not is_listening(one))
            for thread in threads:
                thread.join()
        assert [len(response["data"]) for _, response, _ in responses] == [2, 2]
        output, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, output, errors) == (0, "", "")
    finally:
        process.kill()
        process.communicate()


def test_readiness_fails_before_the_port_closes(weights: Path) -> None:
    process = start(SLOW_SERVICE, "--weights", weights, "--service_port", 0, "--drain_s", 1.5)
    try:
        port, _ = port_of(process)
        one = RunningService(port, GatedBackend())
        assert one.get("/readyz")[0] == 200
        process.send_signal(signal.SIGTERM)
        wait(lambda: one.get("/readyz")[0] == 503)
        status, response, headers = one.send("/predict", {"content": base64_of(png(250))})
        assert (status, response["code"], headers["connection"]) == (200, 200, "close")
        assert process.communicate(timeout=PATIENCE_S) == ("", "") and process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def start_error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the message of a start that fails."""
    assert launcher.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err.removeprefix("python -m deploy.service: ").rstrip()


def test_mistakes_at_the_start_are_one_line(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start_error(capsys, "--weights", tmp_path / "no.pth").startswith(f"{tmp_path / 'no.pth'}: ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert start_error(capsys, "--weights", weights, "--service_port", port) == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use; stop what listens there, or choose another "
            "--service_port"
        )
    at_host = ("--weights", weights, "--service_port", 0, "--host")
    assert start_error(capsys, *at_host, "no such host").startswith("--host no such host: no such address here: ")
    for name in ("a..b", "a" * 70):  # Python itself refuses these, as a UnicodeError
        assert start_error(capsys, *at_host, name) == f"--host {name}: no such address here: not a host name"
    assert start_error(capsys, *at_host, "192.0.2.1") == "cannot listen on 192.0.2.1:0: Cannot assign requested address"
    for token in ("", " a", "a\n"):
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        message = f"{TOKEN_VARIABLE} must be a token without spaces around it; unset it to require none"
        assert start_error(capsys, "--weights", weights, "--service_port", 0) == message


def test_a_net_of_features_and_limits_that_contradict_each_other(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = ModelMetadata(METADATA.class_names, METADATA.preprocess, METADATA.net, output="features")
    monkeypatch.setattr("deploy.backends.loading.load_backend", lambda *_, **__: (GatedBackend(), features))
    common = ("--weights", weights, "--service_port", 0)
    assert start_error(capsys, *common).startswith("this net gives features, not classes")
    monkeypatch.setattr("deploy.backends.loading.load_backend", lambda *_, **__: (GatedBackend(), METADATA))
    assert start_error(capsys, *common, "--queue", 3) == "--queue must be at least --max_pictures, got 3 and 16"
    assert start_error(capsys, *common, "--decode_memory_mb", 9).startswith("--decode_memory_mb must be at least ")
    broken = GatedBackend()
    broken.failure = BackendError("the net failed on fake cpu: no")
    monkeypatch.setattr("deploy.backends.loading.load_backend", lambda *_, **__: (broken, METADATA))
    assert start_error(capsys, *common) == "the net failed on fake cpu: no"


def test_a_bug_s_own_value_error_keeps_its_traceback(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        return np.zeros(2) + np.zeros(3)

    monkeypatch.setattr("deploy.backends.loading.load_backend", broken)
    with pytest.raises(ValueError, match="operands could not be broadcast together"):
        launcher.main(["--weights", str(weights), "--service_port", "0"])


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--queue", "0", 'argument --queue: must be a whole number from 1 to 100000, got "0"'),
        ("--max_body_mb", "1.5", 'argument --max_body_mb: must be a whole number from 1 to 4096, got "1.5"'),
        ("--request_timeout_s", "nan", 'argument --request_timeout_s: must be a number from 0.1 to 3600, got "nan"'),
        ("--service_port", "65536", 'argument --service_port: must be a whole number from 0 to 65535, got "65536"'),
        ("--http_status", "maybe", "argument --http_status: invalid choice: 'maybe'"),
    ],
)
def test_flags_have_ranges(flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        launcher.main(["--weights", "x.pth", flag, value])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


WITHOUT_TORCH = """
import sys
from deploy.service.launcher import main
try:
    main(["--help"])
finally:
    assert not {"torch", "fastapi"} & set(sys.modules)
"""


def test_help_needs_no_torch_and_names_every_limit() -> None:
    process = start(WITHOUT_TORCH)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")
    assert all(f"--{name} " in output for name in Limits.__dataclass_fields__)
