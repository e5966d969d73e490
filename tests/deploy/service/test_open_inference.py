"""The Open Inference Protocol: requests as its text has them, and as Triton's client writes them, byte by byte."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from common.version import VERSION
from deploy.backends.base import BackendError
from deploy.backends.loading import load_backend
from deploy.inference.predictor import Predictor, prepare
from deploy.inference.tiles import TiledPredictor
from deploy.inference.uncertainty_scores import softmax
from tests.helpers import masks_served
from tests.helpers.exported import FromBytes, TinyNet, build_metadata, example_of, write_onnx
from tests.helpers.serving import JSON, METADATA, GatedBackend, RunningService, base64_of, flags, png, running, serving

MODEL, INFER = "/v2/models/model", "/v2/models/model/infer"
TAKEN = 'input "images" must be FP32 of shape [N, 3, 8, 8], or BYTES of shape [N]: encoded images; got '
PIXELS = (np.random.default_rng(0).integers(-8, 9, (2, 3, 8, 8)) / 8).astype(np.float32)  # whose sums are exact
# What tritonclient 2.73.0 writes (generate_request_body) of PIXELS, of two encoded images, and of an answer in JSON.
TENSORS = (
    b'{"inputs":[{"name":"images","shape":[2,3,8,8],"datatype":"FP32","parameters":{"binary_data_size":1536}}],'
    b'"parameters":{"binary_data_output":true}}'
)
NAMED = (
    b'{"id":"7","inputs":[{"name":"images","shape":[2,3,8,8],"datatype":"FP32","parameters":{"binary_data_size":1536}}],'
    b'"outputs":[{"name":"logits","parameters":{"binary_data":false}}]}'
)
ENCODED = (
    b'{"inputs":[{"name":"images","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":%d}}],'
    b'"parameters":{"binary_data_output":true}}'
)


def infer(service: RunningService, head: bytes, data: bytes = b"") -> tuple[int, Any, bytes]:
    """Send a request with bytes behind its JSON; return the status, the JSON and the bytes behind it."""
    length = str(len(head))
    headers = {"content-type": "application/octet-stream", "Inference-Header-Content-Length": length}
    status, content, got = service.send(INFER, head + data, headers)
    if got["content-type"] == "application/json":
        return status, content, b""
    end = int(got["inference-header-content-length"])
    return status, json.loads(content[:end]), content[end:]


def asked(**changes: Any) -> dict[str, Any]:
    """Return a request of one image in JSON; `changes` are of its input."""
    tensor = {"name": "images", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.5] * 192, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def logits_of(pixels: np.ndarray) -> np.ndarray:
    """Return what the helpers' net gives."""
    return GatedBackend()(np.ascontiguousarray(pixels))


def test_the_server_and_its_model_say_what_they_are(service: RunningService) -> None:
    extensions = ["binary_tensor_data"]
    assert service.get("/v2")[1] == {"name": "classic-trainer", "version": VERSION, "extensions": extensions}
    assert service.get("/v2/health/live")[:2] == (200, {"live": True})
    assert service.get("/v2/health/ready")[:2] == (200, {"ready": True})
    model = {
        "name": "model",
        "versions": ["1"],
        "platform": "pytorch_fake",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert service.get(MODEL)[1] == service.get(f"{MODEL}/versions/1")[1] == model
    assert service.get(f"{MODEL}/ready")[:2] == (200, {"name": "model", "ready": True})


def test_bytes_and_json_give_the_nets_outputs(service: RunningService) -> None:
    expected = logits_of(PIXELS)
    status, head, data = infer(service, TENSORS, PIXELS.tobytes())
    assert (status, head["model_name"], head["model_version"]) == (200, "model", "1") and "id" not in head
    size = {"binary_data_size": 24}
    assert head["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": size}]
    assert data == expected.tobytes()  # little-endian, row by row
    status, head, data = infer(service, NAMED, PIXELS.tobytes())
    assert (status, head["id"], data) == (200, "7", b"")
    assert np.array(head["outputs"][0]["data"], np.float32).tobytes() == expected.tobytes()
    for values in (PIXELS.tolist(), PIXELS.ravel().tolist()):  # nested, and flat
        status, head, _ = service.send(f"{MODEL}/versions/1/infer", asked(shape=[2, 3, 8, 8], data=values))
        assert status == 200 and np.array(head["outputs"][0]["data"], np.float32).tobytes() == expected.tobytes()


def test_a_body_of_bytes_alone_is_one_image(service: RunningService) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    status, content, got = service.send(INFER, PIXELS[0].tobytes(), headers)
    end = int(got["inference-header-content-length"])
    assert (status, content[end:]) == (200, logits_of(PIXELS[:1]).tobytes())
    status, content, _ = service.send(INFER, PIXELS[0].tobytes()[:-4], headers)
    assert (status, content["error"]) == (400, 'input "images": FP32 of shape [1, 3, 8, 8] has 768 bytes, got 764')


def test_encoded_images_are_decoded_as_for_predict(service: RunningService) -> None:
    images = [png(0), png(250)]
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    status, head, outputs = infer(service, ENCODED % len(data), data)
    expected = logits_of(np.stack([prepare(METADATA.preprocess.decode(image), METADATA) for image in images]))
    assert (status, head["outputs"][0]["shape"]) == (200, [2, 3])
    assert np.allclose(np.frombuffer(outputs, "<f4").reshape(2, 3), expected, rtol=1e-6)
    texts = [[base64_of(image)] for image in images]
    in_json = service.send(INFER, asked(shape=[2, 1], datatype="BYTES", data=texts))[1]["outputs"][0]
    assert np.allclose(np.array(in_json["data"]).reshape(2, 3), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    metadata = build_metadata(temperature=1.7)
    return write_onnx(TinyNet().eval(), tmp_path_factory.mktemp("onnx") / "tiny.onnx", metadata, example_of(metadata))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_outputs_are_those_of_the_file_and_of_predict_to_the_bit(onnx_file: Path, runtime: str, page: Path) -> None:
    backend, metadata = load_backend(onnx_file, device="cpu", runtime=runtime)
    image = png(90, (40, 30))
    pixels = prepare(metadata.preprocess.decode(image), metadata)[None]
    length = struct.pack("<I", len(image))
    head = ENCODED.replace(b"[2]", b"[1]") % (len(image) + 4)
    tensor = TENSORS.replace(b"[2,3,8,8]", b"[1,3,16,16]").replace(b"1536", b"3072")
    with running(Predictor(backend, metadata), flags("--workers", 2, "--topk", 3), page=page) as port:
        service = RunningService(port, GatedBackend())
        assert service.get(MODEL)[1]["platform"] == "onnx_onnxv1"
        encoded, raw = infer(service, head, length + image)[2], infer(service, tensor, pixels.tobytes())[2]
        scores = dict(service.send("/predict", {"content": base64_of(image)})[1]["data"][0]["top_k"])
    assert encoded == raw
    logits = np.frombuffer(raw, "<f4").reshape(1, 3)
    assert dict(zip(metadata.class_names, softmax(logits, 1.7)[0].tolist(), strict=True)) == scores
    own = onnxruntime.InferenceSession(onnx_file).run(["logits"], {"images": pixels})[0]
    assert np.array_equal(logits, own) if runtime == "onnxruntime" else np.allclose(logits, own, atol=1e-5)


def test_files_with_their_preprocessing_take_bytes(tmp_path: Path, page: Path) -> None:
    metadata = build_metadata(input="uint8 NHWC RGB")
    net = FromBytes(TinyNet(), metadata.preprocess, bgr=False).eval()
    path = write_onnx(net, tmp_path / "bytes.onnx", metadata, example_of(metadata))
    pixels = np.random.default_rng(1).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    request = asked(shape=[1, 16, 16, 3], datatype="UINT8", data=pixels.tolist())
    with running(Predictor(*load_backend(path, runtime="onnxruntime")), flags("--workers", 2), page=page) as port:
        service = RunningService(port, GatedBackend())
        assert service.get(MODEL)[1]["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 16, 16, 3]}]
        status, content, _ = service.send(INFER, request)
        request["inputs"][0]["data"] = [256] * 768
        too_large = service.send(INFER, request)
    own = onnxruntime.InferenceSession(path).run(None, {"images": pixels})[0]
    assert (status, np.array(content["outputs"][0]["data"], np.float32).tobytes()) == (200, own.tobytes())
    message = 'input "images": "data" must hold the 768 numbers of UINT8 [1, 16, 16, 3]'
    assert too_large[:2] == (400, {"error": message})


def test_masks_and_pairs(page: Path) -> None:
    predictor = Predictor(masks_served.ChangeBackend(), masks_served.PAIRS)
    data = [base64_of(png(0, (16, 16))), base64_of(png(255, (16, 16)))]
    pairs = asked(shape=[1, 2], datatype="BYTES", data=data)
    with running(predictor, flags("--workers", 2), page=page) as port:
        service = RunningService(port, GatedBackend())
        status, content, _ = service.send(INFER, pairs)
        assert service.get(MODEL)[1]["outputs"] == [
            {"name": "mask_logits", "datatype": "FP32", "shape": [-1, 2, 16, 16]}
        ]
        wrong = service.send(INFER, asked(shape=[2], datatype="BYTES", data=data))
    assert (status, content["outputs"][0]["shape"]) == (200, [1, 2, 16, 16])
    assert content["outputs"][0]["data"] == [4.5] * 256 + [9.0] * 256  # "same", and what the second has more
    message = (
        'input "images" must be FP32 of shape [N, 6, 16, 16], or BYTES of shape [N, 2]: encoded images; got "BYTES" of'
    )
    assert wrong[:2] == (400, {"error": f"{message} shape [2]"})


def test_with_tiles_encoded_images_belong_to_predict(page: Path) -> None:
    metadata = replace(masks_served.METADATA, task="detection", output="boxes")
    predictor = TiledPredictor(masks_served.BoxBackend(), metadata, 0.25)
    with running(predictor, flags("--workers", 2, "--tiles"), page=page) as port:
        service = RunningService(port, GatedBackend())
        status, content, _ = service.send(INFER, asked(shape=[1, 3, 16, 16], data=[0.0] * 768))
        refused = service.send(INFER, asked(shape=[1], datatype="BYTES", data=[base64_of(png())]))
    assert (status, content["outputs"][0]["shape"]) == (200, [1, 2, 7])
    message = 'input "images" must be FP32 of shape [N, 3, 16, 16]; got "BYTES" of shape [1]'
    assert refused[:2] == (400, {"error": message})


# --- errors


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body, or its part before the tensors' bytes, is not JSON"),
        ([], 400, 'the JSON must be an object with "inputs"'),
        ({"inputs": {}}, 400, '"inputs" must be a list of objects, got {}'),
        ({"inputs": []}, 400, 'this net takes one input, "images"; got none'),
        (asked(name="x"), 400, 'this net takes one input, "images"; got "x"'),
        ({**asked(), "id": 7}, 400, '"id" must be a text, got 7'),
        ({**asked(), "outputs": [{"name": "scores"}]}, 400, 'this net has one output, "logits"; got "scores"'),
        (asked(shape=[1, 3, 9, 8]), 400, f'{TAKEN}"FP32" of shape [1, 3, 9, 8]'),
        (asked(shape=[192]), 400, f'{TAKEN}"FP32" of shape [192]'),
        (asked(shape=[0, 3, 8, 8], data=[]), 400, f'{TAKEN}"FP32" of shape [0, 3, 8, 8]'),
        (asked(shape=[True, 3, 8, 8]), 400, f'{TAKEN}"FP32" of shape [true, 3, 8, 8]'),
        (asked(shape=None), 400, f'{TAKEN}"FP32" of shape null'),
        (asked(datatype="INT32"), 400, f'{TAKEN}"INT32" of shape [1, 3, 8, 8]'),
        (asked(data=[0.5] * 191), 400, 'input "images": "data" must hold the 192 numbers of FP32 [1, 3, 8, 8]'),
        (asked(data=["0.5"] * 192), 400, 'input "images": "data" must hold the 192 numbers of FP32 [1, 3, 8, 8]'),
        (asked(data=[[1], [1, 2]]), 400, 'input "images": "data" must hold the 192 numbers of FP32 [1, 3, 8, 8]'),
        (asked(data=None), 400, 'input "images" must have either "data" or the parameter binary_data_size'),
        (asked(parameters={"binary_data_size": 768}), 400, 'input "images" must have either "data" or the parameter'),
        (
            asked(data=None, parameters={"binary_data_size": 768}),
            400,
            "0 bytes follow the JSON, but binary_data_size is",
        ),
        (
            asked(parameters={"shared_memory_region": "a"}),
            400,
            'of "images" the parameter "shared_memory_region" is not',
        ),
        ({**asked(), "parameters": {"binary_data_output": 1}}, 400, "binary_data_output must be true or false, got 1"),
        (asked(shape=[5, 3, 8, 8], data=[0] * 960), 413, "a request may hold 4 images, this one has 5"),
        ({**asked(), "id": [[]] * 12_000}, 413, "the JSON holds more values than 4 images, the most of a request"),
        (asked(data=[1e39] * 192), 422, "images[0]: the net's output is not finite"),
        (asked(shape=[2], datatype="BYTES", data=["YQ=="]), 400, 'input "images": shape [2] needs 2 elements, got 1'),
        (asked(shape=[1], datatype="BYTES", data=["YQ=="]), 422, "images[0]: it is not an image of a known format"),
        (asked(shape=[1], datatype="BYTES", data=["?"]), 400, "images[0]: it is neither base64 nor a data URL"),
    ],
    ids=range(27),
)
def test_an_error_has_the_protocols_form(service: RunningService, body: object, status: int, message: str) -> None:
    got, response, _ = service.send(INFER, body)
    assert (got, list(response)) == (status, ["error"])
    assert response["error"].startswith(message)


@pytest.mark.parametrize(
    ("length", "data", "message"),
    [
        ("141x", b"", 'Inference-Header-Content-Length must be 0 to 146, the body\'s bytes; got "141x"'),
        ("147", b"", 'Inference-Header-Content-Length must be 0 to 146, the body\'s bytes; got "147"'),
        ("146", b"\0" * 1535, "1535 bytes follow the JSON, but binary_data_size is 1536"),
    ],
)
def test_bytes_that_are_not_what_the_header_says(
    service: RunningService, length: str, data: bytes, message: str
) -> None:
    assert service.send(INFER, TENSORS + data, {"inference-header-content-length": length})[:2] == (
        400,
        {"error": message},
    )


def test_sizes_that_do_not_fit_the_shape(service: RunningService) -> None:
    status, content, _ = infer(service, TENSORS.replace(b"1536", b"1532"), b"\0" * 1532)
    assert (status, content["error"]) == (400, 'input "images": FP32 of shape [2, 3, 8, 8] has 1536 bytes, got 1532')
    status, content, _ = infer(service, ENCODED % 7, b"\4\0\0\0abc")
    assert (status, content["error"]) == (400, 'input "images": an element of BYTES ends behind the body')


def test_other_models_paths_and_methods(service: RunningService) -> None:
    message = 'there is no model "other" of version 1 here, but "model" of version 1'
    for method, path in (
        ("GET", "/v2/models/other"),
        ("GET", "/v2/models/other/ready"),
        ("POST", "/v2/models/other/infer"),
    ):
        assert service.send(path, b"", {}, method)[:2] == (404, {"error": message})
    assert service.get("/v2/models/model/versions/2")[0] == 404
    assert service.get("/v2/nothing")[:2] == (404, {"error": "there is no /v2/nothing here; see /docs"})
    assert service.get(INFER)[:2] == (405, {"error": f"{INFER} does not take GET; see /docs"})


def test_token_names_queue_and_statuses_hold_here_too(page: Path) -> None:
    arguments = ("--queue", 4, "--max_pictures", 4, "--http_status", "ok", "--model_name", "digits")
    with serving(page, *arguments, token="secret") as service:
        bearer = {**JSON, "authorization": "Bearer secret"}
        path = "/v2/models/digits/infer"
        assert service.get("/v2/health/ready", host="balancer")[0] == service.get("/v2/health/live")[0] == 200
        assert service.get("/v2/models/digits")[:2] == (401, {"error": "the bearer token is missing or wrong"})
        site = {**bearer, "origin": "https://www.example.org"}
        assert list(service.send(path, asked(), site)[1]) == ["error"]
        assert service.send(path, asked(), bearer)[0] == 200
        assert service.send(path, asked(data=[]), bearer)[0] == 400  # not 200, as /predict has it
        text = service.get("/metrics", authorization="Bearer secret")[1].decode()
    assert f'service_requests_total{{code="200",route="{path}"}} 1.0' in text
    assert f'service_errors_total{{code="400",route="{path}"}} 1.0' in text


def test_outputs_too_many_for_json_come_as_bytes(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.service.infer_handler.MAX_JSON_NUMBERS", 2)
    status, content, _ = service.send(INFER, asked())
    assert status == 413 and content["error"].startswith("3 numbers are too many for JSON; ask for bytes")
    assert service.send(INFER, {**asked(), "parameters": {"binary_data_output": True}})[0] == 200


def test_a_failing_net(service: RunningService) -> None:
    service.backend.failure = BackendError("out of memory")
    try:
        status, content, headers = service.send(INFER, asked())
    finally:
        service.backend.failure = None
    assert (status, content, headers["retry-after"]) == (503, {"error": "the net failed; try again later"}, "1")
