"""Test images of one, four and five channels, from pictures to students that stand alone."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small import CLASSES, loader, make, needs_onnx, run, trainer
from torch import Tensor, nn
from torchvision.transforms import v2

from hsakd_pl import (
    BaselineModule,
    DigitsDataModule,
    EmbeddingModule,
    ImageFolderDataModule,
    StudentModule,
    create_network,
    load_student,
    load_weights,
    open_image,
)
from hsakd_pl.cli.main import main
from hsakd_pl.data import Description
from hsakd_pl.errors import UsageError
from hsakd_pl.export import Student
from hsakd_pl.export.calibration import network_with_branches
from hsakd_pl.export.checkpoint import read_trained
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.records.protocol import kept_options

SIDE = 12
PAGE = Path(__file__).parents[1] / "docs" / "your-data.md"
[BLOCK] = re.findall(r"```bash\n((?:(?!```).)*?channels 4.*?)```", PAGE.read_text(), re.DOTALL)
COMMANDS = re.sub(r"\\\n *", "", BLOCK).splitlines()
QUIET = ["--accelerator", "cpu", "--num_workers", "0"]
GENERATOR = torch.Generator().manual_seed(0)


def bands(channels: int, label: int) -> list[Image.Image]:
    """Return noise whose last band tells the class; the band before it is half black."""
    levels = torch.randint(256, (channels, SIDE, SIDE), generator=GENERATOR, dtype=torch.uint8)
    levels[-1] = 40 + 160 * label
    return [Image.fromarray(band.numpy()) for band in levels]


def save(channels: int, label: int, path: Path) -> None:
    """Save a picture: grey and RGBA as PNG, spectra as frames of a TIFF."""
    first, *others = bands(channels, label)
    if channels == 4:
        Image.merge("RGBA", [first, *others]).save(path.with_suffix(".png"))
    elif others:
        first.save(path.with_suffix(".tif"), save_all=True, append_images=others)
    else:
        first.save(path.with_suffix(".png"))


def folder(channels: int) -> dict[str, Any]:
    """Write pictures of two classes into a folder, and return the options of its data module."""
    for split, count in (("train", 8), ("val", 3)):
        for label in range(2):
            target = Path("pictures", split, f"class{label}")
            target.mkdir(parents=True)
            for number in range(count):
                save(channels, label, target / str(number))
    options = {"root": "pictures", "image_size": 8, "channels": channels, "batch_size": 4, "num_workers": 0}
    return {"class_path": "hsakd_pl.ImageFolderDataModule", "init_args": options}


def digits(channels: int) -> dict[str, Any]:
    """Write one digit, and return the options of the digits' data module."""
    save(channels, 0, Path("digit"))
    options = {"channels": channels, "num_workers": 0, "batch_size": 32}
    return {"class_path": "hsakd_pl.DigitsDataModule", "init_args": options}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = {"limit_val_batches": 1, "limit_test_batches": 1}


def short(module: str, data: dict[str, Any], command: str = "fit", **options: Any) -> Path:
    """Run a command for a few batches, without the accuracies of the branches."""
    chosen = {"branch_metrics_every": 0, "fast": False} | options
    words = ["--ckpt_path", "last"] if command == "test" else []
    return run(command, *words, module=module, data=data, model={"init_args": chosen}, trainer=SHORT)


@pytest.mark.parametrize(("channels", "data"), [(1, digits), (5, folder)], ids=["grey", "spectra"])
def test_commands_lead_from_pictures_of_any_channels_to_exports(channels: int, data: Any, here: Path) -> None:
    options = data(channels)
    teacher = short("TeacherModule", options)
    taught = {"teacher": "resnet8", "teacher_weights": str(teacher / "last.ckpt")}
    student = short("StudentModule", options, **taught)
    checkpoint = torch.load(student / "last.ckpt", weights_only=False)
    assert checkpoint["hyper_parameters"]["channels"] == channels == len(checkpoint["data"]["mean"])
    with_branches = network_with_branches(read_trained(student))  # as for early exits of an export
    assert with_branches is not None and with_branches.in_channels == channels
    if channels == 1:
        short("StudentModule", options, "test", **taught)
        student = short("methods.KDModule", options, **taught)
    main(["export", str(student), "exported", "--formats", "safetensors"])
    main(["predict", "exported", "digit.png" if channels == 1 else "pictures/val", *QUIET])
    check_predictions(channels, 1 if channels == 1 else 6)


@pytest.mark.parametrize(("channels", "teacher"), [(1, "resnet14"), (4, "timm:test_vit")])
def test_embedding_is_distilled_from_pictures_of_any_channels_and_exported(
    channels: int, teacher: str, here: Path
) -> None:
    if teacher.startswith("timm:"):
        pytest.importorskip("timm")
    taught = {"teacher": teacher, "teacher_weights": "random", "teacher_mean": "data", "map_weight": 1.0}
    run_folder = short("EmbeddingModule", folder(channels), **taught)
    main(["export", str(run_folder), "exported", "--formats", "safetensors"])
    student = load_student("exported")
    module = EmbeddingModule.load_from_checkpoint(run_folder / "last.ckpt", **taught)
    [picture, *_] = Path("pictures").glob("val/*/*")
    pixels = student.transform(open_image(str(picture), channels=channels))[None]
    assert student.embeds and pixels.shape == (1, channels, 8, 8)
    scaled = pixels / 255 - torch.tensor(student.description.mean)[:, None, None]
    expected = module.eval()(scaled / torch.tensor(student.description.std)[:, None, None])
    assert torch.allclose(student(pixels), expected, atol=1e-5)


FOREIGN: dict[str, Callable[[], Any]] = {
    r"network Own takes images of 3 channels, not of 1: give .* in_channels": lambda: EmbeddingModule(
        "resnet8", Own(8), channels=1, teacher_mean="data"
    ),
    r"the student takes images of 1 channel, the teacher of 3: choose": lambda: EmbeddingModule(
        create_network("resnet8", 8, channels=1), Own(8), teacher_mean="data"
    ),
    r"nothing says .* set teacher_mean and teacher_std, one number each, or teacher_mean to data": (
        lambda: EmbeddingModule("resnet8", "timm:test_vit", "random", channels=1)
    ),
    r"teacher_mean must be data or four numbers, got imagenet": lambda: EmbeddingModule(
        "resnet8", "resnet14", "random", channels=4, teacher_mean="imagenet"
    ),
    r"teacher.mean must be one finite number, got": lambda: EmbeddingModule(
        "resnet8", "resnet14", "random", channels=1, teacher_mean=[0.5] * 3, teacher_std=[0.5] * 3
    ),
}


@pytest.mark.parametrize("message", FOREIGN)
def test_teacher_of_other_channels_is_refused_in_one_sentence(message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match=message):
        FOREIGN[message]()


@needs_onnx
@pytest.mark.slow
def test_documented_commands_distill_four_channels_and_export_graphs(here: Path) -> None:
    folder(4)
    Path("pictures").rename("rgbd")
    batches = ["--data.init_args.num_workers", "0", "--data.init_args.batch_size", "4"]
    less = ["--data.init_args.image_size", "8", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    plain = ["--model.init_args.fast", "false", "--model.init_args.branch_metrics_every", "0"]
    short_fit = [*batches, *less, *plain, "--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", "0"]
    added = {"fit": short_fit, "export": ["--int8", "static"], "predict": QUIET}
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        main([*words, *added.get(words[0], [])])
    kd = ["--model", "KDModule", "--model.init_args.image_size", "8", *shlex.split(COMMANDS[1])[4:]]
    main(["fit", *kd, *short_fit, "--trainer.default_root_dir", "runs/kd"])
    main(["report", "runs"])
    picture, opened, student = check_predictions(4, 6)
    check_card(picture, opened, student)


def check_predictions(channels: int, count: int) -> tuple[str, Tensor, Student]:
    """Compare the first of ``count`` predictions with the exported student's; return picture, pixels and student."""
    rows = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert len(rows) == count and not any("error" in row for row in rows)
    student = load_student("exported")
    assert student.channels == channels == student.network.in_channels
    opened = student.transform(open_image(rows[0]["image"], channels=channels))
    assert student.class_names[int(student(opened[None]).argmax())] == rows[0]["class"]
    return rows[0]["image"], opened, student


def check_card(picture: str, opened: Tensor, student: Student) -> None:
    """Run the card's lines for onnxruntime, which need neither PyTorch nor this package, on a picture."""
    card = Path("exported/README.md").read_text()
    [lines] = (block for block in re.findall("```python\n(.*?)```", card, re.S) if "onnxruntime" in block)
    lines = lines.replace("picture.png", picture).replace('"model.onnx"', '"exported/model.onnx"')
    scope: dict[str, Any] = {}
    exec(lines, scope)
    assert abs(torch.from_numpy(scope["pixels"][0]) * 255 - opened).max() <= 1.01  # PIL rounds each pass to levels
    assert "8 x 8 pixels and 4 channels" in card and "channels=4" in card


@pytest.mark.parametrize("kind", ["mutual", "probe", "baseline"])
def test_modules_train_on_batches_of_two_channels(kind: str) -> None:
    module = make(kind, channels=2)
    batches = loader(torch.randn(4, 2, 8, 8))
    trainer().fit(module, batches, batches)
    with pytest.raises(UsageError, match=r"not floating point \(B, 2, H, W\)"):
        trainer().validate(module, loader(torch.randn(4, 3, 8, 8)), verbose=False)


@pytest.mark.parametrize("name", ["wrn_16_1", "timm:lcnet_050", "resnet8+transfer:8:4:2"])
def test_first_layer_alone_differs_between_networks_of_one_and_three_channels(name: str) -> None:
    transfer = "+" in name
    grey = create_network(name, CLASSES, branches=not transfer, channels=1)
    rgb = create_network(name, CLASSES, branches=not transfer)
    shapes = {key: tensor.shape for key, tensor in rgb.state_dict().items()}
    differing = [key for key, tensor in grey.state_dict().items() if tensor.shape != shapes[key]]
    assert len(differing) == 1 and grey.in_channels == 1 and grey.output_layers == rgb.output_layers
    assert grey.shapes(32, "features").logits.shape == (1, CLASSES)
    assert multiply_adds(grey, 32) > 0


class Own(nn.Module):
    """A network of one kind of images."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(images))


def grey_network(num_classes: int) -> nn.Module:
    return Own(num_classes, 1)


def rgb_network(num_classes: int) -> nn.Module:
    return Own(num_classes)


def test_own_networks_take_the_channels_that_they_can_have() -> None:
    for name, channels in (("Own", 4), ("grey_network", 1)):
        network = create_network(f"test_channels.{name}", CLASSES, branches=False, channels=channels)
        assert network.in_channels == channels and network(torch.zeros(2, channels, 8, 8)).shape == (2, CLASSES)
        assert network.output_layers == [["network.head"]]
    assert BaselineModule(Own(CLASSES, 1), num_classes=CLASSES, channels=1).network.in_channels == 1
    for refused in (
        lambda: create_network("test_channels.rgb_network", CLASSES, branches=False, channels=4),
        lambda: BaselineModule(Own(CLASSES), num_classes=CLASSES, channels=1),
        lambda: StudentModule("resnet8", Own(CLASSES), num_classes=CLASSES, channels=1, joint_kd_weight=0),
    ):
        with pytest.raises(UsageError, match=r"takes images of 3 channels, not of [14]: give .* in_channels"):
            refused()


def test_networks_and_data_of_different_channels_are_refused_in_one_sentence(here: Path) -> None:
    torch.save(create_network("resnet8", CLASSES).state_dict(), "rgb.pth")
    grey = create_network("resnet8", CLASSES, channels=1)
    with pytest.raises(
        UsageError, match=r"for images of 3 channels, .* takes 1 \(.*stem.conv1.weight\): set channels to 3"
    ):
        load_weights(grey, "rgb.pth")
    with pytest.raises(UsageError, match=r"for images of 3 channels"):
        make("student", channels=1, teacher_weights="rgb.pth", teacher="resnet8")
    with pytest.raises(UsageError, match=r"differ in channels \(1 and 3\)"):
        StudentModule(grey, create_network("resnet8", CLASSES))
    with pytest.raises(UsageError, match=r"takes images of 3 channels, DigitsDataModule has 1: set channels"):
        trainer().fit(BaselineModule("resnet8", num_classes=10), DigitsDataModule(channels=1))
    description = Description(["a", "b"], 8, 8, (0.5,), (0.5,))
    with pytest.raises(UsageError, match=r"takes images of 3 channels, got statistics of 1"):
        Student(create_network("resnet8", 2), **description.saved())
    with pytest.raises(UsageError, match=r"images have 3 channels, the student takes 1"):
        Student("resnet8", **description.saved())(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match=r"colours reorders red, green and blue, but the images have 4 channels"):
        make("teacher", channels=4, transforms="colours").training_step((torch.zeros(2, 4, 8, 8), torch.arange(2)), 0)


def test_pictures_are_opened_with_their_channels_or_refused(here: Path) -> None:
    deep = torch.linspace(0, 65535, SIDE**2).view(SIDE, SIDE).round()
    Image.fromarray(deep.to(torch.uint16).numpy()).save("deep.png")
    grey = torch.from_numpy(np.array(open_image("deep.png", channels=1))).float()
    assert abs(grey - deep / 257).max() <= 0.51
    levels = bands(4, 0)
    Image.merge("RGBA", levels).save("depth.png")  # its last band, as alpha, would darken the others when resized
    opened = open_image("depth.png", channels=4)
    assert torch.equal(opened, torch.stack([torch.from_numpy(np.array(band)) for band in levels]))
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.merge("RGBA", levels).save("turned.png", exif=exif)
    assert torch.equal(open_image("turned.png", channels=4), opened.rot90(2, (1, 2)))
    infrared = Image.merge("RGBX", levels)  # a fourth band that is not an alpha channel
    for options in ({}, {"compression": "tiff_deflate"}):
        infrared.save("infrared.tif", **options)
        assert torch.equal(open_image("infrared.tif", channels=4), opened)
        assert torch.equal(torch.from_numpy(np.array(open_image("infrared.tif"))).permute(2, 0, 1), opened[:3])
    infrared.save("infrared.tif", tiffinfo={274: 3})
    assert torch.equal(open_image("infrared.tif", channels=4), opened.rot90(2, (1, 2)))
    other = Image.fromarray(np.array(levels[0])[:4])
    levels[0].save("frames.tif", save_all=True, append_images=[levels[1], other])
    Image.merge("RGB", levels[:3]).save("rgb.png")
    Image.merge("RGBA", levels).save("extra.tif", tiffinfo={338: 1})
    for path, channels, reason in (
        ("rgb.png", 4, "it has 3 bands, in the mode RGB, instead of 4"),
        ("frames.tif", 2, "it has 1 bands"),
        ("depth.png", 5, "it has 4 bands"),
    ):
        with pytest.raises(UsageError, match=f"cannot decode the image {path}.*{reason}"):
            open_image(path, channels=channels)


def test_statistics_are_one_number_per_channel(here: Path) -> None:
    options = folder(4)["init_args"]
    with pytest.raises(UsageError, match=r"mean must be auto or four numbers, got imagenet"):
        ImageFolderDataModule(**options, mean="imagenet")
    with pytest.raises(UsageError, match=r"mean must be four finite numbers"):
        ImageFolderDataModule(**options, mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(UsageError, match=r"channels must be a whole number from 1 to 512, got 0"):
        DigitsDataModule(channels=0)
    data = ImageFolderDataModule(**options)
    data.setup("fit")
    images = data.resident(data.splits["train"])
    assert images is not None and images.shape[1] == 4
    mean = images.double().mean((0, 2, 3)) / 255
    assert torch.allclose(torch.tensor(data.mean, dtype=torch.float64), mean)
    rgb = ImageFolderDataModule(**options | {"channels": 1})
    rgb.setup("fit")
    assert len(rgb.mean) == 1  # the stored measurement of four channels is not taken for it


@pytest.mark.parametrize("transform", [v2.ColorJitter(hue=0.2), v2.RandomAutocontrast(1.0), v2.RandomGrayscale(1.0)])
def test_colour_transforms_refuse_four_channels_in_one_sentence(transform: v2.Transform, here: Path) -> None:
    data = ImageFolderDataModule(**folder(4)["init_args"], augmentation=transform)
    data.setup("fit")
    with pytest.raises(UsageError, match=r"the transform .* fails: "):
        [*data.train_dataloader()]


def test_resized_crops_and_flips_work_on_four_channels(here: Path) -> None:
    data = ImageFolderDataModule(**folder(4)["init_args"], augmentation="resized_crop")
    data.setup("fit")
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 4, 8, 8)
    with pytest.raises(UsageError, match="RandAugment of the strongly augmented view takes grey or RGB images, not 4"):
        data._strong_source(data.splits["train"], data.train_transform, 1)


def test_timm_weights_are_adapted_to_the_channels(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("lcnet_050")
    save_file(model.state_dict(), "weights.safetensors")
    known = replace(timm.get_pretrained_cfg("lcnet_050"), file="weights.safetensors")
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, "lcnet_050", known)
    grey = BaselineModule("timm:lcnet_050", "pretrained", CLASSES, new_head=True, channels=1).network
    assert torch.allclose(grey.state_dict()["stem.conv_stem.weight"], model.conv_stem.weight.sum(1, keepdim=True))
    assert grey.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, CLASSES)


def test_protocols_of_earlier_versions_stay_the_same() -> None:
    options = {"model.init_args.network": "resnet8", "data.init_args.channels": 3, "model.init_args.channels": 3}
    assert kept_options(options) == {"model.init_args.network": "resnet8"}
    assert kept_options(options | {"data.init_args.channels": 1})["data.init_args.channels"] == 1
