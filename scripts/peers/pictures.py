"""Write the handwritten digits of scikit-learn as class folders of PNG files of 32 x 32 pixels: pictures.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

root = Path(sys.argv[1])
images, labels = load_digits(return_X_y=True)
for label in range(10):
    for index, image in enumerate(images[labels == label]):
        folder = root / ("train" if index < 50 else "val") / f"digit{label}"
        folder.mkdir(parents=True, exist_ok=True)
        levels = (image.reshape(8, 8) * 15.9375).astype(np.uint8)  # 16 levels to 255
        Image.fromarray(levels).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(folder / f"{index}.png")
