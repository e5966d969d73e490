#!/usr/bin/env bash
# Expected: rasterio.features.shapes, a generator, makes one polygon after the other, so that large rasters take little memory.
# Happens: before it yields the first one, all polygons of the raster are made and held in GDAL's memory layer. Seen with rasterio 1.4.4
# (GDAL 3.10): a mask of 10,000 x 10,000 pixels with many small areas took 5.6 GB.
# Around it: deploy/inference/geo_images.py makes polygons of blocks of 2048 pixels, after small areas were merged (sieve).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q rasterio==1.4.4
cat > "$folder/shapes.py" <<'PY'
import resource, sys, warnings

warnings.simplefilter("ignore")
import numpy as np
import rasterio
from rasterio.features import shapes

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

values = np.zeros((1600, 1600), np.uint8)
values[::2, ::2] = 1  # 640,000 areas of one pixel in a large one
before = peak_mb()
geometry, value = next(shapes(values))
first = peak_mb()
print(f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}: 640,001 areas")
print(f"peak memory: {before:.0f} MB before, {first:.0f} MB when the first one comes")
sys.exit(0 if first - before > 300 else 1)
PY
"$folder/venv/bin/python" "$folder/shapes.py" || { echo "it has changed"; exit 1; }
echo "as described: the memory of all areas is taken before the first one comes"
