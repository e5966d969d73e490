"""package/tfrecord and package/kv: the package tfrecord reads ours, ours reads its, and both checksums count."""

import itertools
import json
import os
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from data_loader.decoding import decode, image_size
from data_loader.errors import ImageError
from data_loader.examples import WINDOW, decode_example, encode_example, encode_feature, find_text
from data_loader.packed_images import content_of
from data_loader.packs import find_pack, masked_checksum, open_shard, packed_name
from datasets.packing import divide, example_of, list_features
from datasets.records import KEYS
from tests.helpers.killed import killed_at
from tests.helpers.records import HOLES, RING, odd_records, picture, write_set
from tools import antgo

pytest.importorskip("crc32c")


def pack(tmp_path: Path, *flags: str, code: int = 0, verb: str = "tfrecord") -> Path:
    words = ["--src", str(tmp_path / "set/annotation.json"), "--tgt", str(tmp_path / "packs"), "--prefix", "P"]
    assert antgo.main([f"package/{verb}", *words, *flags]) == code
    return tmp_path / "packs"


def thirty(tmp_path: Path, count: int = 30) -> list[dict[str, Any]]:
    size = {"width": 8, "height": 6}
    records = [{"image_file": f"p/{i}.png", **size, "image_label": i % 3, "tag": f"照{i}"} for i in range(count)]
    write_set(tmp_path / "set", records)
    return records


@pytest.fixture
def pb2() -> Any:
    """Return the messages of the package tfrecord, which protobuf's own code reads and writes."""
    pytest.importorskip("tfrecord")
    from tfrecord import example_pb2

    return example_pb2


FEATURES: dict[str, Any] = {
    **{"bytes": [b"a", b"", b"\x00" * 300], "floats": [1.5, -2.25], "ints": [0, 1, -1, 2**63 - 1, -(2**63), 300]},
    **{"名": [b"x"], "empty": []},
}


def test_examples_are_protobufs(pb2: Any) -> None:
    theirs = pb2.Example()
    theirs.ParseFromString(encode_example(FEATURES))
    assert list(theirs.features.feature["bytes"].bytes_list.value) == FEATURES["bytes"]
    assert list(theirs.features.feature["floats"].float_list.value) == FEATURES["floats"]
    assert list(theirs.features.feature["ints"].int64_list.value) == FEATURES["ints"]
    assert len(theirs.features.feature) == 5
    assert decode_example(theirs.SerializeToString()) == FEATURES
    assert decode_example(theirs.SerializeToString(), ["ints"]) == {"ints": FEATURES["ints"]}


def test_what_is_no_example() -> None:
    data = encode_example({"a": [1, 2, 3]})
    assert decode_example(data) == {"a": [1, 2, 3]} and decode_example(b"") == {}
    for size in range(1, len(data)):
        with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
            decode_example(data[:size])
    unpacked = bytes.fromhex("0a0b0a090a016112041a020805")  # int64_list { value: 5 }, not packed
    assert decode_example(unpacked) == {"a": [5]}


@pytest.mark.parametrize("size", [0, 1, 100, 130, 20_000])
@pytest.mark.parametrize("others", [{}, {"a": [b"x" * 200], "z": [1, 2]}, {"a": [b"\n\x05image\x12\x03"]}])
def test_a_text_that_is_found_by_its_name(size: int, others: dict[str, Any]) -> None:
    """The image that decode_example gives, or None where only that function can tell."""
    image = b"\n\x05image\x12" * (size // 8) + b"i" * (size % 8)
    data = memoryview(encode_example({"image": [image], "tag": [b"t"], **others}))
    found = find_text(data, "image", "__image_shape")
    if b"\n\x05image" in bytes(others.get("a", [b""])[0]):
        assert found is None
    else:
        assert found == decode_example(data)["image"][0] == image
    for end in range(0, len(data) - 1, 1 + len(data) // 50):
        assert find_text(data[:end], "image", "__image_shape") in (None, image)


def test_texts_that_are_not_found_by_their_name() -> None:
    shaped = encode_example({"image": [b"abc"], "__image_shape": [1, 1, 3]})
    backwards = encode_feature("image", [b"abc"]) + encode_feature("__image_shape", [1, 1, 3])
    behind = b"\n" + bytes([len(backwards)]) + backwards  # as others may order them
    assert decode_example(shaped) == decode_example(behind)
    far = encode_example({"a": [b"x" * WINDOW], "image": [b"abc"]})
    early = encode_example({"image": [b"abc"], "z": [b"x" * (WINDOW + 1)]})
    none = encode_example({"a": [b"image"]})
    for data in (
        shaped,
        behind,
        far,
        early,
        none,
        encode_example({"image": [b"a", b"b"]}),
        encode_example({"image": [1]}),
    ):
        assert find_text(memoryview(data), "image", "__image_shape") is None


def test_masked_checksum() -> None:
    """CRC-32C of "123456789" is E3069283 (RFC 3720's polynomial); rotated by 15 bits, plus the constant."""
    rotated = (0xE3069283 >> 15) | (0xE3069283 << 17) & 0xFFFFFFFF
    assert masked_checksum(b"123456789") == struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def test_the_package_tfrecord_reads_ours(tmp_path: Path) -> None:
    """30 images, 10 a shard: 30 records, in order."""
    loader = pytest.importorskip("tfrecord").tfrecord_loader
    records = thirty(tmp_path)
    folder = pack(tmp_path, "--num", "10")
    names = [f"P-0000{number}-of-00003" for number in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}{ending}" for name in names for ending in ("-tfrecord", "-index")), "P-meta.json"]
    )
    kinds = {"image": "byte", "image_label": "int", "image_file": "byte", "tag": "byte"}
    read = [row for name in names for row in loader(str(folder / f"{name}-tfrecord"), None, kinds)]
    assert [bytes(row["image_file"]).decode() for row in read] == [record["image_file"] for record in records]
    assert [int(row["image_label"][0]) for row in read] == [record["image_label"] for record in records]
    assert bytes(read[3]["tag"]).decode() == "照3"
    assert bytes(read[7]["image"]) == (tmp_path / "set/p/7.png").read_bytes()
    from tfrecord.tools.tfrecord2idx import create_index

    create_index(str(folder / f"{names[1]}-tfrecord"), str(tmp_path / "index"))
    assert (tmp_path / "index").read_text() == (folder / f"{names[1]}-index").read_text()


def test_ours_reads_the_package_tfrecords(tmp_path: Path) -> None:
    tfrecord = pytest.importorskip("tfrecord")
    path = tmp_path / "T-00000-of-00001-tfrecord"
    writer = tfrecord.TFRecordWriter(str(path))
    image = picture(tmp_path / "a.png").read_bytes()
    for label in range(3):
        writer.write({"image": (image, "byte"), "label": (label, "int"), "x": ([0.5, 1.5], "float")})
    writer.close()
    shard = open_shard(str(path))  # it has no index
    assert len(shard) == 3
    assert [decode_example(shard.record(i), ["label", "x"]) for i in range(3)] == [
        {"label": [label], "x": [0.5, 1.5]} for label in range(3)
    ]
    assert content_of(f"{path}#1") == image


def test_the_features_of_a_record(tmp_path: Path) -> None:
    """Shapes, types and bytes by the contract's table."""
    picture(tmp_path / "a.png")
    record = {
        **{"image_file": "a.png", "bboxes": [[0.5, 1, 2, 3], [4, 5, 6, 7]], "labels": [1, 2], "has_dof": True},
        **{
            "label_names": ["x", "鹭"],
            "segments": [HOLES, RING],
            "has_segments": [1, 1],
            "cam_param": {"b": 1, "a": 2},
        },
        **{"joints2d": [[], [[1, 2]]], "has_joints2d": [0, 1], "joints_vis": [[], [1]], "own": 0.5},
    }
    features: dict[str, Any] = decode_example(example_of(record, tmp_path))
    assert set(KEYS) | {"own", "image"} == {name for name in features if not name.startswith("__")}
    assert features["image"] == [(tmp_path / "a.png").read_bytes()] and features["image_file"] == [b"a.png"]
    assert np.frombuffer(features["bboxes"][0], "<f4").tolist() == [0.5, 1, 2, 3, 4, 5, 6, 7]
    assert (features["__bboxes_shape"], features["__bboxes_type"]) == ([2, 4], [0])
    assert features["labels"] == [struct.pack("<2q", 1, 2)] and features["__labels_type"] == [2]
    assert json.loads(features["segments"][0]) == [HOLES, RING] and features["__segments_json"] == [1]
    assert features["__segments_type"] == [4]
    assert json.loads(features["label_names"][0]) == ["x", "鹭"]
    # the first object has no joints: zeros
    assert features["joints2d"] == [struct.pack("<4q", 0, 0, 1, 2)] and features["__joints2d_shape"] == [2, 1, 2]
    assert features["joints_vis"] == [struct.pack("<2q", 0, 1)]
    assert features["pose"] == [b""] and (features["__pose_shape"], features["__pose_type"]) == ([0], [0])
    assert (features["has_dof"], features["own"], features["view_num"]) == ([1], [0.5], [0])
    assert features["cam_param"] == [b'{"a": 2, "b": 1}'] and features["view_id"] == [b"-1"]
    assert list_features("x", [True, False]) == {"x": [b"\x01\x00"], "__x_shape": [2], "__x_type": [3]}
    with pytest.raises(UserError, match="x mixes text and numbers"):
        list_features("x", [1, "a"])


@pytest.mark.parametrize(
    ("total", "most", "sizes"),
    [(30, 10, (10, 10, 10)), (31, 10, (10, 10, 9, 2)), (32, 10, (10, 10, 10, 2)), (1, 10, (1,)), (3, 2, (1, 2))],
)
def test_how_records_are_divided(total: int, most: int, sizes: tuple[int, ...]) -> None:
    assert divide(total, most, "P").sizes == sizes


def test_packs_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "set")
    rooms = itertools.count(2**36, 4096)  # the disk is another one each time that it is looked at
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=next(rooms)))
    for verb in ("tfrecord", "kv"):
        if verb == "kv":
            pytest.importorskip("lmdb")
        first = {path.name: path.read_bytes() for path in pack(tmp_path, "--num", "3", verb=verb).iterdir()}
        shutil.rmtree(tmp_path / "packs")
        again = {path.name: path.read_bytes() for path in pack(tmp_path, "--num", "3", verb=verb).iterdir()}
        assert first == again
        meta = json.loads(first["P-meta.json"])
        assert meta["total"] == 6 and meta["category"] == ["heron", "tern", "鹭"] and meta["left_out"] == []
        import hashlib

        for entry in meta["shards"]:
            data = first[entry["file"]]
            assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        shutil.rmtree(tmp_path / "packs")


def test_images_in_packs_are_read_by_name(tmp_path: Path) -> None:
    records = odd_records()
    write_set(tmp_path / "set", records)
    found = find_pack(str(pack(tmp_path, "--num", "4") / "P-*-tfrecord"))
    assert found.category == ("heron", "tern", "鹭") and len(found.shards) == 2
    for number, record in enumerate(records):
        name = packed_name(found.shards[number // 4], number % 4, record["image_file"])
        assert np.array_equal(decode(name), decode(str(tmp_path / "set" / record["image_file"])))
        assert image_size(name)[0] == (64, 48)
    assert name.endswith("P-00001-of-00002-tfrecord#1 (empty.jpg)")
    for wrong, sentence in ((f"{found.shards[0]}#9", "has 4 records, and no 9"), (name + "x", "no such file")):
        with pytest.raises(ImageError, match=sentence):
            decode(wrong)
    with pytest.raises(ImageError, match="has no feature semantic_image"):
        content_of(f"{found.shards[0]}#0:semantic_image (a.png)")


def test_an_image_as_an_array(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    data = encode_example({"image": [pixels.tobytes()], "__image_shape": [5, 7, 3], "__image_type": [4]})
    head = struct.pack("<Q", len(data))
    path = tmp_path / "A-00000-of-00001-tfrecord"
    path.write_bytes(head + masked_checksum(head) + data + masked_checksum(data))
    assert np.array_equal(decode(f"{path}#0"), pixels)


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    """In the length, its checksum, the data and theirs: the record and its byte are named, the others are read."""
    thirty(tmp_path, 3)
    path = pack(tmp_path) / "P-00000-of-00001-tfrecord"
    index = [
        tuple(map(int, line.split())) for line in path.with_name("P-00000-of-00001-index").read_text().splitlines()
    ]
    whole, (offset, length) = path.read_bytes(), index[1]
    for place in (0, 7, 8, 12, length // 2, length - 5, length - 1):
        damaged = bytearray(whole)
        damaged[offset + place] ^= 16
        path.write_bytes(damaged)
        os.utime(path, ns=(place, place))
        with pytest.raises(ImageError, match=f"record 1 at byte {offset} of .* is damaged: its checksum"):
            decode(f"{path}#1")
        assert decode(f"{path}#0").size == decode(f"{path}#2").size == (8, 6)


def test_packs_that_do_not_fit(tmp_path: Path) -> None:
    thirty(tmp_path)
    folder = pack(tmp_path, "--num", "10")
    pattern, second = str(folder / "P-*-tfrecord"), folder / "P-00001-of-00003-tfrecord"
    whole = second.read_bytes()

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            for shard in find_pack(pattern).shards:
                open_shard(shard)
        return str(caught.value)

    second.unlink()
    assert "1 of 3 shards are missing: 00001" in refusal()
    second.write_bytes(whole[:-3])
    assert "of another packing, or cut off" in refusal()
    (folder / "P-meta.json").unlink()
    assert "it does not fit" in refusal() and "P-00001-of-00003-index" in refusal()
    second.with_name("P-00001-of-00003-index").unlink()
    assert "it is cut off, or damaged, in record 9" in refusal()
    second.write_bytes(whole)
    second.with_name("P-00001-of-00003-index").write_text("a b")
    assert "expected a line `offset length`" in refusal()
    (folder / "P-00000-of-00004-tfrecord").write_bytes(whole)
    assert "shards of two packings, of 3 and 4 files" in refusal()
    with pytest.raises(UserError, match="no file fits"):
        find_pack(str(tmp_path / "*-tfrecord"))


def test_a_pattern_is_one_pack(tmp_path: Path) -> None:
    """P-*-tfrecord is P alone, beside P-train and P-val; a pattern that fits these two is a mistake."""
    thirty(tmp_path)
    folder = pack(tmp_path, "--split", "0.8,0.2")
    with pytest.raises(UserError, match=f"shards of 2 packs fit, {folder}/P-train, {folder}/P-val; name one"):
        find_pack(str(folder / "P-*-tfrecord"))
    pack(tmp_path, "--num", "15", "--overwrite")
    names = [Path(path).name for path in find_pack(str(folder / "P-*-tfrecord")).shards]
    assert names == ["P-00000-of-00002-tfrecord", "P-00001-of-00002-tfrecord"]


def test_another_number_of_shards_replaces_the_old_ones(tmp_path: Path) -> None:
    thirty(tmp_path)
    pack(tmp_path, "--num", "10")
    (tmp_path / "packs/Q-00000-of-00003-tfrecord").write_text("of another")
    folder = pack(tmp_path, "--num", "15", "--overwrite")
    assert len(find_pack(str(folder / "P-*-tfrecord")).shards) == 2
    assert len(list(folder.iterdir())) == 6


def test_packs_of_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = thirty(tmp_path)
    folder = pack(tmp_path, "--num", "10", "--split", "0.8,0.2", "--stratify")
    read = {}
    for name, sizes in (("train", [10, 10, 4]), ("val", [6])):
        found = find_pack(str(folder / f"P-{name}-*-tfrecord"))
        rows = [(open_shard(path), index) for path in found.shards for index in range(len(open_shard(path)))]
        features = [shard.features(index, ("image_file", "image_label")) for shard, index in rows]
        read[name] = [(row["image_file"][0].decode(), row["image_label"][0]) for row in features]
        assert [len(open_shard(path)) for path in found.shards] == sizes
        assert [sum(label == each for _, label in read[name]) for each in range(3)] == [len(read[name]) // 3] * 3
    assert sorted(read["train"] + read["val"]) == sorted((r["image_file"], r["image_label"]) for r in records)
    shown = capsys.readouterr().out
    assert f'"train_data_file": "{folder}/P-train-*-tfrecord",' in shown and '"val_data_file": ' in shown
    pack(tmp_path, "--split", "0.8,0.2", code=2)
    assert "it holds P-train-meta.json already" in capsys.readouterr().err
    pack(tmp_path, "--split", "0.8,0.3", code=2)
    assert "they must sum to 1" in capsys.readouterr().err


def test_what_cannot_be_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thirty(tmp_path)
    (tmp_path / "set/p/3.png").write_bytes(b"no image")
    (tmp_path / "set/p/4.png").unlink()
    meta = json.loads((pack(tmp_path, "--num", "27", code=1) / "P-meta.json").read_text())
    assert [entry["records"] for entry in meta["shards"]] == [26, 2]
    assert [entry["record"] for entry in meta["left_out"]] == ["p/3.png", "p/4.png"]
    assert "left out: p/4.png: p/4.png: no such file" in capsys.readouterr().err.lower()


@pytest.mark.parametrize("verb", ["tfrecord", "kv"])
def test_mistakes(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "set", odd_records()[:1])
    source = tmp_path / "set/annotation.json"
    usage = type("Usage", (), {"free": 1000})
    for change, flags, sentence in (
        ({}, ["--num", "1"], "--num must be at least 2, got 1"),
        ({}, ["--prefix", "a/b"], "--prefix must be the beginning of a file's name"),
        ({"image_file": "", "image_url": "http://a/b.png"}, [], "it has image_url alone (http://a/b.png)"),
        ({"own": [1, "a"]}, [], "record 0: own mixes text and numbers"),
        ({"own": None}, [], "record 0: own can be no feature: NoneType"),
        ({"width": 2**63}, [], "record 0: width can be no feature: 9223372036854775808 has more than 64 bits"),
        ({"image_file": "nothing.png"}, [], "no record is left"),
        ({}, ["disk"], "are free"),
    ):
        records = json.loads(source.read_text())
        source.write_text(json.dumps([records[0] | change]))
        if flags == ["disk"]:
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
            flags = []
        pack(tmp_path, *flags, code=2, verb=verb)
        assert sentence in capsys.readouterr().err
        assert not list(tmp_path.glob("packs/P*"))
        source.write_text(json.dumps(records))


def test_a_mistake_in_a_later_shard_leaves_no_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = thirty(tmp_path)
    for number in (25, 28):
        records[number]["own"] = [1, "a"]
    write_set(tmp_path / "set", records)
    folder = pack(tmp_path, "--num", "10", code=2)
    errors = capsys.readouterr().err
    assert "record 25: own mixes" in errors and "record 28: own mixes" in errors
    assert not folder.exists()


@pytest.mark.parametrize(
    ("items", "text"), [([None], "[null]"), ([[1], [None]], "[[1], [null]]"), ([{"a": 1}], '[{"a": 1}]')]
)
def test_lists_of_null_and_objects_are_json(items: list[Any], text: str) -> None:
    """As an array null would be NaN."""
    assert list_features("k", items) == {
        **{"k": [text.encode()], "__k_shape": [len(text)], "__k_type": [4], "__k_json": [1]},
    }


def test_kv_needs_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More addresses than the processor has, as where they are limited, and a map that is too small."""
    pytest.importorskip("lmdb")
    write_set(tmp_path / "set", odd_records()[:1])
    for size, sentence in ((2**60, "LMDB needs"), (4096, "LMDB cannot write it: ")):
        monkeypatch.setattr("datasets.packing.MAP_BYTES", size)
        folder = pack(tmp_path, verb="kv", code=2)
        errors = capsys.readouterr().err
        assert f"{folder}/P-00000-of-00001-kvrecord: {sentence}" in errors
        assert not list(folder.iterdir())
    assert "Traceback" not in errors


def test_kv_holds_the_same_examples(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    records = odd_records()
    write_set(tmp_path / "set", records)
    folder = pack(tmp_path, "--num", "4", verb="kv")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("P-00000-of-00002-kvrecord", "P-00001-of-00002-kvrecord", "P-meta.json"),
    ]
    path = str(folder / "P-00001-of-00002-kvrecord")
    with lmdb.open(path, subdir=False, lock=False, readonly=True) as base, base.begin() as read:
        rows = dict(read.cursor())
    assert sorted(rows) == [b"P-00000004", b"P-00000005", b"__meta__"]
    assert json.loads(rows[b"__meta__"])["category"] == ["heron", "tern", "鹭"]
    assert decode_example(rows[b"P-00000004"])["image_file"] == [b"label.jpg"]


def test_without_crc32c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from data_loader import packs

    write_set(tmp_path / "set", odd_records()[:1])
    packs._crc32c.cache_clear()
    monkeypatch.setitem(sys.modules, "crc32c", None)
    pack(tmp_path, code=2)
    assert "packs need the package crc32c: pip install -r requirements-packs.txt" in capsys.readouterr().err
    packs._crc32c.cache_clear()


def test_a_kill_leaves_no_half_shard(tmp_path: Path) -> None:
    """Killed in its third shard: two whole ones without P-meta.json; the same command then runs through."""
    thirty(tmp_path)
    words = ["--src", str(tmp_path / "set/annotation.json"), "--tgt", str(tmp_path / "packs"), "--num", "10"]
    killed_at("datasets.packing.example_of", 25, "package/tfrecord", *words)
    shards = sorted(tmp_path.glob("packs/*-tfrecord"))
    assert [len(open_shard(str(path))) for path in shards] == [10, 10]
    assert not list(tmp_path.glob("packs/*-meta.json"))
    with pytest.raises(UserError, match="1 of 3 shards are missing: 00002"):
        find_pack(str(tmp_path / "packs/set-*-tfrecord"))
    assert antgo.main(["package/tfrecord", *words]) == 0
    assert len(find_pack(str(tmp_path / "packs/set-*-tfrecord")).shards) == 3
    assert not list(tmp_path.glob("packs/.*"))
