"""Test the limits on what files declare, and on the pixels that are decoded at one time."""

import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import grown_by

from hsakd_pl import ImageDataModule, ImageFolderDataModule, ImageNetDataModule, TinyImageNetDataModule, load_student
from hsakd_pl.data import Description
from hsakd_pl.data.augment import resized_center_crop
from hsakd_pl.data.images import decode_images
from hsakd_pl.data.limits import LIMIT, MAX_PIXELS, PixelBudget, images_per_pass
from hsakd_pl.errors import UsageError
from hsakd_pl.export import Student, student_from_checkpoint
from hsakd_pl.export.pictures import find_pictures
from hsakd_pl.export.student import save
from hsakd_pl.networks.bounded import limited_by
from hsakd_pl.ops import named_transforms

MEGAPIXEL = 10**6


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an untrained student as an export does."""
    folder = tmp_path_factory.mktemp("student")
    save(Student("resnet8", ["cat", "dog"], 8, 8, (0.5,) * 3, (0.5,) * 3), folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": 20_000}, "resize must be from 1 to 7094, got 20000"),
        ({"resize": 10**6, "image_size": 10**6}, "resize must be from 1 to 7094, got 1000000"),
        ({"image_size": 1_000_000}, "image_size must be at least 1, at most 8"),
        ({"image_size": 0}, "image_size is 0"),
        ({"resize": 7000, "image_size": 7000}, "image_size must be from 1 to 4096, got 7000"),
        ({"resize": 1e400}, "it holds Infinity"),
        ({"transforms": "rotations*rotations*rotations*rotations"}, "more than 64 views of each image"),
        ({"transforms": "rotations*flips*" * 10_000 + "flips"}, "more than 64 views of each image"),
        ({"network": "timm:vit_giant_patch14_224"}, "cannot be the weights of the network"),
        ({"network": "timm:eva_giant_patch14_224"}, "cannot be the weights of the network"),
    ],
)
def test_values_of_forged_configs_are_bounded(
    exported: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if "timm" in str(changes):
        pytest.importorskip("timm", reason="timm is not installed")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UsageError, match=message):
        load_student(tmp_path)


def test_giant_network_that_a_checkpoint_names_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    description = Description(["cat", "dog"], 224, 224, (0.5,) * 3, (0.5,) * 3)
    content = {"state_dict": {"a": torch.zeros(1)}, "hyper_parameters": {"network": "timm:vit_giant_patch14_224"}}
    torch.save(content | {"data": description.saved(), "epoch": 1}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match=r"last.ckpt has .* bytes, which cannot be the weights of the network"):
        student_from_checkpoint(tmp_path / "last.ckpt")


def test_large_weight_files_may_contain_large_networks(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with path.open("wb") as file:
        file.truncate(400_000_000)  # takes no space on the disk
    with limited_by(path):
        assert torch.nn.Linear(10_000, 10_000, device="meta").weight.numel() == 10**8
    path.unlink()
    with pytest.raises(UsageError, match="more than 50,000,000 parameters"), limited_by(path):
        torch.nn.Linear(10_000, 10_000, device="meta")
    assert torch.nn.Linear(10_000, 10_000, device="meta").weight.numel() == 10**8


@pytest.mark.parametrize("module", [ImageNetDataModule, ImageFolderDataModule, TinyImageNetDataModule])
@pytest.mark.parametrize("size", [0, 4097, 10**6])
def test_image_size_is_bounded_in_every_data_module(tmp_path: Path, module: Any, size: int) -> None:
    with pytest.raises(UsageError, match="image_size must be from 1 to 4096"):
        module(tmp_path, image_size=size)


@pytest.mark.parametrize("size", [2000, 4000])
def test_batches_that_fill_the_memory_are_refused(tmp_path: Path, size: int) -> None:
    for number in range(200):
        (tmp_path / f"{number}.png").touch()
    data = ImageDataModule(predict_dir=tmp_path, batch_size=200, num_workers=0)
    data.num_classes = 2
    data.adopt(Description(["cat", "dog"], size, size, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(UsageError, match=f"a batch of 200 images of {size} x {size} pixels takes more than 2 GiB"):
        data.predict_dataloader()
    data.batch_size = 10
    data.predict_dataloader()


@pytest.mark.parametrize("folder", [None, "photos"])
def test_export_compares_few_large_images(folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(3):
        Image.new("RGB", (9, 9)).save(f"photos/{number}.png")
    description = Description(["cat", "dog"], 8, 8, (0.5,) * 3, (0.5,) * 3)
    large = replace(description, image_size=3000, resize=3000)
    assert len(find_pictures(None, folder, large).images) == 1
    assert len(find_pictures(None, folder, description).images) == (3 if folder else 32)


@pytest.mark.parametrize(("side", "count"), [(32, 64), (512, 64), (1024, 16), (4096, 1)])
def test_images_of_one_pass_are_bounded(side: int, count: int) -> None:
    assert images_per_pass(64, side) == count


def test_products_of_the_package_are_within_the_limit() -> None:
    assert named_transforms("rotations*flips*colours").count == 48


def largest_sum(budget: PixelBudget, sizes: list[int], start: Callable[..., Any], value: Any) -> int:
    """Return the largest number of pixels that workers with leases of these sizes held at one time."""
    workers = [start(target=_hold, args=(budget, size, value)) for size in sizes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return int(value[1])


def _hold(budget: PixelBudget, size: int, value: Any) -> None:
    for _ in range(3):
        with budget.lease() as take:
            take(size)
            with value.get_lock():
                value[0] += size
                value[1] = max(value[0], value[1])
            time.sleep(0.002)
            with value.get_lock():
                value[0] -= size


@pytest.mark.parametrize("between_processes", [False, True])
@pytest.mark.parametrize("megapixels", [[50] * 6, [12] * 10, [1, 20, 45, 90, 200]])
def test_pixels_held_at_one_time_are_bounded(between_processes: bool, megapixels: list[int]) -> None:
    budget = PixelBudget(between_processes)
    sizes = [MEGAPIXEL * number for number in megapixels]
    start = multiprocessing.get_context("fork").Process if between_processes else threading.Thread
    value = multiprocessing.Array("q", 2)
    assert largest_sum(budget, sizes, start, value) <= max(LIMIT, *sizes)
    assert value[0] == 0


def test_small_pictures_do_not_wait() -> None:
    budget = PixelBudget(between_processes=False)
    with budget.lease() as take, budget.lease() as take_more:
        take(1000 * MEGAPIXEL)
        take_more(500 * 500)


@pytest.mark.nightly
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_eight_of_the_largest_pictures_are_decoded_within_memory(tmp_path: Path, ending: str) -> None:
    side = int(MAX_PIXELS**0.5)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(path)
    peak = grown_by(lambda: decode_images([str(path)] * 8, 64, resized_center_crop(64, 64)))
    assert peak < 2500  # MiB; without a bound 6,000 with six threads
