"""Configs, lists, checkpoints, metadata, descriptions and requests with a few mutations: a message for the user each.

1,000 fixed cases; `make fuzz` runs 10,000 new ones.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import math
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn
from torch.nn import functional

import train
from artifacts.calibration import Calibration
from artifacts.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from artifacts.errors import ArtifactError, CheckpointError
from artifacts.metadata import ModelMetadata, preprocess_of
from artifacts.metadata_reader import read_metadata
from artifacts.outputs import INPUT_NAME
from common.paths import ROOT
from configs.loading import ConfigError, process_config
from configs.schema import Config
from data_loader.list_reader import read_list, read_unlabelled
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError, read_class_names
from deploy.inference.decision import decide
from deploy.inference.predictor import Predictor
from deploy.service.infer_request import BINARY_SIZE, DTYPES, ENCODED, Signature, read_infer_request
from deploy.service.request_parser import RequestError, read_upload
from deploy.service.routes import NATIVE
from deploy.service.server import open_server
from nets import net_interface
from pytorch2json.converter import convert
from pytorch2json.description_file import read_description, write_description
from pytorch2json.interpreter import Interpreter
from pytorch2json.network import DescriptionError
from tests.helpers.fuzzing import (
    BYTES,
    DIGITS,
    EDITS,
    FEW_BYTES,
    HUGE,
    NESTED,
    ODD,
    as_json,
    changed_bytes,
    check_sentence,
    fuzzed,
    limited,
    mutated,
    run_captured,
)
from tests.helpers.serving import METADATA, OTHER, GatedBackend, flags, png, write_page
from trainers.config_checks import net_problems
from trainers.train_state import Progress

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs a timer that interrupts")

RECIPES = sorted((ROOT / "configs").glob("*_config.json"))
CALIBRATED = ModelMetadata(
    ("cat", "狗", "bird"),
    Preprocess(16, 16),
    {"module": "m", "name": "n", "args": {"depth": 2, "parts": [1, 2]}},
    temperature=1.5,
    thresholds={"accept": 0.3, "conformal": 0.9},
    calibration=Calibration("entropy", 0.01, 0.95, 0.05, 100, 80, 0, 0.009),
    versions={"torch": "2.15.0"},
)


class SmallNet(nn.Module):
    """Many kinds of layers: images (N, 3, 8, 8) to logits (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.LayerNorm(4), nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(self.conv(images).relu(), 2)
        x = functional.interpolate(x, scale_factor=2, mode="bilinear") + x.mean((2, 3), keepdim=True)
        tokens = self.norm(x[:, :, 1::2].flatten(2).transpose(1, 2))  # (N, 32, 4)
        x = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        logits: torch.Tensor = self.head(torch.cat([x.mean(1), x.topk(2, dim=1).values[:, 1]], dim=1))
        return logits


def refused(work: Callable[[], object], kind: type[ValueError], seen: Counter[str]) -> bool:
    """Return whether a reader refuses its input, with a message for the user."""
    try:
        work()
    except kind as error:
        check_sentence(str(error))
        seen["refused"] += 1
        return True
    seen["read"] += 1
    return False


@pytest.fixture
def nets_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read nets/ once: every config's check would, in 50 ms, and the files do not change."""
    monkeypatch.setattr(net_interface, "available_nets", functools.cache(net_interface.available_nets))


@pytest.mark.usefixtures("nets_listed_once")
@pytest.mark.parametrize("checks_files", [False, True])
def test_configs(tmp_path: Path, checks_files: bool) -> None:
    file, seen = tmp_path / "config.json", Counter[str]()
    (tmp_path / "a").mkdir()
    recipes = [json.loads(path.read_text(encoding="utf-8")) for path in RECIPES]
    for recipe in recipes:
        recipe |= {"train_data_root_dir": str(tmp_path / "a"), "val_data_root_dir": str(tmp_path)}
        recipe |= {"train_data_file": "", "val_data_file": "", "class_names_file": ""} if checks_files else {}
    overrides = st.lists(st.tuples(st.sampled_from(sorted(Config.model_fields)), st.sampled_from(ODD)), max_size=1)

    @fuzzed(80, st.sampled_from(recipes), EDITS, FEW_BYTES, overrides)
    def case(recipe: Any, edits: Any, changes: Any, overrides: Any) -> None:
        file.write_bytes(changed_bytes(as_json(mutated(recipe, edits)), changes))
        given = [f"{key}={json.dumps(value)}" for key, value in overrides]
        with limited():
            try:
                config = process_config(file, given, check_files=checks_files, checks=[net_problems])
            except ConfigError as error:
                assert error.problems
                check_sentence(str(error))
                seen["no JSON" if "not valid JSON" in str(error) else "refused"] += 1
            else:
                seen["read"] += 1
                preprocess_of(config)
                config.next_config()
                config.gpu_ids()

    case()
    assert seen["read"] > 2 and seen["refused"] > 4 * seen["no JSON"], seen


@pytest.mark.usefixtures("nets_listed_once")
def test_train_prints_any_config(tmp_path: Path) -> None:
    """The complete program, with streams like a terminal's."""
    file, seen = tmp_path / "config.json", Counter[int]()
    recipe = json.loads((ROOT / "configs/flowers_config.json").read_text(encoding="utf-8"))
    recipe["model_args"] = {"model_type": "resnet34"}

    @fuzzed(40, EDITS)
    def case(edits: Any) -> None:
        file.write_bytes(as_json(mutated(recipe, edits)))
        with limited():
            code, message = run_captured(train.main, ["--config", str(file), "--print_config"])
        seen[code] += 1
        if code:
            check_sentence(message)

    case()
    assert set(seen) == {0, 2}


def test_lists(tmp_path: Path) -> None:
    images, file, seen = tmp_path / "images", tmp_path / "list.txt", Counter[str]()
    (images / "猫").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "猫/c d.jpg"):
        Image.new("RGB", (4, 4)).save(images / name)
    lines = [["a.jpg", "----", 0], ["b.jpg", "----", 1], ["猫/c d.jpg", "----", 2], ["./a.jpg", "----", 0]][:3]
    names = ("cat", "狗", "bird")

    @fuzzed(120, EDITS, BYTES, st.sampled_from(["----", ",", " ", "\t", "a"]), st.booleans())
    def case(edits: Any, changes: Any, separator: str, checks: bool) -> None:
        rows = mutated(lines, edits)
        rows = rows if isinstance(rows, list) else [rows]
        text = "\n".join("".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)
        text = text.replace(NESTED, "[" * 99).replace(DIGITS, "9" * 99).replace(HUGE, "1e400")
        file.write_bytes(changed_bytes(text.replace("----", separator).encode("utf-8", "surrogatepass"), changes))
        with limited():
            flags = {"check_files": checks, "allow_outside_root": not checks}
            refused(lambda: read_list(file, images, separator, 3, names, **flags), ListError, seen)
            refused(lambda: read_unlabelled(file, images, separator, names, **flags), ListError, seen)
            refused(lambda: read_class_names(file), ListError, seen)

    case()
    assert min(seen["read"], seen["refused"]) > 20, seen


def test_checkpoints_metadata(tmp_path: Path) -> None:
    path, seen = tmp_path / "net.pth", Counter[str]()
    net = {"weight": torch.ones(2, 3), "bias": torch.zeros(3)}
    config = json.loads((ROOT / "configs/flowers_config.json").read_text(encoding="utf-8"))
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    progress = vars(Progress(step=3, epoch=1, best={"top1": 0.5, "loss": 1.0, "epoch": 1}))
    save_checkpoint(Checkpoint(config, CALIBRATED, net, None, optimizer, None, progress), path)
    content = torch.load(path, weights_only=True)

    @fuzzed(100, EDITS)
    def case(edits: Any) -> None:
        torch.save(mutated(content, edits), path)
        with limited():
            if not refused(lambda: load_checkpoint(path), CheckpointError, seen):
                checkpoint = load_checkpoint(path)
                assert isinstance(checkpoint.config, dict) and isinstance(checkpoint.net, dict)
                refused(lambda: Progress.from_dict(checkpoint.progress), CheckpointError, seen)
            refused(lambda: load_weights(path), CheckpointError, seen)

    case()
    assert min(seen["read"], seen["refused"]) > 15, seen


def test_metadata_and_calibrations(tmp_path: Path) -> None:
    """Beside an engine they are JSON; the same function reads them from every kind of file."""
    engine, metadata_file, seen = tmp_path / "a.engine", tmp_path / "a.engine.facts.json", Counter[str]()
    engine.write_bytes(b"engine")
    logits = np.random.default_rng(0).normal(0, 3, (5, 3)).astype(np.float32)
    image = np.zeros((9, 7, 3), np.uint8)

    @fuzzed(160, EDITS, FEW_BYTES)
    def case(edits: Any, changes: Any) -> None:
        metadata_file.write_bytes(changed_bytes(as_json(mutated(CALIBRATED.to_dict(), edits)), changes))
        with limited():
            if refused(lambda: read_metadata(engine), ArtifactError, seen):
                return
            metadata = read_metadata(engine)
            assert ModelMetadata.from_dict(json.loads(metadata.to_json())) == metadata
            assert len(decide(logits[:, : metadata.num_classes], metadata)) == 5
            if metadata.preprocess.height * metadata.preprocess.width < 10**6 and metadata.preprocess.channels == 3:
                assert metadata.preprocess(image).shape == (3, metadata.preprocess.height, metadata.preprocess.width)

    case()
    assert min(seen["read"], seen["refused"]) > 10, seen


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("described") / "model.json"
    write_description(path, *convert(SmallNet(), torch.randn(2, 3, 8, 8), metadata=CALIBRATED.to_dict()))
    return path


def check_description(path: Path, images: torch.Tensor, seen: Counter[str]) -> None:
    """Read a description and, if it is valid, run it."""
    with limited():
        if not refused(lambda: read_description(path), DescriptionError, seen):
            interpreter = Interpreter.load(path)
            refused(lambda: interpreter(images), DescriptionError, seen)


def test_descriptions(described: Path, tmp_path: Path) -> None:
    path, seen = tmp_path / "model.json", Counter[str]()
    values = json.loads(described.read_text(encoding="utf-8"))
    assert len({layer["type"] for layer in values["layers"]}) > 12
    (tmp_path / "model.safetensors").write_bytes(described.with_suffix(".safetensors").read_bytes())
    images = torch.randn(2, 3, 8, 8)

    @fuzzed(100, EDITS, FEW_BYTES)
    def case(edits: Any, changes: Any) -> None:
        path.write_bytes(changed_bytes(as_json(mutated(values, edits)), changes))
        check_description(path, images, seen)

    case()
    assert min(seen["read"], seen["refused"]) > 8, seen


def test_a_layers_own_numbers(described: Path, tmp_path: Path) -> None:
    """Mutations within the schema: a layer's sizes, axes, paddings and shapes."""
    path, seen = tmp_path / "model.json", Counter[str]()
    values = json.loads(described.read_text(encoding="utf-8"))
    (tmp_path / "model.safetensors").write_bytes(described.with_suffix(".safetensors").read_bytes())
    images = torch.randn(2, 3, 8, 8)
    numbers = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 64, 10**6, 2**31, 10**12, 2**63, 10**30, -1, -8, -(2**63)])

    @fuzzed(80, st.integers(0, 999), st.integers(0, 99), numbers)
    def case(which: int, place: int, number: int) -> None:
        changed = json.loads(json.dumps(values))
        layer = changed["layers"][which % len(changed["layers"])]
        key = sorted(layer)[place % len(layer)]
        if isinstance(layer[key], list) and layer[key] and isinstance(layer[key][0], int):
            layer[key][place % len(layer[key])] = number
        elif isinstance(layer[key], (int, float)):
            layer[key] = number
        else:
            shape = layer["outputs"][0]["shape"]
            shape[place % max(1, len(shape)) :] = [number]
        path.write_bytes(as_json(changed))
        check_description(path, images, seen)

    case()
    assert min(seen["read"], seen["refused"]) > 15, seen


def test_a_descriptions_weights(described: Path, tmp_path: Path) -> None:
    from hashlib import sha256

    from safetensors.torch import load_file

    path, seen = tmp_path / "model.json", Counter[str]()
    values = json.loads(described.read_text(encoding="utf-8"))
    weights = load_file(described.with_suffix(".safetensors"))
    names = sorted(weights)
    dtypes = (torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8)
    images = torch.randn(2, 3, 8, 8)

    @fuzzed(40, st.integers(0, 999), st.sampled_from(["drop", "dtype", "shape", "nan", "bytes"]), BYTES)
    def case(which: int, kind: str, changes: Any) -> None:
        changed, name = dict(weights), names[which % len(names)]
        if kind == "drop":
            del changed[name]
        elif kind == "dtype":
            changed[name] = changed[name].to(dtypes[which % len(dtypes)])
        elif kind == "shape":
            changed[name] = changed[name].reshape(-1)[which % 2 :].clone()
        elif kind == "nan":
            changed[name] = changed[name] * float("nan")
        content = save(changed)
        content = changed_bytes(content[:2000], changes) + content[2000:] if kind == "bytes" else content
        (tmp_path / "model.safetensors").write_bytes(content)
        path.write_bytes(as_json({**values, "weights": {**values["weights"], "sha256": sha256(content).hexdigest()}}))
        check_description(path, images, seen)

    case()
    assert min(seen["read"], seen["refused"]) > 4, seen


def bodies() -> st.SearchStrategy[tuple[bytes, str]]:
    """Return a strategy of bodies and their types: JSON, urlencoded and multipart forms, of right and wrong values."""
    text = base64.b64encode(png()).decode()
    right = {"content": [text, f"data:image/png;base64,{text}"], "need_heatmap": True, "loud": "1"}
    as_body = st.builds(lambda edits: as_json(mutated(right, edits)), st.one_of(EDITS, st.just([])))
    form = st.builds(multipart_body, st.lists(st.tuples(mostly(*TITLES), mostly(*CONTENTS)), min_size=1, max_size=3))
    values = mostly(
        text.replace("+", "%2B"), text, "true", "%zz", "%ff", "[", '["YQ=="]', "http://a", "%5B%5D", "data:,"
    )
    pair = st.builds("=".join, st.tuples(mostly("content", "need_heatmap", "loud", "%00", "%", ""), values))
    pairs = st.builds(lambda pairs: "&".join(pairs).encode(), st.lists(pair, min_size=1, max_size=3))
    return st.one_of(
        st.tuples(as_body, mostly("application/json", "Application/JSON; charset=x")),
        st.tuples(form, mostly("multipart/form-data; boundary=b", 'multipart/form-data; boundary="b"; boundary*=c')),
        st.tuples(pairs, st.just("application/x-www-form-urlencoded")),
    )


def mostly(right: Any, *wrong: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([right] * max(4, 2 * len(wrong)) + list(wrong))


TITLES = (
    'form-data; name="content"; filename="a.png"', 'form-data; name="content"', 'form-data; name="need_heatmap"',
    'form-data; name="content"; filename="猫"', 'form-data; name="\\"', "form-data; name*=utf-8''a", "form-data",
)  # fmt: skip
CONTENTS = (png(), base64.b64encode(png()), b"", b"\xff", b"[1]", b'["YQ=="]', b"true", png()[:60])


def multipart_body(parts: list[tuple[str, bytes]]) -> bytes:
    written = [b"--b\r\nContent-Disposition: " + title.encode() + b"\r\n\r\n" + data for title, data in parts]
    return b"\r\n".join([*written, b"--b--\r\n"])


def test_forms_and_uploads() -> None:
    limits, seen = default_limits(), Counter[str]()

    @fuzzed(120, bodies(), FEW_BYTES)
    def case(body: tuple[bytes, str], changes: Any) -> None:
        content, kind = body
        content = changed_bytes(content, changes)
        with limited():
            try:
                upload = read_upload(content, kind, {"need_heatmap": False, "loud": True}, limits)
            except RequestError as error:
                check_sentence(str(error))
                assert 400 <= error.status < 500
                seen["no JSON" if "not JSON" in str(error) else "refused"] += 1
            else:
                assert upload.images and all(isinstance(image, bytes) for image in upload.images)
                seen["read"] += 1

    case()
    assert seen["read"] > 20 and seen["refused"] > seen["no JSON"], seen


def default_limits() -> Any:
    from deploy.service.cli_args import limits_from

    return limits_from(flags())


App = Callable[..., Any]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    page = write_page(tmp_path_factory.mktemp("page"))
    predictor = Predictor(GatedBackend(), replace(METADATA, preprocess=Preprocess(8, 8)))
    with open_server(predictor, [NATIVE, OTHER], flags("--workers", 1), "", page) as server:
        yield server.config.app


async def send_request(app: App, scope: dict[str, Any], chunks: list[bytes]) -> tuple[int, bytes]:
    """Send a request to the application; return status and body."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages += [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_requests(app: App) -> None:
    """The complete application without a socket: methods, paths and headers too."""
    loop, seen = asyncio.new_event_loop(), Counter[int]()
    header = st.tuples(
        st.sampled_from(
            [b"content-length", b"content-encoding", b"content-type", b"authorization", b"host", b"expect"]
        ),
        st.sampled_from(
            [b"", b"0", b"-1", b"9" * 5000, b"\xff\xfe", b"\xb2", b"gzip", b"identity", b"a/b;" * 50, b"=?;\x00"]
        ),
    )
    paths = mostly("/predict", "/other", "/predict/", "/%00", "/\ud800", "/../etc", "", "/docs", "/metrics")
    methods = mostly("POST", "GET", "猫", "")

    @fuzzed(80, bodies(), FEW_BYTES, st.lists(header, max_size=1), paths, methods)
    def case(body: tuple[bytes, str], changes: Any, headers: Any, path: str, method: str) -> None:
        content, kind = body
        content = changed_bytes(content, changes)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode("utf-8", "replace"), "query_string": b"a=%ff", "root_path": "",
            "headers": [*headers, (b"content-type", kind.encode())], "client": ("127.0.0.1", 1), "server": ("a", 1),
        }  # fmt: skip
        with limited():
            status, response = loop.run_until_complete(send_request(app, scope, [content[:50], content[50:]]))
        seen[status] += 1
        assert status < 500, response
        if status >= 400:
            values = json.loads(response)
            assert values["code"] == status
            check_sentence(values["msg"])

    case()
    loop.close()
    assert seen[200] > 4 and {400, 405, 422} <= set(seen), seen


@pytest.mark.parametrize("is_encoded", [False, True])
def test_inference_requests(is_encoded: bool) -> None:
    """Bodies of the Open Inference Protocol: JSON alone, and JSON with the tensor's bytes behind it."""
    limits, seen = default_limits(), Counter[str]()
    metadata = replace(METADATA, preprocess=Preprocess(2, 2))
    signature = Signature.of(metadata, takes_encoded=is_encoded)
    sizes = [1] if is_encoded else [1, *signature.shape]
    data: list[Any] = [base64.b64encode(png()).decode()] if is_encoded else [7] * math.prod(sizes)
    tail = (
        struct.pack("<I", len(png())) + png() if is_encoded else np.zeros(sizes, DTYPES[signature.datatype]).tobytes()
    )
    tensor = {"name": INPUT_NAME, "shape": sizes, "datatype": ENCODED if is_encoded else signature.datatype}
    bodies = {
        False: ({"id": "a", "inputs": [{**tensor, "data": data}], "outputs": [{"name": signature.output}]}, b""),
        True: ({"id": "a", "inputs": [{**tensor, "parameters": {BINARY_SIZE: len(tail)}}]}, tail),
    }

    headers = mostly("", "0", "-1", "5", "9" * 5000, "²", "٣")

    @fuzzed(160, st.booleans(), st.one_of(EDITS, st.just([])), st.one_of(FEW_BYTES, st.just([])), headers)
    def case(has_bytes: bool, edits: Any, changes: Any, header: str) -> None:
        values, rest = bodies[has_bytes]
        text = as_json(mutated(values, edits))
        header = header or (str(len(text)) if has_bytes else "")
        with limited():
            try:
                request = read_infer_request(changed_bytes(text + rest, changes), header, signature, limits)
            except RequestError as error:
                check_sentence(str(error))
                assert 400 <= error.status < 500
                seen["no JSON" if "not JSON" in str(error) else "refused"] += 1
            else:
                assert len(request.images) == 1
                seen["read"] += 1

    case()
    assert seen["read"] > 10 and seen["refused"] > seen["no JSON"], seen


def test_characters_that_no_terminal_has(tmp_path: Path) -> None:
    recipe = json.loads((ROOT / "configs/flowers_config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_bytes(as_json(recipe | {"model_args": {"model_type": "\ud800"}, "model_type": ""}))
    assert run_captured(train.main, ["--config", str(tmp_path / "config.json"), "--print_config"]) == (0, "")


@pytest.mark.parametrize("part", ["config", "progress"])
def test_a_checkpoint_with_a_part_of_another_type(tmp_path: Path, part: str) -> None:
    path = tmp_path / "net.pth"
    save_checkpoint(Checkpoint({}, CALIBRATED, {"weight": torch.ones(2)}), path)
    torch.save(torch.load(path, weights_only=True) | {part: None}, path)
    with pytest.raises(CheckpointError, match=f"the checkpoint is incomplete: '{part}' is no dictionary"):
        load_checkpoint(path)


def test_metadata_with_a_temperature_that_overflows() -> None:
    with pytest.raises(ValueError, match="the metadata is damaged: temperature cannot be 1e-320"):
        ModelMetadata.from_dict(CALIBRATED.to_dict() | {"temperature": 1e-320})


def test_metadata_with_a_std_beyond_float32() -> None:
    values = CALIBRATED.to_dict()
    values["preprocess"]["std"][1] = 1e-320
    with pytest.raises(ValueError, match=r"the metadata is damaged: std cannot be \(0\.229, 1e-320, 0\.225\)"):
        ModelMetadata.from_dict(values)


def test_descriptions_beyond_the_limits_of_tensors(described: Path, tmp_path: Path) -> None:
    values = json.loads(described.read_text(encoding="utf-8"))
    (tmp_path / "model.safetensors").write_bytes(described.with_suffix(".safetensors").read_bytes())
    layer = next(layer for layer in values["layers"] if layer["type"] == "slice")
    layer["start"][0] = 10**30
    (tmp_path / "model.json").write_bytes(as_json(values))
    with pytest.raises(DescriptionError, match=rf'layer "{layer["name"]}" \(slice\) cannot run: '):
        Interpreter.load(tmp_path / "model.json")(torch.randn(2, 3, 8, 8))
    layer["outputs"][0]["shape"] = ["N", *[1] * 8]
    (tmp_path / "model.json").write_bytes(as_json(values))
    with pytest.raises(DescriptionError, match="has 9 axes, more than 8"):
        read_description(tmp_path / "model.json")
