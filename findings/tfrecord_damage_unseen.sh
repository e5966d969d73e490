#!/usr/bin/env bash
# Expected: a TFRecord's two checksums, which the package tfrecord writes, are compared when it reads, so that a flipped
# byte raises; and an index that its own tool wrote is read.
# Happens: a record with a flipped byte is returned without a word, and the index of a file with one record raises
# IndexError (numpy.loadtxt gives it one dimension). Seen with tfrecord 1.14.6.
# Here: data_loader/packs.py verifies both checksums of every record, and datasets/packing.py leaves no last shard of one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tfrecord==1.14.6 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PY'
from importlib.metadata import version

from tfrecord import TFRecordWriter, tfrecord_loader
from tfrecord.tools.tfrecord2idx import create_index

print("tfrecord", version("tfrecord"))


def write(count: int) -> None:
    writer = TFRecordWriter("a.tfrecord")
    for _ in range(count):
        writer.write({"text": (b"heron", "byte")})
    writer.close()
    create_index("a.tfrecord", "a.index")


def read(index: str | None) -> str:
    try:
        return ", ".join(bytes(row["text"]).decode() for row in tfrecord_loader("a.tfrecord", index, {"text": "byte"}))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


write(2)
data = bytearray(open("a.tfrecord", "rb").read())
data[data.index(b"heron")] ^= 4
open("a.tfrecord", "wb").write(data)
damaged = read(None)
print("a flipped byte:", damaged)
write(1)
alone = read("a.index")
print("an index of one record:", alone)
raise SystemExit(0 if damaged == "leron, heron" and alone.startswith("IndexError") else 1)
PY
