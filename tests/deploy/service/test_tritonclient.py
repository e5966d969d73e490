"""Triton's own HTTP client (requirements-checks.txt) asks the service: the bits of /predict, and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.backends.loading import load_backend
from deploy.inference.predictor import Predictor, prepare
from deploy.inference.uncertainty_scores import softmax
from tests.helpers.exported import TinyNet, build_metadata, example_of, write_onnx
from tests.helpers.serving import GatedBackend, RunningService, base64_of, flags, png, running

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed: make extras")
METADATA = build_metadata()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, page: Path) -> Iterator[RunningService]:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    write_onnx(TinyNet().eval(), path, METADATA, example_of(METADATA))
    with running(Predictor(*load_backend(path, device="cpu")), flags("--workers", 2, "--topk", 3), page=page) as port:
        yield RunningService(port, GatedBackend())


@pytest.fixture
def client(service: RunningService) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as made:
        yield made


def tensor(values: np.ndarray, datatype: str, *, name: str = "images", is_binary: bool = True) -> Any:
    """Return an input of the client."""
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=is_binary)
    return made


def test_it_finds_the_server_and_the_model(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("model")
    assert client.is_model_ready("model", "1") and not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    taken = {"name": "images", "datatype": "FP32", "shape": [-1, 3, 16, 16]}
    assert client.get_model_metadata("model")["inputs"] == [taken]


@pytest.mark.parametrize("is_binary", [True, False])
def test_it_gets_the_bits_of_predict(service: RunningService, client: Any, is_binary: bool) -> None:
    for value in (0, 90, 250):
        image = png(value, (40, 30))
        pixels = prepare(METADATA.preprocess.decode(image), METADATA)[None]
        scores = dict(service.send("/predict", {"content": base64_of(image)})[1]["data"][0]["top_k"])
        wanted = [triton.InferRequestedOutput("logits", binary_data=is_binary)]
        inputs = [tensor(pixels, "FP32", is_binary=is_binary)]
        if is_binary:  # its JSON holds text alone
            inputs.append(tensor(np.array([image], object), "BYTES"))
        for one in inputs:
            logits = client.infer("model", [one], outputs=wanted).as_numpy("logits")
            assert (logits.dtype, logits.shape) == (np.float32, (1, 3))
            assert dict(zip(METADATA.class_names, softmax(logits)[0].tolist(), strict=True)) == scores


def test_it_sends_several_images_at_once(client: Any) -> None:
    pixels = np.random.default_rng(0).normal(size=(7, 3, 16, 16)).astype(np.float32)
    together = client.infer("model", [tensor(pixels, "FP32")], request_id="7")
    assert together.get_response()["id"] == "7"
    single = [client.infer("model", [tensor(row[None], "FP32")]).as_numpy("logits")[0] for row in pixels]
    assert np.allclose(together.as_numpy("logits"), single, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "datatype", "name", "message"),
    [
        (
            (1, 3, 9, 16),
            "FP32",
            "images",
            "must be FP32 of shape [N, 3, 16, 16], or BYTES of shape [N]: encoded images",
        ),
        ((1, 3, 16, 16), "INT32", "images", 'got "INT32" of shape [1, 3, 16, 16]'),
        ((1, 3, 16, 16), "FP32", "pixels", 'this net takes one input, "images"; got "pixels"'),
    ],
)
def test_it_shows_the_protocols_errors(
    client: Any, shape: tuple[int, ...], datatype: str, name: str, message: str
) -> None:
    values = np.zeros(shape, np.float32 if datatype == "FP32" else np.int32)
    with pytest.raises(triton.InferenceServerException) as raised:
        client.infer("model", [tensor(values, datatype, name=name)])
    assert raised.value.status() == "400" and message in raised.value.message()


def test_it_shows_which_model_and_output_are_missing(client: Any) -> None:
    one = tensor(np.zeros((1, 3, 16, 16), np.float32), "FP32")
    with pytest.raises(triton.InferenceServerException, match='there is no model "other"'):
        client.infer("other", [one])
    with pytest.raises(triton.InferenceServerException, match='this net has one output, "logits"; got "scores"'):
        client.infer("model", [one], outputs=[triton.InferRequestedOutput("scores")])
