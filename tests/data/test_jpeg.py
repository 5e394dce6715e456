"""Test JPEGs decoded on the device, here a CPU: the batches equal those of the workers for all kinds of files."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.io
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl import ImageNetDataModule, TeacherModule
from hsakd_pl.data.augment import resized_center_crop
from hsakd_pl.data.jpeg import DeviceDecodedBatches, decode_jpegs, read_image
from hsakd_pl.data.sources import TransformedBatches
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture
def mini(unpack: Any) -> Path:
    return unpack("imagenet-mini.tar.gz") / "imagenet-mini"


def photographs(folder: Path) -> list[str]:
    """Write a gradient in the forms that ImageNet's files have, and as a PNG."""
    image = Image.linear_gradient("L").resize((40, 30))
    for name, mode in (("colour.jpg", "RGB"), ("grey.jpg", "L"), ("print.jpg", "CMYK"), ("lossless.png", "RGB")):
        image.convert(mode).save(folder / name)
    return [str(folder / name) for name in ("colour.jpg", "grey.jpg", "print.jpg", "lossless.png")]


def source(paths: list[str], num_workers: int = 0) -> DeviceDecodedBatches:
    split = Split(paths, torch.arange(len(paths)))
    return DeviceDecodedBatches(TransformedBatches(split, resized_center_crop(16, 16), 16, 0), num_workers, CPU)


def test_only_colour_jpegs_are_decoded_on_device(tmp_path: Path) -> None:
    colour, *others = photographs(tmp_path)
    encoded = read_image(colour)
    assert bytes(encoded.tolist()) == Path(colour).read_bytes()
    [decoded] = decode_jpegs([encoded], CPU)
    assert decoded.shape == (3, 30, 40)
    for path in others:
        assert torch.equal(read_image(path), pil_to_tensor(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_device_decoding_batch_mixes_all_file_kinds(tmp_path: Path, num_workers: int) -> None:
    order = [torch.tensor([3, 0, 2, 1]), torch.arange(0)]
    (images, labels), (none, _) = source(photographs(tmp_path), num_workers).make_batches(0, order)
    assert labels.tolist() == [3, 0, 2, 1]
    assert none.shape == (0, 3, 16, 16)
    gradient = pil_to_tensor(Image.linear_gradient("L").resize((16, 16))).float()
    assert (images.float() - gradient).abs().amax() < 20  # of 256 levels; a swapped or broken image is off by 100


def test_device_decoded_training_batches_match_workers(mini: Path) -> None:
    """Compare images, crops and flips; pixels differ by a few levels, as resized tensors round differently than PIL."""

    def batches(train: bool, **options: Any) -> list[Any]:
        data = ImageNetDataModule(mini, batch_size=50, image_size=64, seed=3, **options)
        data.setup()
        loader = data.train_dataloader() if train else data.test_dataloader()
        loader.sampler.set_epoch(2)
        return list(loader)[:3]

    for train in (True, False):
        expected, found = batches(train, num_workers=1), batches(train, num_workers=1, decode_on_device=True)
        for (ours, labels), (theirs, published) in zip(found, expected, strict=True):
            assert torch.equal(labels, published)
            assert (ours.float() - theirs.float()).abs().mean(dim=(1, 2, 3)).max() < 2
        alone = batches(train, num_workers=0, decode_on_device=True)
        assert all(torch.equal(one, other) for (one, _), (other, _) in zip(found, alone, strict=True))


def test_fit_with_decode_on_device_trains(mini: Path, make_trainer: Any) -> None:
    data = ImageNetDataModule(mini, batch_size=8, image_size=32, num_workers=1, decode_on_device=True)
    trainer = make_trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    trainer.fit(TeacherModule("resnet8", num_classes=20), data)
    assert trainer.global_step == 2 and "val/acc" in trainer.callback_metrics


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kept", [400, 20, 0])
def test_broken_jpeg_raises_naming_file(tmp_path: Path, kept: int, num_workers: int) -> None:
    good, *_ = photographs(tmp_path)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(good).read_bytes()[:kept])
    with pytest.raises(UsageError) as error:
        list(source([good, str(broken)], num_workers).make_batches(0, [torch.tensor([0, 1])]))
    assert str(broken) in str(error.value) and "Traceback" not in str(error.value)


def test_pil_decodes_jpegs_that_the_device_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = source(photographs(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("arithmetic coding")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", refuse)
    [(images, _)] = batches.make_batches(0, [torch.arange(4)])
    assert images.float().std() > 50
    with pytest.raises(UsageError, match=r"decode_on_device: no JPEG decoder for cpu \(arithmetic coding\): set it to"):
        source(photographs(tmp_path))
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    with pytest.raises(UsageError, match=r"decode_on_device: no JPEG decoder for cpu \(.*'decode_jpeg'"):
        source(photographs(tmp_path))
