"""Metadata are read back from every kind of artefact, and nothing in a damaged or hostile one is executed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from artifacts import metadata_reader
from artifacts.archive import verify_entries
from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.errors import ArtifactError, CheckpointError
from artifacts.formats import artifact_kind, engine_metadata_file
from artifacts.metadata import ModelMetadata
from artifacts.metadata_reader import read_metadata
from artifacts.onnx_file import read_onnx
from artifacts.outputs import output_shape
from tests.helpers.exported import WRITERS, TinyNet, build_metadata, example_of, write_engine_metadata

METADATA = build_metadata(temperature=1.5, thresholds={"cautious": 0.75}, batch_profile=(1, 4, 16), precision="int8")


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write one net in every format, with its metadata, into one folder."""
    folder = tmp_path_factory.mktemp("artefacts")
    net = TinyNet().eval()
    for ending, write in WRITERS.items():
        write(net, folder / f"model.{ending}", METADATA, example_of(METADATA))
    save_checkpoint(Checkpoint({}, METADATA, net.state_dict()), folder / "model.pth")
    (folder / "model.json").write_text(json.dumps({"format": "x", "facts": METADATA.to_dict()}), encoding="utf-8")
    write_engine_metadata(folder / "model.engine", METADATA)
    return folder


@pytest.mark.parametrize("ending", ["pt", "pt2", "onnx", "json", "engine"])
def test_metadata_come_back_as_they_were(ending: str, artefacts: Path) -> None:
    assert read_metadata(artefacts / f"model.{ending}") == METADATA


def test_a_checkpoints_metadata_know_its_weights(artefacts: Path) -> None:
    metadata = read_metadata(artefacts / "model.pth")
    assert len(metadata.weights_sha256) == 64
    assert metadata.to_dict() == METADATA.to_dict() | {"weights_sha256": metadata.weights_sha256}


@pytest.mark.parametrize(
    ("name", "ending", "kind"),
    [
        ("model.pt", "pth", "jit"),
        ("model.pt", "bin", "jit"),
        ("model.pth", "pt", "checkpoint"),
        ("model.pt2", "pt", "pt2"),
    ],
)
def test_what_is_in_an_archive_counts_more_than_its_ending(
    name: str, ending: str, kind: str, artefacts: Path, tmp_path: Path
) -> None:
    copy = tmp_path / f"renamed.{ending}"
    copy.write_bytes((artefacts / name).read_bytes())
    assert artifact_kind(copy) == kind
    assert read_metadata(copy).class_names == METADATA.class_names


def test_a_pickle_of_old_torch_is_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert artifact_kind(tmp_path / "old.pt") == "checkpoint"


def test_files_that_are_no_artefact(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "none").write_text("x")
    with pytest.raises(ArtifactError, match=r'x\.txt: no backend for the ending "\.txt"; known are \.pth, \.pt'):
        artifact_kind(tmp_path / "x.txt")
    with pytest.raises(ArtifactError, match="no backend for a file without an ending"):
        artifact_kind(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"missing\.onnx: no such file \(relative paths start from"):
        read_metadata(tmp_path / "missing.onnx")
    with pytest.raises(ArtifactError, match="it is a folder, not a weights file"):
        read_metadata(tmp_path)


def test_metadata_of_plain_files_needs_no_torch(artefacts: Path) -> None:
    code = f"""
import sys
from artifacts.metadata_reader import read_metadata
for ending in ("pt", "pt2", "onnx", "json", "engine"):
    assert read_metadata({str(artefacts)!r} + "/model." + ending).num_classes == 3
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# --- without metadata


@pytest.mark.parametrize("ending", ["pt", "pt2", "onnx"])
def test_a_foreign_file_without_metadata_names_the_command(ending: str, tmp_path: Path) -> None:
    path = WRITERS[ending](TinyNet().eval(), tmp_path / f"model.{ending}", None, example_of(METADATA))
    format_name = {"pt": "jit"}.get(ending, ending)
    with pytest.raises(ArtifactError, match=rf"carries no metadata .* deploy\.export .* --formats {format_name}$"):
        read_metadata(path)


def test_json_that_is_no_description(tmp_path: Path) -> None:
    for text in ("{}", "[1]", '{"num_classes": 3}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ArtifactError, match="this network description carries no metadata"):
            read_metadata(tmp_path / "x.json")


def test_an_engine_alone(artefacts: Path, tmp_path: Path) -> None:
    shutil.copy(artefacts / "model.engine", tmp_path)
    with pytest.raises(ArtifactError, match=r"its metadata is not beside it; copy model\.engine\.facts\.json too"):
        read_metadata(tmp_path / "model.engine")


# --- damaged and hostile files


def preprocess(**changes: Any) -> dict[str, Any]:
    return {"preprocess": METADATA.preprocess.to_dict() | changes}


@pytest.mark.parametrize(
    "key", sorted(METADATA.to_dict().keys() - {"producer", "input", "precision", "facts_version", "task"})
)
def test_metadata_without_a_key(key: str) -> None:
    values = METADATA.to_dict()
    del values[key]
    with pytest.raises(ValueError, match=f"^the metadata is incomplete: '{key}'$"):
        ModelMetadata.from_dict(values)


def test_metadata_of_weights_without_a_digest() -> None:
    for sha256 in ("", "0123456789abcdef" * 4):
        assert ModelMetadata.from_dict(METADATA.to_dict() | {"weights_sha256": sha256}).weights_sha256 == sha256


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"facts_version": 2}, "the metadata is of version 2"),
        ({"facts_version": [1] * 999}, r"the metadata is of version \[1, 1, 1, 1, 1, 1, \.\.\.\], this program"),
        ({"class_names": "xyz"}, "the metadata is damaged: class_names cannot be 'xyz'"),
        ({"class_names": ["a", "b", "a"]}, r"the metadata is damaged: class_names cannot be \('a', 'b', 'a'\)"),
        ({"class_names": ["a", ""]}, "the metadata is damaged: class_names"),
        ({"class_names": ["a", 1]}, "the metadata is damaged: class_names"),
        ({"class_names": ["a"]}, "the metadata is damaged: class_names"),
        ({"preprocess": []}, "the metadata is damaged: "),
        ({"preprocess": {"height": 10**9}}, "the metadata is damaged: height, width"),
        (preprocess(height=0), "the metadata is damaged: height, width"),
        (preprocess(width=-1), "the metadata is damaged: height, width"),
        (preprocess(channels=2), "the metadata is damaged: channels"),
        (preprocess(channels=3.0), "the metadata is damaged: channels"),
        (preprocess(mean=[0.5, 0.5, float("nan")]), "the metadata is damaged: mean, std and band_range"),
        (preprocess(mean=[10**400] * 3), "the metadata is damaged: "),
        (preprocess(std=[0.5, 0.5, 0]), r"the metadata is damaged: std cannot be \(0\.5, 0\.5, 0\)"),
        (preprocess(std=[0.5, 0.5, -1]), "the metadata is damaged: std"),
        (preprocess(std=[0.5, 0.5, float("inf")]), "the metadata is damaged: mean, std and band_range"),
        ({"batch_profile": [8, 4, 16]}, r"the metadata is damaged: batch_profile cannot be \(8, 4, 16\)"),
        ({"batch_profile": [0, 4, 16]}, "the metadata is damaged: batch_profile"),
        ({"batch_profile": [1, 2]}, "the metadata is damaged: batch_profile"),
        ({"batch_profile": 8}, "the metadata is damaged: batch_profile cannot be 8"),
        ({"temperature": "1e3"}, "the metadata is damaged: temperature"),
        ({"temperature": float("nan")}, "the metadata is damaged: temperature cannot be nan"),
        ({"temperature": 0}, "the metadata is damaged: temperature"),
        ({"thresholds": {"a": float("inf")}}, "the metadata is damaged: thresholds cannot be {'a': inf}"),
        ({"thresholds": [0.5]}, "the metadata is damaged: thresholds"),
        ({"net": None}, "the metadata is damaged: net"),
        ({"net": {"module": "m", "name": 1, "args": {}}}, "the metadata is damaged: net"),
        ({"input": "float64"}, "the metadata is damaged: input cannot be 'float64'"),
        ({"precision": "int4", "output": "a b"}, "the metadata is damaged: precision .* 'int4', output .* 'a b'"),
        ({"task": "Segmentation"}, "the metadata is damaged: task cannot be 'Segmentation'"),
        ({"class_names": []}, r"the metadata is damaged: class_names cannot be \(\)"),
        ({"weights_sha256": "abc"}, "the metadata is damaged: weights_sha256 cannot be 'abc'"),
        ({"weights_sha256": "A" * 64}, "the metadata is damaged: weights_sha256"),
        ({"versions": None}, "the metadata is damaged: versions"),
    ],
)
def test_metadata_that_cannot_be_used(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"facts": METADATA.to_dict() | change}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"model.json: in this network description {text}"):
        read_metadata(path)


def test_a_task_without_classes() -> None:
    """Its output may have any name and any shape; older files, which name no task, are of classification."""
    metadata = replace(METADATA, class_names=(), task="regression", output="value")
    assert ModelMetadata.from_dict(metadata.to_dict()) == metadata
    assert output_shape(metadata) is None and output_shape(METADATA) == (None, METADATA.num_classes)
    older = {key: value for key, value in METADATA.to_dict().items() if key != "task"}
    assert ModelMetadata.from_dict(older) == METADATA and METADATA.task == "classification"


@pytest.mark.parametrize("text", ["", "{", '{"facts": 1}', "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")])
def test_a_damaged_description(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ArtifactError, match=r"model\.json: .*(damaged|no JSON object)"):
        read_metadata(path)


@pytest.mark.parametrize("ending", ["pt", "pt2", "onnx"])
def test_damage_anywhere_gives_metadata_or_a_sentence(ending: str, artefacts: Path, tmp_path: Path) -> None:
    whole = (artefacts / f"model.{ending}").read_bytes()
    numbers = random.Random(0)
    path = tmp_path / f"model.{ending}"
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        if numbers.random() < 0.4:
            del content[numbers.randrange(len(content)) :]
        for _ in range(numbers.choice((1, 5, 50)) if content else 0):
            content[numbers.randrange(len(content))] = numbers.randrange(256)
        path.write_bytes(content)
        try:
            assert isinstance(read_metadata(path), ModelMetadata)
        except (ArtifactError, CheckpointError) as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 30


def with_metadata_entry(path: Path, text: bytes, **entry_changes: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", b"")
        entry = zipfile.ZipInfo("model/extra/facts.json")
        for name, value in entry_changes.items():
            setattr(entry, name, value)
        archive.writestr(entry, text)
    return path


def test_metadata_that_unpacks_to_too_much(tmp_path: Path) -> None:
    bomb = with_metadata_entry(tmp_path / "bomb.pt", b" " * (17 * 2**20), compress_type=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**5
    with pytest.raises(
        ArtifactError, match=r"bomb\.pt: it is damaged, .*: its metadata is too large \(17825792 bytes\)"
    ):
        read_metadata(bomb)
    packed = with_metadata_entry(tmp_path / "packed.pt", b"{}", compress_type=zipfile.ZIP_BZIP2)
    with pytest.raises(ArtifactError, match=r"packed\.pt: it is damaged"):
        read_metadata(packed)


@pytest.mark.parametrize("ending", ["pt", "pt2"])
@pytest.mark.parametrize("missing", [1, 500, 1500, 3000])
def test_a_cut_archive_is_not_taken_for_one_that_lies_in_it(
    ending: str, missing: int, artefacts: Path, tmp_path: Path
) -> None:
    """A torch.export file holds a checkpoint of its sample inputs, whose end a cut may lay bare."""
    path = tmp_path / f"model.{ending}"
    path.write_bytes((artefacts / path.name).read_bytes()[:-missing])
    with pytest.raises(ArtifactError, match=r"it is damaged, or no (TorchScript|torch\.export) file"):
        read_metadata(path)


def test_metadata_twice_is_refused(tmp_path: Path) -> None:
    path = with_metadata_entry(tmp_path / "twice.pt", b"{}")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/extra/facts.json", b"{}")
    with pytest.raises(ArtifactError, match="it holds metadata 2 times"):
        read_metadata(path)


def test_too_large_a_file_beside_an_engine(artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_reader, "MAX_METADATA_BYTES", 100)
    path = write_engine_metadata(tmp_path / "model.engine", METADATA)
    size = engine_metadata_file(path).stat().st_size
    with pytest.raises(ArtifactError, match=rf"facts\.json: it is too large \({size} bytes, at most 100\)"):
        read_metadata(path)


def test_a_flipped_bit_in_the_weights_is_found(artefacts: Path, tmp_path: Path) -> None:
    kernel = torch.load(artefacts / "model.pth", weights_only=True)["net"]["conv.weight"].numpy().tobytes()
    for name in ("model.pt", "model.pt2"):
        verify_entries(artefacts / name)
        content = bytearray((artefacts / name).read_bytes())
        content[content.index(kernel) + 5] ^= 0x40
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=r'it is damaged: "model/data/.*" in it does not match its checksum'):
            verify_entries(tmp_path / name)


def test_a_file_that_may_not_be_read(artefacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str = "r") -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    for name in ("model.pt", "model.json", "model.engine"):
        with pytest.raises(ArtifactError, match="cannot read it: Permission denied"):
            read_metadata(artefacts / name)


def test_what_may_not_be_looked_at_is_a_sentence(
    artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that may not be entered nothing can be asked about a file; one of mode 000 cannot be opened."""

    def refuse(path: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "x.pth").write_text("as good as unreadable: no archive")
    for method, path in (("is_file", artefacts / "model.onnx"), ("open", tmp_path / "x.pth")):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, refuse)
            with pytest.raises(ArtifactError, match=f"^{path}: cannot read it: Permission denied$"):
                artifact_kind(path)


@pytest.mark.parametrize("kept", [0, 100, -1000])
def test_a_cut_checkpoint_is_one_sentence(kept: int, artefacts: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes((artefacts / "model.pth").read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"model\.pth: it is damaged or cut short$"):
        read_metadata(path)


# --- ONNX's external data


def external(artefacts: Path, folder: Path, location: str, where: str = "initializer") -> Path:
    """Write an ONNX file one of whose tensors has its data in `location`."""
    folder.mkdir(exist_ok=True)
    model = onnx.load(artefacts / "model.onnx")
    tensor = onnx.TensorProto(name="weights", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "attribute":
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["x"], value=tensor))
    else:
        inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["x"], value=tensor)], "inner", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
@pytest.mark.parametrize("location", ["../secret.bin", "{absolute}", "link.bin", "a/../../secret.bin", "nul\0.bin"])
def test_external_data_outside_the_folder_is_not_opened(
    where: str, location: str, artefacts: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4)
    path = external(artefacts, tmp_path / "model", location.format(absolute=tmp_path / "secret.bin"), where)
    (path.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    for read in (read_onnx, read_metadata):
        with pytest.raises(ArtifactError, match=r'its tensor "weights" lies in ".*", outside the file\'s folder'):
            read(path)


def test_external_data_beside_the_file(artefacts: Path, tmp_path: Path) -> None:
    path = external(artefacts, tmp_path, "weights.bin")
    with pytest.raises(ArtifactError, match=r'its data file "weights\.bin" is not beside it'):
        read_metadata(path)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 4)
    assert read_metadata(path) == METADATA


def test_an_address_in_memory_is_no_file(artefacts: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not beside it"):  # onnxruntime would read from this address
        read_metadata(external(artefacts, tmp_path, "*/_ORT_MEM_ADDR_/*"))


def test_onnx_without_a_graph(tmp_path: Path) -> None:
    for content in (b"", onnx.ModelProto(ir_version=8).SerializeToString()):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(ArtifactError, match="there is no graph in it"):
            read_onnx(tmp_path / "x.onnx")
