"""Test image files of every mode, rotated, oversized or broken, and files that operating systems leave behind."""

import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import grown_by
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl import CIFAR100DataModule, DigitsDataModule, ImageNetDataModule, TinyImageNetDataModule
from hsakd_pl.data.augment import resized_center_crop
from hsakd_pl.data.images import MAX_PIXELS, decode_images, open_image
from hsakd_pl.data.jpeg import read_image
from hsakd_pl.data.walk import class_folders, class_names_of, image_paths
from hsakd_pl.errors import UsageError

GREY = np.linspace(0, 255, 256).reshape(16, 16)  # a gradient of all levels
WIDE = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # the same in 16 bits


def pixels(path: Path) -> Tensor:
    """Return int16 (3, H, W), so that differences have a sign."""
    return pil_to_tensor(open_image(str(path))).short()


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def png(path: Path, size: tuple[int, int], depth: int, colour: int, rows: bytes, **chunks: bytes) -> Path:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    before = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def tiff(path: Path, content: bytes, size: tuple[int, int], bits: int, **tags: int) -> Path:
    """Write an uncompressed grey TIFF; ``tags`` are named by a letter and their number."""
    width, height = size
    known = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(content)}
    known |= {int(name[1:]): value for name, value in tags.items()}
    known[273] = 8 + 2 + 12 * len(known) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(known.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(known)) + entries + bytes(4) + content)
    return path


def big_endian() -> Image.Image:
    return Image.frombytes("I;16B", (16, 16), WIDE.astype(">u2").tobytes())


WIDE_FILES: dict[str, Callable[[Path], Path]] = {
    "png": lambda folder: saved(folder / "a.png", Image.fromarray(WIDE)),
    "tiff": lambda folder: saved(folder / "a.tif", Image.fromarray(WIDE)),
    "compressed tiff": lambda folder: saved(folder / "a.tif", Image.fromarray(WIDE), compression="tiff_lzw"),
    "big-endian tiff": lambda folder: saved(folder / "a.tiff", big_endian()),
    "white is zero": lambda folder: tiff(folder / "a.tif", (65535 - WIDE).tobytes(), (16, 16), 16, t262=0),
    "pages": lambda folder: saved(
        folder / "a.tif", Image.fromarray(WIDE), save_all=True, append_images=[Image.new("L", (4, 4))]
    ),
}


@pytest.mark.parametrize("kind", WIDE_FILES)
def test_16_bit_grey_image_keeps_its_gradient(tmp_path: Path, kind: str) -> None:
    found = pixels(WIDE_FILES[kind](tmp_path))
    assert found.shape == (3, 16, 16)
    assert (found - torch.from_numpy(GREY)).abs().max() <= 0.5


@pytest.mark.parametrize("top", [1023, 4095, 65535])
def test_grey_images_of_10_to_16_bits_are_scaled_by_their_range(tmp_path: Path, top: int) -> None:
    values = np.round(GREY * top / 255).astype(np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 %d\n" % top + values.astype(">u2").tobytes())
    assert (pixels(tmp_path / "a.pgm") - torch.from_numpy(GREY)).abs().max() <= 1
    if top == 4095:
        packed = np.packbits(np.unpackbits(values.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 4:])
        tiff(tmp_path / "a.tif", packed.tobytes(), (16, 16), 12)
        assert (pixels(tmp_path / "a.tif") - torch.from_numpy(GREY)).abs().max() <= 1


@pytest.mark.parametrize(
    ("mode", "name", "content"),
    [
        ("F", "a.tif", GREY.astype(np.float32) / 255),
        ("I", "b.tif", WIDE.astype(np.int32) * 30_000),
        ("I", "c.tif", GREY.astype(np.int32)),
        ("F", "d.tiff", GREY.astype(np.float32)),
    ],
)
def test_image_mode_without_defined_range_is_refused(tmp_path: Path, mode: str, name: str, content: Any) -> None:
    path = saved(tmp_path / name, Image.fromarray(content))
    with pytest.raises(UsageError, match=rf"{name} \(its mode {mode} has no defined range .*8 or 16 bits"):
        open_image(str(path))


def test_signed_tiff_is_refused(tmp_path: Path) -> None:
    for bits, kind in ((8, np.int8), (16, np.int16)):
        path = tiff(tmp_path / f"{bits}.tif", np.array([-5, 0, 5, 9], kind).tobytes(), (2, 2), bits, t339=2)
        with pytest.raises(UsageError, match=rf"{bits}.tif \(its mode . has no defined range"):
            open_image(str(path))
    (tmp_path / "a.ppm").write_bytes(b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5))
    with pytest.raises(UsageError, match=r"a.ppm \(its mode F has no"):
        open_image(str(tmp_path / "a.ppm"))


def half_transparent(mode: str) -> Image.Image:
    """Return an image whose left half is solid black and whose right half is transparent black."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 8))
    if mode in ("L", "RGB"):  # a level is the transparent one
        image = Image.new(mode, (8, 8))
        image.paste((7,) * len(mode) if mode == "RGB" else 7, (4, 0, 8, 8))
        image.info["transparency"] = (7, 7, 7) if mode == "RGB" else 7
    elif mode == "P":
        image = Image.new("P", (8, 8))
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.paste(1, (4, 0, 8, 8))
    return image if image.mode == mode else image.convert(mode)


TRANSPARENT_FILES: dict[str, Callable[[Path], Path]] = {
    "RGBA": lambda folder: saved(folder / "a.png", half_transparent("RGBA")),
    "LA": lambda folder: saved(folder / "a.png", half_transparent("LA")),
    "L with a key": lambda folder: saved(folder / "a.png", half_transparent("L"), transparency=7),
    "RGB with a key": lambda folder: saved(folder / "a.png", half_transparent("RGB"), transparency=(7, 7, 7)),
    "palette with a key": lambda folder: saved(folder / "a.png", half_transparent("P"), transparency=1),
    "palette with alpha": lambda folder: saved(folder / "a.png", half_transparent("P"), transparency=b"\xff\x00"),
    "gif": lambda folder: saved(folder / "a.gif", half_transparent("P"), transparency=1).rename(folder / "a.png"),
    "webp": lambda folder: saved(folder / "a.webp", half_transparent("RGBA"), lossless=True, exact=True),
    "tiff": lambda folder: saved(folder / "a.tif", half_transparent("RGBA")),
    "16 bits with a key": lambda folder: png(
        folder / "a.png", (8, 8), 16, 0, (b"\0" + b"\0\0" * 4 + b"\1\2" * 4) * 8, tRNS=b"\1\2"
    ),
    "RGB of 16 bits with a key": lambda folder: png(
        folder / "a.png", (8, 8), 16, 2, (b"\0" + bytes(24) + b"\1\2\1\2\1\2" * 4) * 8, tRNS=b"\1\2\1\2\1\2"
    ),
    "2 bits with a key": lambda folder: png(folder / "a.png", (8, 8), 2, 0, b"\0\x00\x55" * 8, tRNS=b"\0\1"),
}


@pytest.mark.parametrize("kind", TRANSPARENT_FILES)
def test_transparent_pixels_become_white(tmp_path: Path, kind: str) -> None:
    found = pixels(TRANSPARENT_FILES[kind](tmp_path))
    assert found[:, :, :4].max() == 0 and found[:, :, 4:].min() == 255


def test_partial_alpha_blends_with_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGBA", (2, 2), (200, 0, 100, 51)))
    assert pixels(path)[:, 0, 0].tolist() == [244, 204, 224]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("ending", ["tif", "jpg", "png", "bmp"])
def test_other_image_modes_match_pil_conversion(tmp_path: Path, mode: str, ending: str) -> None:
    image = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    try:
        path = saved(
            tmp_path / f"a.{ending}", image.convert(mode) if mode != "LAB" else Image.new("LAB", (16, 16), 128)
        )
        expected = pil_to_tensor(Image.open(path).convert("RGB")).short()
    except (OSError, KeyError):
        pytest.skip(f"no {mode} in this format, or none that this Pillow reads back")
    assert torch.equal(pixels(path), expected)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_animation_is_read_by_its_first_frame(tmp_path: Path, ending: str) -> None:
    first, others = Image.new("RGB", (8, 8), "red"), [Image.new("RGB", (8, 8), "blue")]
    path = saved(tmp_path / f"a.{ending}", first, save_all=True, append_images=others, lossless=True)
    assert pixels(path)[:, 4, 4].tolist() == [255, 0, 0]


def turned(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """Return a picture stored in an orientation; upright, it is red at the upper left and blue at the upper right."""
    upright = Image.new("RGB", (64, 32))
    upright.paste("red", (0, 0, 32, 16))
    upright.paste("blue", (32, 0, 64, 16))
    flips = Image.Transpose
    back = [None, flips.FLIP_LEFT_RIGHT, flips.ROTATE_180, flips.FLIP_TOP_BOTTOM, flips.TRANSPOSE, flips.ROTATE_90]
    back += [flips.TRANSVERSE, flips.ROTATE_270]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = back[orientation - 1]
    return (upright if turn is None else upright.transpose(turn)), exif


def is_upright(image: Tensor) -> bool:
    red, blue = image[:, 8, 16].float(), image[:, 8, 48].float()
    return image.shape == (3, 32, 64) and red[0] > 200 > 50 > red[2] and blue[2] > 200 > 50 > blue[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, ending: str, orientation: int) -> None:
    image, exif = turned(orientation)
    path = saved(tmp_path / f"a.{ending}", image, exif=exif)
    assert is_upright(pixels(path))
    encoded = read_image(str(path))
    assert (encoded.ndim == 1) == (ending == "jpg" and orientation == 1)  # the device's decoder ignores orientation
    assert encoded.ndim == 1 or is_upright(encoded)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_rotated_tiffs_look_as_other_files_of_their_orientation(tmp_path: Path, mode: str, compression: str) -> None:
    picture = (
        Image.fromarray(WIDE[:12]) if mode == "I;16" else Image.fromarray(GREY[:12].astype(np.uint8)).convert(mode)
    )
    upright = open_image(saved(tmp_path / "a.tif", picture, compression=compression))
    for orientation in range(1, 9):
        exif = turned(orientation)[1]
        path = saved(tmp_path / "b.tif", picture, compression=compression, exif=exif)
        reference = saved(tmp_path / "b.png", upright, exif=exif)
        for read in (open_image, read_image):
            found = read(str(path))
            found = pil_to_tensor(found) if isinstance(found, Image.Image) else found
            assert torch.equal(found, pil_to_tensor(open_image(reference)))


@pytest.mark.parametrize("decode_on_device", [False, True])
def test_exif_orientation_is_applied_in_training_and_prediction(tmp_path: Path, decode_on_device: bool) -> None:
    for orientation in (1, 6, 8):
        image, exif = turned(orientation)
        for split in ("train", "val"):
            saved(tmp_path / split / "a" / f"{orientation}.jpg", image, exif=exif, quality=95)
    options = {"num_workers": 0, "decode_on_device": decode_on_device, "predict_dir": tmp_path / "train"}
    data = ImageNetDataModule(tmp_path, image_size=32, augment=False, **options)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.predict_dataloader()):
        [(batch, _)] = loader
        corners = batch[:, :, 4, [4, 27]].float()
        assert (corners[:, 0, 0] > 200).all() and (corners[:, 2, 1] > 200).all()


def test_32_pixel_images_ignore_exif_orientation(tmp_path: Path) -> None:
    image, exif = turned(3)
    path = saved(tmp_path / "a.jpg", image.resize((32, 32)), exif=exif)
    assert torch.equal(decode_images([str(path)], 32)[0], pil_to_tensor(Image.open(path)))


@pytest.mark.parametrize("damage", [b"garbage!", b"MM\0\x2a\xff\xff\xff\xff", b"II\x2a\0\0\0\0\0"])
def test_unreadable_exif_is_ignored(tmp_path: Path, damage: bytes) -> None:
    image, exif = turned(6)
    path = saved(tmp_path / "a.jpg", image, exif=exif)
    content = path.read_bytes()
    start = content.index(b"Exif\0\0") + 6
    path.write_bytes(content[:start] + damage + content[start + len(damage) :])
    assert pixels(path).shape == (3, 64, 32)


def left_by_systems(folder: Path) -> None:
    """Write files that are not images and folders that are not classes, whatever they contain."""
    image = Image.new("RGB", (32, 32))
    for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "$RECYCLE.BIN", ".Trash-1000"):
        saved(folder / hidden / "0.png", image)
        saved(folder / "cat" / hidden / "0.png", image)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.JPEG"):
        (folder / name).write_bytes(b"\0\5\x16\7")
        (folder / "cat" / name).write_bytes(b"\0\5\x16\7")


def cats_and_dogs(root: Path, split: str) -> Path:
    for name in ("cat", "dog"):
        saved(root / split / name / "0.png", Image.new("RGB", (32, 32)))
    return root / split


@pytest.mark.parametrize("module", [CIFAR100DataModule, ImageNetDataModule])
def test_system_files_are_neither_classes_nor_images(tmp_path: Path, module: Any) -> None:
    for split in ("train", "val", "test"):
        left_by_systems(cats_and_dogs(tmp_path, split))
    data = module(tmp_path)
    data.setup()
    assert data.num_classes == 2 and data.class_names == ["cat", "dog"]
    assert [split.targets.tolist() for split in data.splits.values()] == [[0, 1]] * 3


def test_system_files_in_tiny_imagenet_are_ignored(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        saved(tmp_path / "train" / name / "images" / "0.JPEG", Image.new("RGB", (64, 64)))
        saved(tmp_path / "val" / "images" / f"val_{number}.JPEG", Image.new("RGB", (64, 64)))
    left_by_systems(tmp_path / "train")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tdog\t0\nval_1.JPEG\tcat\t0\n")
    (tmp_path / "val" / "images" / "._val_0.JPEG").write_bytes(b"\0\5\x16\7")
    saved(tmp_path / "val" / "images" / "__MACOSX" / "val_0.JPEG", Image.new("RGB", (64, 64)))
    data = TinyImageNetDataModule(tmp_path)
    data.setup()
    assert data.class_names == ["cat", "dog"] and data.splits["test"].targets.tolist() == [0, 1]


def test_system_files_are_not_predicted(tmp_path: Path) -> None:
    left_by_systems(cats_and_dogs(tmp_path, "photos"))
    found = image_paths(tmp_path / "photos", "predict_dir")
    assert found == [str(tmp_path / "photos" / name / "0.png") for name in ("cat", "dog")]
    hidden = saved(tmp_path / ".cache" / "photos" / "0.png", Image.new("RGB", (8, 8))).parent
    assert image_paths(hidden, "predict_dir") == [str(hidden / "0.png")]  # a folder given by name


def test_system_archives_do_not_stop_training(tmp_path: Path) -> None:
    (cats_and_dogs(tmp_path, "train") / "._cat.tar").touch()
    ImageNetDataModule(tmp_path).read(train=True)


def test_files_with_unknown_suffix_are_counted_in_one_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = cats_and_dogs(tmp_path, "train")
    for name in ("cat/notes.txt", "dog/a.psd", "dog/b.PSD"):
        (train / name).touch()
    with caplog.at_level("INFO"):
        class_folders(train, ["cat", "dog"])
        image_paths(train, "predict_dir")
    ignored = [record.message for record in caplog.records if "images end in" in record.message]
    assert [message.partition(": images")[0] for message in ignored] == [
        f"Ignored 3 files below {train} (.psd 2, .txt 1)"
    ] * 2


def test_links_to_images_are_followed_and_loops_terminate(tmp_path: Path) -> None:
    elsewhere = cats_and_dogs(tmp_path, "elsewhere")
    train = tmp_path / "train"
    train.mkdir()
    (train / "cat").symlink_to(elsewhere / "cat")
    saved(train / "dog" / "1.png", Image.new("RGB", (32, 32)))
    (train / "dog" / "2.png").symlink_to(elsewhere / "dog" / "0.png")
    (train / "dog" / "up").symlink_to(train)  # would label every cat a dog
    (train / "again").symlink_to(train)
    (train / "root").symlink_to("/")
    for one in range(12):  # exponentially many paths
        for other in range(12):
            (train / "dog" / f"folder{one}").mkdir(exist_ok=True)
            (train / "dog" / f"folder{one}" / str(other)).symlink_to(train / "dog" / f"folder{other}")
    assert class_names_of(train) == ["cat", "dog"]
    paths, labels = class_folders(train, ["cat", "dog"])
    assert paths == [str(train / name) for name in ("cat/0.png", "dog/1.png", "dog/2.png")]
    assert labels.tolist() == [0, 1, 1]
    (train / "root").unlink()
    assert image_paths(train, "predict_dir") == paths


def test_linked_folder_is_read_once_by_its_own_name(tmp_path: Path) -> None:
    photos = cats_and_dogs(tmp_path, "photos")
    (photos / "all").symlink_to(photos / "dog")
    (photos / "cat" / "friends").symlink_to("../dog")
    (photos / "loop").symlink_to(photos)
    assert image_paths(photos, "predict_dir") == [str(photos / name / "0.png") for name in ("cat", "dog")]


def test_two_classes_may_link_to_one_folder(tmp_path: Path) -> None:
    train = cats_and_dogs(tmp_path, "train")
    (train / "hound").symlink_to(train / "dog")
    assert class_names_of(train) == ["cat", "dog", "hound"]
    assert class_folders(train, ["cat", "dog", "hound"])[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("target", ["nowhere", "cow", "/dev/null/cow"])
def test_dangling_class_link_raises_instead_of_shifting_labels(tmp_path: Path, target: str) -> None:
    (cats_and_dogs(tmp_path, "train") / "cow").symlink_to(target)
    for module in (CIFAR100DataModule, ImageNetDataModule):
        with pytest.raises(UsageError, match=r"train/cow is a broken link: repair or remove it"):
            module(tmp_path)


@pytest.mark.parametrize("kind", ["a file", "a loop", "nothing"])
def test_predict_dir_that_is_no_folder_raises(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photos"
    if kind == "a file":
        saved(tmp_path / "a.png", Image.new("RGB", (8, 8))).rename(path)
    elif kind == "a loop":
        path.symlink_to(path)
    with pytest.raises(UsageError, match=str(path)):
        image_paths(path, "predict_dir")


def test_multi_picture_jpeg_is_read_by_its_first_picture(tmp_path: Path) -> None:
    """Read multi-picture files, which phones write as .jpg."""
    image, exif = turned(6)
    path = tmp_path / "a.jpg"
    image.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], exif=exif)
    assert is_upright(pixels(path)) and is_upright(read_image(str(path)))


@pytest.mark.parametrize("kind", ["broken link", "loop", "pipe", "missing"])
def test_non_regular_file_raises_and_does_not_hang(tmp_path: Path, kind: str) -> None:
    path = cats_and_dogs(tmp_path, "train") / "cat" / "1.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.symlink_to(path if kind == "loop" else tmp_path / "nowhere.png")
        assert str(path) in class_folders(tmp_path / "train", ["cat", "dog"])[0]
    for read in (open_image, read_image, lambda path: decode_images([path], 32)):
        with pytest.raises(UsageError, match=f"cannot decode the image {path}"):
            read(str(path))


def bomb(folder: Path, kind: str) -> Path:
    path = folder / "a.png"
    rows = zlib.compress(bytes(10))
    if kind == "text":
        png(path, (8, 8), 8, 0, bytes(72), zTXt=b"a\0\0" + zlib.compress(bytes(200_000_000), 9))
    elif kind == "profile":
        png(path, (8, 8), 8, 0, bytes(72), iCCP=b"a\0\0" + zlib.compress(bytes(200_000_000), 9))
    elif kind == "tiff":
        tiff(path, rows, (2**31 - 1, 2**31 - 1), 8)
    elif kind == "tiles":
        tiff(path, rows, (8, 8), 8, t259=8, t322=40_000, t323=40_000, t324=200, t325=len(rows))
    elif kind == "sparse":
        saved(path.with_suffix(".bmp"), Image.new("RGB", (8, 8))).rename(path)
        os.truncate(path, 2**40)
    elif kind == "gif":
        path.write_bytes(b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;")
    else:
        width, height = map(int, kind.split("x"))
        compressor = zlib.compressobj(9)
        scanlines = b"".join(compressor.compress(bytes(width + 1)) for _ in range(height)) + compressor.flush()
        png(path, (width, height), 8, 0, b"")
        path.write_bytes(path.read_bytes().replace(zlib.compress(b""), scanlines))
    return path


@pytest.mark.parametrize(
    "kind", ["1x1000000", "1000000x1", "3x900000", "13000x13000", "tiff", "tiles", "sparse", "gif"]
)
@pytest.mark.filterwarnings("ignore:Image size")  # PIL's own warning
def test_image_bomb_is_refused_before_decoding(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path, kind)

    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "convert", explode)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    reason = "(too large|limit is|exceeds limit)"
    for read in (open_image, read_image):
        with pytest.raises(UsageError, match=f"cannot decode the image {path} .*{reason}"):
            read(str(path))
    with pytest.raises(UsageError, match=rf"image {path} (has \d+ x \d+ pixels, not 32 x 32|.*{reason})"):
        decode_images([str(path)], 32)


@pytest.mark.parametrize("kind", ["text", "profile", "1x1000000"])
def test_image_bomb_uses_no_memory(tmp_path: Path, kind: str) -> None:
    path = bomb(tmp_path, kind)

    def read() -> None:
        with suppress(UsageError):
            resized_center_crop(224, 256)(open_image(str(path)))

    assert grown_by(read) < 100


def test_wrong_image_size_is_detected_from_header(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (40, 32)))
    path.write_bytes(path.read_bytes()[:50])  # no pixels at all
    with pytest.raises(UsageError, match=r"a.png has 32 x 40 pixels, not 32 x 32: resize it"):
        decode_images([str(path)], 32)


@pytest.mark.parametrize("size", [(1, 300), (2000, 20), (40, 8000)])
def test_oblong_images_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    assert open_image(str(saved(tmp_path / "a.png", Image.new("RGB", size)))).size == size


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "gif", "bmp", "ppm"])
@pytest.mark.filterwarnings("ignore")  # PIL's warnings about odd files
def test_any_pil_error_becomes_usage_error(tmp_path: Path, ending: str) -> None:
    """Change bytes of a file's header at random: an image or a UsageError results."""
    image, exif = turned(6)
    path = saved(tmp_path / f"a.{ending}", image, **({} if ending in ("bmp", "gif", "ppm") else {"exif": exif}))
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(content)
        for position in generator.integers(min(300, len(content)), size=3):
            changed[position] = generator.integers(256)
        path.write_bytes(changed)
        for read in (open_image, read_image):
            with suppress(UsageError):
                read(str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "mode", "options"),
    [
        ("png", "RGBA", {"compress_level": 1}),
        ("png", "LA", {"compress_level": 1}),
        ("jpg", "CMYK", {"progressive": True, "subsampling": 0}),
        ("webp", "RGBA", {"method": 0}),
        ("tif", "RGB", {"compression": "tiff_lzw", "strip_size": 2**28}),
    ],
)
def test_largest_accepted_image_uses_at_most_one_gigabyte(
    tmp_path: Path, ending: str, mode: str, options: dict[str, Any]
) -> None:
    side = int(MAX_PIXELS**0.5)
    exif = turned(6)[1]
    path = saved(tmp_path / f"a.{ending}", Image.new(mode, (side, side)), exif=exif, **options)
    assert grown_by(lambda: resized_center_crop(224, 256)(open_image(str(path)))) < 1000


def test_digits_predict_dir_without_images_raises(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="predict_dir: no image below"):
        DigitsDataModule(predict_dir=tmp_path).predict_dataloader()
