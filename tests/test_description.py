"""Test that checkpoints describe their data well enough to test and predict without the training images."""

import shutil
from pathlib import Path

import pytest
import small
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from hsakd_pl import DigitsDataModule, ImageNetDataModule
from hsakd_pl.data import Description
from hsakd_pl.data.description import read_description
from hsakd_pl.errors import UsageError

NAMES = ["ant", "bee", "cow"]
SAVED = {"class_names": NAMES, "image_size": 16, "resize": 20, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}


def photographs(folder: Path, names: list[str] = NAMES, count: int = 4) -> None:
    """Write class folders ``train`` and ``val`` of small coloured pictures."""
    for split in ("train", "val"):
        for label, name in enumerate(names):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                generator = torch.Generator().manual_seed(10 * label + number)
                pixels = torch.randint(256, (3, 24, 20), generator=generator).to(torch.uint8)
                to_pil_image(pixels).save(folder / split / name / f"{number}.png")


def test_data_description_round_trips() -> None:
    description = read_description(SAVED, "here")
    assert description == Description(NAMES, 16, 20, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert description.saved() == SAVED
    assert description.transform(Image.new("RGB", (50, 40))).shape == (3, 16, 16)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": "abc"},
        {"class_names": [1, 2]},
        {"image_size": "large"},
        {"image_size": 0},
        {"resize": 8},
        {"mean": [0.0]},
        {"std": [0, 1, 1]},
        {"std": None},
    ],
)
def test_invalid_data_description_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        read_description(SAVED | change, "last.ckpt")
    with pytest.raises(UsageError, match=r"last\.ckpt"):
        read_description([], "last.ckpt")


def test_test_and_predict_run_without_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    data = {"class_path": "hsakd_pl.ImageNetDataModule"}
    data["init_args"] = {"root": "photos", "image_size": 16, "num_workers": 0, "batch_size": 4}  # type: ignore[assignment]
    folder = small.run("fit", data=data)
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert saved["networks"] == ["resnet8"]
    assert (saved["data"]["class_names"], saved["data"]["image_size"], saved["data"]["resize"]) == (NAMES, 16, 18)
    shutil.rmtree("photos/train")
    small.run("test", "--ckpt_path", "last", data=data)
    small.run("predict", "--ckpt_path", "last", "--data.init_args.predict_dir", "photos/val", data=data)
    assert {row.split(",")[1] for row in Path(folder, "predictions.csv").read_text().splitlines()[1:]} <= {*NAMES}


def test_data_with_other_classes_than_checkpoint_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    photographs(tmp_path / "others", ["ant", "bee", "dog"])
    data = {"class_path": "hsakd_pl.ImageNetDataModule"}
    options = {"root": "photos", "image_size": 16, "num_workers": 0, "batch_size": 4}
    small.run("fit", data=data | {"init_args": options})
    other = data | {"init_args": options | {"root": "others"}}
    message = small.error_of(capsys, lambda: small.run("test", "--ckpt_path", "last", data=other))
    assert "ant, bee, dog" in message
    assert "ant, bee, cow" in message


def test_predicted_images_are_transformed_like_test_images(tmp_path: Path) -> None:
    photographs(tmp_path)
    data = ImageNetDataModule(tmp_path, image_size=16, predict_dir=tmp_path / "val", num_workers=0)
    data.setup("test")
    data.setup("predict")
    tested = next(iter(data.test_dataloader()))[0]
    predicted = next(iter(data.predict_dataloader()))[0]
    assert torch.equal(tested, predicted)


def test_checkpoint_names_network_passed_as_object(tmp_path: Path) -> None:
    module = small.make("student", built=True)
    small.trainer(tmp_path).fit(module, small.loader(), small.loader())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["networks"] == ["resnet8"]
    assert "data" not in saved  # custom loaders have no description
    assert DigitsDataModule().resize is None
