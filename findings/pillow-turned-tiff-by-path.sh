#!/usr/bin/env bash
# Pillow reads an uncompressed TIFF whose orientation is 6 or 8 (a camera held upright) differently by HOW it is given:
# from an open file it is turned upright, (width, height) exchanged; from a PATH the size stays and the pixels are not
# a turned picture any more. Both say that the orientation has been dealt with: the tag is gone.
# Most people expect Image.open(path) and Image.open(file) to give the same picture, and data sets are opened by path.
# Pillow 13.0.0, 2026-11-29
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python pillow==13.0.0 numpy==2.4.4
OMP_NUM_THREADS=1 env/bin/python - <<'PROGRAM'
import io

import numpy as np
import PIL
from PIL import Image

ORIENTATION = 0x0112
pixels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
# What the tag asks for: 6 turns clockwise, 8 counter-clockwise
upright = {1: pixels, 3: np.rot90(pixels, 2), 6: np.rot90(pixels, -1), 8: np.rot90(pixels, 1)}
print("Pillow", PIL.__version__)
by_path = {}
by_file = {}
for orientation in upright:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save("picture.tif", exif=exif)
    with Image.open("picture.tif") as picture:
        picture.load()
        by_path[orientation] = np.array(picture)
    with open("picture.tif", "rb") as file:
        picture = Image.open(io.BytesIO(file.read()))
        picture.load()
        by_file[orientation] = np.array(picture)
    print(f"  orientation {orientation}: by path {by_path[orientation].shape}, by file {by_file[orientation].shape}")
print("orientation 6, upright:", upright[6].tolist())
print("  by file:", by_file[6].tolist())
print("  by path:", by_path[6].tolist())
for orientation, expected in upright.items():
    assert np.array_equal(by_file[orientation], expected), orientation
    is_right = np.array_equal(by_path[orientation], expected)
    assert is_right == (orientation in (1, 3)), (orientation, by_path[orientation])
print("as described")
PROGRAM
