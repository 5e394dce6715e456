"""Test random crops of JPEGs that are decoded only where they are cropped: Pillow's pixels up to rounding."""

import io
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl import ImageFolderDataModule
from hsakd_pl.data import crops
from hsakd_pl.data.augment import random_resized_crop
from hsakd_pl.data.crops import Jpeg, RandomResizedCrop, open_for_crop, reader_for
from hsakd_pl.data.fetched import Picture
from hsakd_pl.data.images import open_image
from hsakd_pl.data.loader import ResumableLoader
from hsakd_pl.data.sources import TransformedBatches
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError

SIZE = 24
needs_library = pytest.mark.skipif(crops.library() is None, reason="no C compiler, or no headers of libjpeg-turbo")
KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"subsampling": 2, "progressive": True},
    "restarts": {"subsampling": 0, "restart_marker_blocks": 3},
    "RGB": {"keep_rgb": True, "subsampling": 0},
}


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    crops.library.cache_clear()
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    yield
    crops.library.cache_clear()


def photograph(width: int = 101, height: int = 75) -> Image.Image:
    """Return an image with edges and gradients of all colours."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (3, 9, 12), generator=generator, dtype=torch.uint8)
    return v2.functional.to_pil_image(v2.functional.resize(coarse, [height, width], antialias=True))


def encoded(image: Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", **{"quality": 90, **options})
    return content.getvalue()


def batch(paths: list[str], transform: v2.Transform, epoch: int = 0) -> Any:
    return TransformedBatches(Split(paths, torch.arange(len(paths))), transform, SIZE, 5)[epoch, [*range(len(paths))]]


def torchvisions() -> v2.Transform:
    """Return the transform of random_resized_crop made of torchvision's parts alone."""
    return v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()])


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_jpegs_equal_pillows(kind: str) -> None:
    picture = Picture(encoded(photograph(), **KINDS[kind]), kind)
    whole = pil_to_tensor(open_image(picture))
    jpeg = open_for_crop(picture)
    assert isinstance(jpeg, Jpeg)
    choose = random.Random(0)
    for _ in range(60):
        top = choose.randrange(jpeg.height)
        left = choose.randrange(jpeg.width)
        height = choose.randint(1, jpeg.height - top)
        width = choose.randint(1, jpeg.width - left)
        box = jpeg.box(top, left, height, width)
        assert torch.equal(box, whole[:, top : top + height, left : left + width])


@needs_library
def test_training_crops_differ_from_torchvisions_by_one_level_at_most(tmp_path: Path) -> None:
    for kind, options in KINDS.items():
        (tmp_path / f"{kind}.jpg").write_bytes(encoded(photograph(90 + len(kind)), **options))
    photograph(300, 20).save(tmp_path / "oblong.jpg")
    photograph(10, 12).save(tmp_path / "small.jpg")
    photograph().save(tmp_path / "lossless.png")
    paths = sorted(map(str, tmp_path.iterdir()))
    for epoch in range(20):
        found, labels = batch(paths, random_resized_crop(SIZE), epoch)
        expected, _ = batch(paths, torchvisions(), epoch)
        difference = (found.int() - expected.int()).abs()
        assert difference.max() <= 1 and difference.float().mean() < 0.1
        assert labels.tolist() == [*range(len(paths))]
        assert torch.equal(found, batch(paths, random_resized_crop(SIZE), epoch)[0])


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded(image, exif=exif)


UNUSUAL: dict[str, Callable[[Image.Image], bytes]] = {
    "turned": turned,
    "grey": lambda image: encoded(image.convert("L")),
    "CMYK": lambda image: encoded(image.convert("CMYK")),
    "more bytes behind the end": lambda image: encoded(image) + b"more",
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_jpegs_are_decoded_by_pillow(kind: str) -> None:
    picture = Picture(UNUSUAL[kind](photograph()), kind)
    opened = open_for_crop(picture)
    assert isinstance(opened, Image.Image) and opened == open_image(picture)


@needs_library
def test_transforms_that_do_not_begin_with_the_crop_get_decoded_pictures() -> None:
    crop = random_resized_crop(SIZE)
    assert reader_for(crop) is reader_for(v2.Compose([crop, v2.RandAugment()])) is open_for_crop
    assert reader_for(v2.Compose([v2.RandAugment(), crop])) is reader_for(torchvisions()) is open_image
    assert str(RandomResizedCrop(SIZE)) == str(v2.RandomResizedCrop(SIZE))  # a part of the protocol


def damaged(content: bytes, choose: random.Random) -> bytes:
    """Truncate a file, change a byte, remove some, or write a marker."""
    place = choose.randrange(2, len(content) - 2)
    return choose.choice(
        [
            content[:place],
            content[:place] + bytes([choose.randrange(256)]) + content[place + 1 :],
            content[:place] + content[place + choose.randrange(1, 100) :],
            content[:place] + bytes([0xFF, choose.randrange(256)]) + content[place + 2 :],
        ]
    )


def outcome(picture: Picture, read: Callable[[Picture], Tensor]) -> Tensor | str:
    try:
        return read(picture)
    except UsageError as error:
        return str(error).partition(" at 0x")[0]


@needs_library
def test_damaged_jpegs_have_pillows_pixels_or_error() -> None:
    choose = random.Random(0)
    contents = [encoded(photograph(), **options) for options in KINDS.values()]

    def box(picture: Picture) -> Tensor:
        opened = open_for_crop(picture)
        return opened.box(20, 30, 8, 9) if isinstance(opened, Jpeg) else pil_to_tensor(opened)[:, 20:28, 30:39]

    outcomes = []
    for number in range(300):
        picture = Picture(damaged(choose.choice(contents), choose), f"number {number}")
        expected = outcome(picture, lambda picture: pil_to_tensor(open_image(picture))[:, 20:28, 30:39])
        found = outcome(picture, box)
        outcomes.append(type(found))
        assert type(found) is type(expected)
        assert torch.equal(found, expected) if isinstance(found, Tensor) else found == expected
    assert 50 < outcomes.count(str) < 250


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of two classes of four JPEGs each, for training and validation."""
    for label in range(2):
        for number in range(4):
            path = tmp_path / "train" / str(label) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photograph(60 + 10 * label + number)))
    (tmp_path / "val").symlink_to("train")
    return tmp_path


def loader(folder: Path, num_workers: int) -> ResumableLoader:
    options = {"image_size": SIZE, "augmentation": "resized_crop", "mean": "imagenet"}
    data = ImageFolderDataModule(folder, batch_size=2, num_workers=num_workers, seed=1, **options)
    data.setup()
    return data.train_dataloader()


@needs_library
def test_crops_resume_bitwise_inside_an_epoch_with_another_number_of_workers(folder: Path) -> None:
    whole = loader(folder, 0)
    iterator = iter(whole)
    next(iterator)
    state = whole.state_dict()
    rest = list(iterator)
    resumed = loader(folder, 2)
    resumed.load_state_dict(state)
    for (images, labels), (expected, expected_labels) in zip(resumed, rest, strict=True):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)


@needs_library
@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_jpeg_among_training_images_is_named(folder: Path, num_workers: int) -> None:
    path = folder / "train" / "1" / "3.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=rf"cannot decode the image {path} \(image file is truncated"):
        list(loader(folder, num_workers))


@pytest.mark.usefixtures("no_compiler")
def test_without_compiler_pillow_decodes_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert reader_for(random_resized_crop(SIZE)) is open_image
    [message] = [record.message for record in caplog.records]
    assert message.startswith("Decoding JPEGs by Pillow and whole") and "no-compiler" in message


@needs_library
def test_decoder_stays_within_array_bounds(tmp_path: Path) -> None:
    sources = [*crops.CODE.sources, Path(__file__).parents[1] / "jpeg_bounds.c"]
    program = tmp_path / "bounds"
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, "-O1", "-fsanitize=address,undefined", *sources, "-o", program, *crops.CODE.libraries]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the compiler comes without sanitizers")
    finished = subprocess.run([program], capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
