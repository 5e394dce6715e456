"""Test AVIF and HEIC: turned once, the same everywhere, and named where they cannot be read."""

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl import ImageFolderDataModule, open_image
from hsakd_pl.data import walk
from hsakd_pl.data.images import decode_images
from hsakd_pl.data.jpeg import read_image
from hsakd_pl.data.walk import image_paths, reads_heic
from hsakd_pl.errors import UsageError

needs_avif = pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow does not read AVIF")
needs_heic = pytest.mark.skipif(not reads_heic(), reason="pi-heif is not installed")

RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
# 32 x 64 pixels: red and green above blue and white, to be turned by 90 degrees clockwise (EXIF's orientation 6); made
# with pillow-heif 1.8.1
HEIC = (
    "eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYHxRG5qSSIDBChmpOQUQdkMBZnJJQxowCQzJx9siIsDAxMDI4jF+AZCA8FPoBgQMD2Fi6gAsU"
    "VmZl4amAeSFQVyUsHKgGoyypINGZAEGUFKXCsywcr5CjJLchmgKhnZMwuKCoDsZ5kFyflAugyo15mRGSQ0AaxI7gPDn78/fjAw8DMnAHVIODDy"
    "MP7/D1LADFLBDEJyu5gcEoGSWk6MjGgyCxQaWae9erJs5w6ODAMFoBAziGBQTAIqZ3NhPFh8oBNoiXByfk5RXnJOBVCUl4GtASgkkllckAr1rg"
    "MUayTnJBZA2aCgUIDS4ED4////A2hgCBRkVmSCBJk5ODiAFGdmUX4J0D0MkpkFubBIYWRgZGtkYmZtaQNypDKLUtOgEnzJKcXJ4GgABZBqbkoi"
    "KL6+ajCu53ygaGki//+T9f7/nzaUxe9xXyXSZf/7WMb6D593/L+pG/PmqGjH76WuFnNs3wZezVBslC/e6nXUR6w6hJfv1KFJs99Xbef/GMP/f8"
    "6U8t+yrP9PGfIeMlv+v3HXXDumbPHzV8tv/z9wr1eoZPvT87s+3X5br/nudNvp32EZ97SZH4mG2ZlfXJPC8z5WZ8ljvvw1GWZ99TPalnAahCxr"
    "yotcO429ZIvFAV6+kkfdvy98WXnbZdWdu1F6Vf/enmJsPc1QZLF3lbtFQY6MzU/9fwVf9zKeOLC8ybjtm9ptsy0dgd1bco5e6ry9qXb5zVv8v7"
    "Zk8OZ3l7sr7Sx6/2bN5nNAj7NBEo6vL4MWkMfBwMgoBIpbUPxBwgsAF1/Z7g=="
)


def quarters() -> Image.Image:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32], pixels[:16, 32:], pixels[16:, :32], pixels[16:, 32:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def avif(path: Path) -> Path:
    exif = Image.Exif()
    exif[274] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    quarters().save(path, quality=100, exif=exif.tobytes())
    return path


def heic(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zlib.decompress(base64.b64decode(HEIC)))
    return path


KINDS = [pytest.param(avif, ".avif", marks=needs_avif), pytest.param(heic, ".heic", marks=needs_heic)]


@pytest.mark.parametrize(("write", "ending"), KINDS)
def test_pictures_are_turned_once_everywhere(write: Any, ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"picture{ending}")
    image = open_image(path)
    assert image.size == (32, 64)
    corners = [image.getpixel(place) for place in ((8, 8), (24, 8), (8, 48), (24, 48))]
    assert np.abs(np.array(corners) - [BLUE, RED, WHITE, GREEN]).max() < 20
    assert torch.equal(read_image(str(path)), pil_to_tensor(image))
    assert torch.equal(
        decode_images([str(path)], 32, lambda picture: pil_to_tensor(picture.crop((0, 0, 32, 32))))[0],
        pil_to_tensor(image)[:, :32],
    )


@pytest.mark.parametrize(("write", "ending"), KINDS)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_class_folders_of_these_pictures_alone_are_read(
    write: Any, ending: str, num_workers: int, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            write(tmp_path / split / name / f"0{ending.upper() if name == 'a' else ending}")
    options: dict[str, Any] = {"image_size": 16, "mean": "imagenet", "resident_mib": 0, "num_workers": num_workers}
    data = ImageFolderDataModule(tmp_path, **options)
    data.setup()
    [(images, labels)] = data.test_dataloader()
    assert labels.tolist() == [0, 1]
    expected = [data.description.transform(open_image(path)) for path in data.splits["test"].images]
    assert torch.equal(images, torch.stack(expected))
    assert image_paths(tmp_path / "test", "predict_dir") == data.splits["test"].images


@pytest.mark.parametrize("content", [b"", b"nothing", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"])
@pytest.mark.parametrize("ending", [".avif", ".heic"])
def test_broken_files_are_named(ending: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"broken{ending}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^cannot decode the image .*broken{ending} \("):
        open_image(path)


@needs_avif
def test_truncated_avif_is_named(tmp_path: Path) -> None:
    path = avif(tmp_path / "a.avif")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UsageError, match=r"cannot decode the image .*a\.avif"):
        open_image(path)


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folder_without_images_names_the_endings_that_were_seen(tmp_path: Path) -> None:
    names = ("train/a/1.psd", "train/a/2.PSD", "train/b/3.psd", "train/b/4.cr2", "train/b/README")
    root = folder_of(tmp_path, *names, *(name.replace("train", "test") for name in names))
    with pytest.raises(UsageError, match=r"classes a, b \(files end in \.psd 3, \.cr2 1, no ending 1\): images end in"):
        ImageFolderDataModule(root, mean="imagenet").setup()
    with pytest.raises(UsageError, match=r"no image below .* \(files end in \.psd 3, \.cr2 1, no ending 1\)"):
        image_paths(root / "train", "predict_dir")


def test_empty_class_folders_still_ask_for_the_archive(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "train/a/1.png", "test/a/1.png", "test/b/1.png")
    (root / "train" / "b").mkdir()
    with pytest.raises(UsageError, match=r"no image found for the classes b: extract the archive again, completely"):
        ImageFolderDataModule(root, mean="imagenet").setup()


def test_heic_without_its_reader_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "reads_heic", lambda: False)
    extensions = tuple(ending for ending in walk.IMAGE_EXTENSIONS if ending not in walk.HEIC_EXTENSIONS)
    monkeypatch.setattr(walk, "IMAGE_EXTENSIONS", extensions)
    root = folder_of(tmp_path, "train/a/1.HEIC", "train/b/2.heic", "test/a/1.heic", "test/b/1.heic")
    with pytest.raises(UsageError, match=r"files end in \.heic 2; pip install 'hsakd_pl\[heic\]' to read HEIC\)"):
        ImageFolderDataModule(root, mean="imagenet").setup()
    for source in (root, root / "test" / "a" / "1.heic"):
        with pytest.raises(UsageError, match=r"pip install 'hsakd_pl\[heic\]' to read HEIC"):
            image_paths(source, "predict_dir")
