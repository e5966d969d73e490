#!/usr/bin/env bash
# Expected: Image.resize gives the same pixels in Pillow 12 and 13, with the same arguments.
# Happens: since 13.0.0 the rows are resized before the columns where the image loses rows, and more than twice as many as columns. Each
# pass rounds to 8 bits, so some pixels differ by 1. A reader that follows the older order is off in such images only.
# Around it: docs/tensorrt-json.md has the order by version, tests/data_loader/test_preprocess_words.py holds it, and the metadata has the
# version of the training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/resize.py" <<'PY'
import hashlib, sys
import PIL
from PIL import Image

values = bytes((37 * x + 59 * y + x * y) % 256 for y in range(60) for x in range(40))
image = Image.frombytes("L", (40, 60), values)
for size in ((30, 41), (30, 39)):  # 19 and 21 rows fewer, 10 columns fewer
    resized = image.resize(size, Image.Resampling.BILINEAR)
    print(PIL.__version__, size, hashlib.sha256(resized.tobytes()).hexdigest()[:12])
PY
for version in 12.3.0 13.0.0; do
    "$folder/venv/bin/pip" install -q "pillow==$version"
    "$folder/venv/bin/python" "$folder/resize.py" | tee "$folder/$version"
done
sums() { awk '{print $NF}' "$folder/$1"; }
[ "$(sums 12.3.0 | head -1)" = "$(sums 13.0.0 | head -1)" ] || { echo "the first size differs too: it has changed"; exit 1; }
[ "$(sums 12.3.0 | tail -1)" != "$(sums 13.0.0 | tail -1)" ] || { echo "the second size is the same: it has changed"; exit 1; }
echo "as described: the second size differs between the versions"
