"""Generated data sets and weights in the layouts of the real ones, for clones that do not have these.

Each class has its own smooth pattern, so that networks learn and neighbours are alike.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hsakd_pl import create_network, published_state_dict

SIDE = 32
WNIDS = [f"n{1000000 + number:08d}" for number in range(20)]
STL10_NAMES = ["bullet_train", "goose", "sports_car", "tabby", "gazelle", *"fghij"]


def patterns(num_classes: int) -> np.ndarray:
    """Return a smooth picture of each class (classes, 3, 32, 32), in [0, 255]."""
    coarse = np.random.default_rng(0).uniform(40, 215, (num_classes, 3, 5, 5))
    return F.interpolate(torch.from_numpy(coarse), SIDE, mode="bicubic", align_corners=True).clamp(0, 255).numpy()


def pictures(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """Return a picture of each label, the pattern of its class with noise: uint8 (N, 3, 32, 32)."""
    noise = np.random.default_rng(seed).normal(0, 25, (len(labels), 3, SIDE, SIDE))
    return (patterns(num_classes)[labels] + noise).clip(0, 255).astype(np.uint8)


def shuffled_labels(num_classes: int, per_class: int, seed: int) -> np.ndarray:
    """Return every class ``per_class`` times, in random order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(num_classes), per_class))


def jpeg(path: Path, picture: np.ndarray, size: tuple[int, int]) -> None:
    """Write a picture (3, 32, 32), enlarged to ``size``, as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.transpose(1, 2, 0)).resize(size, Image.Resampling.BILINEAR).save(path, "JPEG", quality=90)


def cifar100(root: Path) -> None:
    """Write 2,000 training and 500 test images as CIFAR-100's pickles."""
    folder = root / "cifar100-mini" / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, (name, per_class) in enumerate((("train", 20), ("test", 5))):
        labels = shuffled_labels(100, per_class, seed)
        content = {
            "filenames": [f"{name}_{number}.png" for number in range(len(labels))],
            "batch_label": name,
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "data": pictures(labels, 100, seed).reshape(len(labels), -1),
        }
        (folder / name).write_bytes(pickle.dumps(content, 2))
    names = {
        "fine_label_names": ["apple", *(f"class_{number}" for number in range(1, 99)), "worm"],
        "coarse_label_names": [f"group_{number}" for number in range(20)],
    }
    (folder / "meta").write_bytes(pickle.dumps(names, 2))


def stl10(root: Path) -> None:
    """Write 200 training, 100 test and 50 unlabelled images as STL-10's binary files, stored column by column."""
    folder = root / "stl10-mini" / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, (name, per_class) in enumerate((("train", 20), ("test", 10), ("unlabeled", 5))):
        labels = shuffled_labels(10, per_class, seed)
        large = pictures(labels, 10, seed).repeat(3, axis=2).repeat(3, axis=3)
        large.transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")
        if name != "unlabeled":
            (labels + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join([*STL10_NAMES, ""]))
    (folder / "fold_indices.txt").write_text(" ".join(map(str, range(0, 200, 2))) + "\n")


def imagenet(root: Path) -> None:
    """Write 400 training and 200 validation photographs of two sizes in class folders."""
    for seed, (split, per_class) in enumerate((("train", 20), ("val", 10))):
        labels = np.arange(20).repeat(per_class)
        for number, picture in enumerate(pictures(labels, 20, seed)):
            wnid = WNIDS[labels[number]]
            size = (64, 64) if number % 2 else (300, 220)
            jpeg(root / "imagenet-mini" / split / wnid / f"{wnid}_{number}.JPEG", picture, size)


def tiny_imagenet(root: Path) -> None:
    """Write 1,000 training and 200 validation images as TinyImageNet is distributed."""
    folder = root / "tiny-imagenet-200"
    labels = np.arange(20).repeat(50)
    for number, picture in enumerate(pictures(labels, 20, 0)):
        wnid = WNIDS[labels[number]]
        jpeg(folder / "train" / wnid / "images" / f"{wnid}_{number % 50}.JPEG", picture, (64, 64))
    for wnid in WNIDS:
        boxes = [f"{wnid}_{number}.JPEG\t0\t0\t63\t63\n" for number in range(50)]
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(boxes))
    labels = shuffled_labels(20, 10, 1)
    for number, picture in enumerate(pictures(labels, 20, 1)):
        jpeg(folder / "val" / "images" / f"val_{number}.JPEG", picture, (64, 64))
    lines = [f"val_{number}.JPEG\t{WNIDS[label]}\t0\t0\t63\t63\n" for number, label in enumerate(labels)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (folder / "words.txt").write_text("".join(f"{wnid}\tclass {wnid}\n" for wnid in WNIDS))


ARCHIVES: dict[str, Callable[[Path], None]] = {
    "cifar100-mini.tar.gz": cifar100,
    "stl10-mini.tar.gz": stl10,
    "imagenet-mini.tar.gz": imagenet,
    "tiny-imagenet-mini.tar.gz": tiny_imagenet,
}


def teacher(path: Path) -> None:
    """Write an untrained wrn_40_2 with branches, whose norms know the statistics of noise, in the published format."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_network("wrn_40_2", 100).train()
    with torch.no_grad():
        for _ in range(10):
            network(torch.randn(8, 3, SIDE, SIDE, generator=generator))
    torch.save({"net": published_state_dict(network.eval()), "acc": 1.0, "epoch": 1}, path)
