"""Test that every registered network's three exported formats match PyTorch on real images."""

from pathlib import Path

import pytest
import torch
from small import needs_onnx
from torch import nn

from hsakd_pl import CIFAR100DataModule, ImageNetDataModule, list_networks, load_weights
from hsakd_pl.export.export import TOLERANCE, _write_compared
from hsakd_pl.export.formats import EXPORT_FORMATS
from hsakd_pl.export.pictures import as_input, first_images
from hsakd_pl.export.student import Student, save

FAMILIES = ("resnet8", "shufflenetv1", "vgg8", "wrn_16_1")
NIGHTLY = [pytest.mark.slow, pytest.mark.nightly]
NETWORKS = [pytest.param(name, marks=() if name in FAMILIES else NIGHTLY) for name in list_networks()]


@needs_onnx
@pytest.mark.parametrize("name", [*NETWORKS, pytest.param("teacher", marks=NIGHTLY)])
def test_exported_networks_match_pytorch_up_to_rounding(
    name: str, tmp_path: Path, cifar_mini: Path, unpack, teacher_file: Path
) -> None:
    torch.manual_seed(0)
    data: CIFAR100DataModule | ImageNetDataModule = CIFAR100DataModule(cifar_mini)
    if "imagenet" in name:
        data = ImageNetDataModule(unpack("imagenet-mini.tar.gz") / "imagenet-mini", image_size=64, num_workers=0)
    known = data.description
    images = as_input(first_images(data, known, "test", 16), "float")
    student = Student("wrn_40_2" if name == "teacher" else name, **known.saved())
    if name == "teacher":
        load_weights(student.network, teacher_file)
    else:
        for norm in (layer for layer in student.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.momentum = None  # the mean over all batches, here of these images only
        student.train()(images)
    save(student.eval(), tmp_path)
    files, _ = _write_compared(student, EXPORT_FORMATS, tmp_path, images)
    print(name, *(file.cells for file in files))
    assert [file.path.name for file in files] == ["model.safetensors", "model.pt2", "model.onnx"]
    assert all(file.difference is not None and file.difference <= TOLERANCE for file in files)
