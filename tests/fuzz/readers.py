"""Define the tested readers: small valid files, how they are damaged, and how the package reads them."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from fuzz import archives, pickles, pictures, texts
from fuzz.mutations import Change, Files, Mutant, Mutation, anywhere, mutated
from hsakd_pl import CIFAR100DataModule, ImageDataModule, STL10DataModule, TinyImageNetDataModule, load_weights
from hsakd_pl.cli import lightning_cli
from hsakd_pl.cli import main as cli
from hsakd_pl.data.augment import resized_center_crop
from hsakd_pl.data.images import decode_images, open_image
from hsakd_pl.errors import UsageError
from hsakd_pl.report import TABLE_FORMATS
from hsakd_pl.report.groups import groups
from hsakd_pl.report.page import write_page
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import as_text, lines

Read = Callable[[Path], str]


class MalformedError(Exception):
    """Raised if accepted data are not well formed."""


@dataclass(frozen=True)
class Reader:
    """Hold how a reader of the package is tested.

    Args:
        seeds: a function that returns valid sets of files.
        mutations: mutations by the ending of the file names that they apply to.
        read: a function that reads a folder and returns a digest of the content, or raises UsageError or SystemExit(2).
        checked: first bytes of files whose checksums reveal every changed byte, so that another result is a fault.
    """

    seeds: Callable[[], list[Files]]
    mutations: dict[str, Sequence[Mutation]] = field(default_factory=dict)
    read: Read = str
    checked: bytes | None = None

    def mutant(self, seed: int, index: int, name: str) -> Mutant:
        """Return the mutant with this number, always the same."""
        rng = Random(f"{name} {seed} {index}")
        files = rng.choice(self.seeds())
        targets = [(file, end) for file in files for end in self.mutations if file.endswith(end)]
        file, end = rng.choice(targets)
        return mutated(rng, files, [file], self.mutations[end])


def demand(valid: bool, what: str) -> None:
    """Raise MalformedError unless ``valid``."""
    if not valid:
        raise MalformedError(f"accepted, but {what}")


def digest(*parts: Any) -> str:
    """Return SHA-256 of tensors' bytes and of the texts of other parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode("utf-8", "surrogatepass"))
    return sha.hexdigest()


# Weights: a network of every kind of tensor, in a few hundred bytes


def network() -> nn.Module:
    """Return the network that weights are loaded into."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 3))


@cache
def state() -> dict[str, Tensor]:
    """Return the weights in the seeds."""
    generator = torch.Generator().manual_seed(2)
    draw = partial(torch.rand, generator=generator)
    return {k: draw(t.shape) if t.is_floating_point() else torch.tensor(7) for k, t in network().state_dict().items()}


def read_weights(folder: Path) -> str:
    """Load the folder's weights: finite, of the network's shapes and dtypes, and completely or not at all."""
    net = network()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    try:
        load_weights(net, next(folder.iterdir(), folder / "weights.pth"))
    except UsageError:
        kept = all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
        if not kept:
            raise MalformedError("refused after the network was changed") from None
        raise
    for key, tensor in net.state_dict().items():
        demand(tensor.dtype == before[key].dtype and tensor.shape == before[key].shape, f"{key} has changed its kind")
        demand(bool(torch.isfinite(tensor).all()), f"{key} is not finite")
    return digest(*net.state_dict().values())


@cache
def torch_seeds(legacy: bool) -> list[Files]:
    """Return state dicts alone and in envelopes, with the entries others save next to them."""
    weights = state()
    contents = (
        weights,
        {"net": weights, "acc": 57.5, "epoch": 3},
        {"state_dict": {f"module.{k}": t for k, t in weights.items()}, "optimizer": {"lr": [0.1], "momentum": weights}},
        {"model": weights, "best": np.float64(57.5), "rng": (1, None, "x", b"y")},
        {k: t.half() if t.is_floating_point() else t for k, t in weights.items()},
    )
    return [{"weights.pth": archives.saved(content, legacy)} for content in contents]


@cache
def safetensors_seeds() -> list[Files]:
    """Return state dicts with and without metadata."""
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state().items()}
    return [
        {"weights.safetensors": save(*arguments)} for arguments in ((state(),), (state(), {"format": "pt"}), (half,))
    ]


# Data sets


def read_split(module: Callable[..., ImageDataModule], stage: str, folder: Path) -> str:
    """Set the data module up as a command does and read its splits and names."""
    data = module(folder, num_workers=0)
    data.setup(stage)
    names = data.class_names
    demand(len(names) >= 1 and all(isinstance(name, str) for name in names), f"class_names are {names}"[:200])
    demand(len(names) == data.num_classes, f"there are {len(names)} names for {data.num_classes} classes")
    for split in data.splits.values():
        images, labels = split.images, split.targets
        demand(isinstance(images, Tensor) and images.dtype == torch.uint8, "images are no uint8 tensor")
        demand(images.dim() == 4 and images.shape[1] == 3 and len(images) > 0, f"images are {tuple(images.shape)}")
        demand(labels.dtype == torch.int64 and labels.shape == images.shape[:1], f"labels are {tuple(labels.shape)}")
        demand(int(labels.min()) >= 0 and int(labels.max()) < data.num_classes, "a label is out of range")
    return digest(*(part for split in data.splits.values() for part in split), names)


@cache
def cifar_seeds() -> list[Files]:
    """Return three images, as Python 2 pickled them and with protocols 2, 4 and 5."""
    data = np.random.default_rng(0).integers(256, size=(3, 3072), dtype=np.uint8)
    content = {"data": data, "fine_labels": [3, 0, 99], "coarse_labels": [1, 2, 3], "filenames": ["a", "b", "c"]}
    meta = {"fine_label_names": [f"class {i}" for i in range(100)]}
    old = {name: pickles.whole(pickles.python2(entries)) for name, entries in (("train", content), ("meta", meta))}
    rows: list[Files] = [{**old, "test": old["train"]}]
    for protocol in (2, 4, 5):
        train = pickles.pickle.dumps(content, protocol)
        rows.append({"train": train, "test": train, "meta": pickles.pickle.dumps(meta, protocol)})
    return rows


def cifar_content(rng: Random, data: bytes) -> Change:
    """Return content with a field of another kind, missing, or under a key of another type."""
    content = pickles.pickle.loads(data, encoding="latin1")
    key = rng.choice(list(content))
    way = rng.randrange(4)
    if way == 0:
        del content[key]
        return Change(f"no {key}", pickles.pickled(rng, content), forged=True)
    value = content[key]
    if way == 1 and isinstance(value, list):
        at = rng.randrange(len(value))
        value[at] = pickles.odd_value(rng)
        return Change(f"{key}[{at}] = {value[at]!r}"[:80], pickles.pickled(rng, content), forged=True)
    if way == 2:
        whole = rng.choice((value, [content], list(content), {k.encode(): v for k, v in content.items()}, None, 3))
        return Change("another object", pickles.pickled(rng, whole), forged=True)
    content[key] = pickles.odd_value(rng)
    return Change(f"{key} = {content[key]!r}"[:80], pickles.pickled(rng, content), forged=True)


@cache
def stl_seeds() -> list[Files]:
    """Return three images of 96 x 96."""
    pixels = np.random.default_rng(0).integers(256, size=3 * 3 * 96 * 96, dtype=np.uint8).tobytes()
    split = {"X.bin": pixels, "y.bin": bytes([1, 10, 5])}
    names = "\n".join(("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"))
    files: Files = {f"{part}_{name}": content for part in ("train", "test") for name, content in split.items()}
    return [{**files, "class_names.txt": names.encode() + b"\n"}]


def other_labels(rng: Random, data: bytes) -> Change:
    """Return labels out of range, too few, or too many."""
    labels = rng.choice((b"\0", b"\x0b", b"\xff", b"")), rng.choice((data, data[:-1], b""))
    return Change("labels", b"".join(labels), forged=True, refuse=labels[0] != b"" or labels[1] != data)


@cache
def tiny_seeds() -> list[Files]:
    """Return two classes with four validation images."""
    rng = np.random.default_rng(0)

    def jpeg() -> bytes:
        return pictures.encoded(Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)), "JPEG")

    rows = [f"val_{i}.JPEG\tn{1 + i % 2}\t0\t{i}\t62\t63\n" for i in range(4)]
    files: Files = {f"val/images/val_{i}.JPEG": jpeg() for i in range(4)}
    files |= {f"train/n{label}/images/n{label}_0.JPEG": jpeg() for label in (1, 2)}
    return [{**files, "val/val_annotations.txt": "".join(rows).encode()}]


@cache
def tiny_pixels() -> set[str]:
    """Return digests of the validation images of the seed."""
    files = tiny_seeds()[0]
    opened = (Image.open(io.BytesIO(raw)) for name, raw in files.items() if name.startswith("val/i"))  # type: ignore[arg-type]
    return {digest(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()) for image in opened}


def read_annotations(folder: Path) -> str:
    """Read the validation images with their annotations, each exactly once."""
    read_split(TinyImageNetDataModule, "test", folder)
    split = TinyImageNetDataModule(folder).read(train=False)
    demand(len(split.images) == 4, f"there are {len(split.images)} images")
    demand({digest(image) for image in split.images} == tiny_pixels(), "some image is missing or duplicated")
    return digest(*split)


# Images


@cache
def picture_seeds() -> list[Files]:
    """Return a file of each format and mode; the name does not reveal its format."""
    return [{f"image.{name.split('.')[1]}": data} for name, data in pictures.pictures().items()]


def forge_picture(rng: Random, data: bytes) -> Change:
    """Change the header of the file's own format."""
    kinds = {b"\x89P": "png", b"\xff\xd8": "jpg", b"II": "tif", b"MM": "tif", b"BM": "bmp", b"GI": "gif", b"RI": "webp"}
    return pictures.FORGERS[kinds.get(data[:2], "ppm")](rng, data)


def read_picture(folder: Path) -> str:
    """Open and crop as predict does, and decode as an in-memory data set does."""
    path = str(next(folder.iterdir(), folder / "missing.png"))
    image = resized_center_crop(32, 32)(open_image(path))
    demand(image.dtype == torch.uint8 and image.shape == (3, 32, 32), f"the crop is {tuple(image.shape)}")
    with suppress(UsageError):  # of another size
        decoded = decode_images([path], 32)
        demand(decoded.dtype == torch.uint8 and decoded.shape == (1, 3, 32, 32), f"decoded {tuple(decoded.shape)}")
    return digest(image)


# Configurations and rows


class ParsingCLI(lightning_cli.HSAKDCLI):
    """Parse the command line without instantiating the configured classes."""

    parsers: Any = None
    parsed = ""

    def setup_parser(self, *arguments: Any) -> None:
        """Build the parsers once."""
        if ParsingCLI.parsers is None:
            super().setup_parser(*arguments)
            ParsingCLI.parsers = self.parser, self._subcommand_parsers
        self.parser, self._subcommand_parsers = ParsingCLI.parsers

    def instantiate_classes(self) -> None:
        ParsingCLI.parsed = repr(self.config.as_dict())

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def read_configuration(folder: Path) -> str:
    """Parse the configuration of a fit as the program does."""
    usual, lightning_cli.HSAKDCLI = lightning_cli.HSAKDCLI, ParsingCLI  # type: ignore[misc]
    try:
        cli.main(["fit", "--config", str(folder / "config.yaml")])
    finally:
        lightning_cli.HSAKDCLI = usual  # type: ignore[misc]
    return digest(ParsingCLI.parsed)


@cache
def yaml_seeds() -> list[Files]:
    """Return a student's and a probe's configuration."""
    student = """\
seed_everything: 3
model:
  class_path: hsakd_pl.StudentModule
  init_args:
    network: wrn_16_2
    teacher: wrn_40_2
    teacher_weights: runs/teacher/last.ckpt
    lr: 0.05
    milestones: [150, 180, 210]
data:
  class_path: hsakd_pl.CIFAR100DataModule
  init_args:
    root: data
    batch_size: 64
trainer:
  max_epochs: 240
  default_root_dir: runs/student
"""
    probe = """\
model: {class_path: hsakd_pl.LinearProbeModule, init_args: {network: resnet8, weights: random}}
data: {class_path: hsakd_pl.STL10DataModule}
trainer:
  max_epochs: 3
  callbacks:
    - class_path: pytorch_lightning.callbacks.Timer
      init_args: {duration: "00:01:00:00"}
"""
    return [{"config.yaml": student.encode()}, {"config.yaml": student.encode()}, {"config.yaml": probe.encode()}]


@cache
def row_seeds() -> list[Files]:
    """Return two runs of one configuration."""
    row = {
        "config": ["configs/a.yaml", "configs/trainer/b.yaml"],
        "seed": 1,
        "epochs": 3,
        "last_val_acc": 0.5,
        "best_val_acc": 0.625,
        "metrics": {"val/acc": 0.5, "train/loss": 1.5},
        "seconds": 12.5,
        "images_per_second": 1000.0,
        "device": "CPU, 2 cores",
        "devices": 1,
        "precision": "32-true",
        "versions": {"torch": "2.5.0"},
        "commit": None,
        "teacher_sha256": None,
    }
    options = {"trainer.max_epochs": 3, "model.init_args.lr": 0.1, "model.init_args.milestones": "[1]"}
    protocol = {"hash": "0123456789ab", "options": options, "epochs": 3, "limited": {}, "lr": 0.1, "teacher_acc": None}
    new = {**row, "recipe": "digits/teacher_joint_resnet20", "finished": True, "protocol": protocol, "changes": []}
    history = b"epoch,step,lr,train/loss,val/acc\n1,2,0.1,1.5,0.25\n2,4,0.1,,0.5\n"
    test = b'{"acc": 50.0, "epoch": 3, "branch1_joint": 25.0}'
    files = {
        "a/result.json": json.dumps(row, indent=1).encode(),
        "b/result.json": json.dumps({**row, "seed": 2}).encode(),
    }
    return [files, {"a/result.json": json.dumps(new).encode(), "a/metrics.csv": history, "a/test.json": test}]


def read_rows(folder: Path) -> str:
    """Collect the rows, and write their table and their page."""
    rows = groups(collect(folder))
    table = lines(rows)
    demand(len(table) >= 1, "the table is empty")
    for form in TABLE_FORMATS:
        demand(not re.search(r"\bnan\b|\binf\b", as_text(rows, form)), "a number of the table is not finite")
    write_page(rows, folder / "page.html")
    for accuracy in (line[column] for line in table for column in ("last epoch", "best epoch") if line.get(column)):
        demand(0 <= float(accuracy.split()[0]) <= 100, f"an accuracy is {accuracy} %")
    return digest([list(line.values()) for line in table])


TEXTS = (texts.recoded, texts.lines)
PICKLES = (pickles.mutate_opcodes, pickles.mutate_opcodes, pickles.mutate_whole, cifar_content, anywhere)
READERS: dict[str, Reader] = {
    "torch": Reader(
        partial(torch_seeds, False),
        {"weights.pth": (anywhere, anywhere, archives.forge_zip, archives.forge_zip, archives.resaved(False, state()))},
        read_weights,
        checked=b"PK",
    ),
    "torch_legacy": Reader(
        partial(torch_seeds, True),
        {"weights.pth": (anywhere, archives.forge_legacy, archives.forge_legacy, archives.resaved(True, state()))},
        read_weights,
    ),
    "safetensors": Reader(safetensors_seeds, {"weights.safetensors": (anywhere, archives.forge_header)}, read_weights),
    "cifar100": Reader(
        cifar_seeds,
        {"train": PICKLES, "test": PICKLES, "meta": PICKLES},
        partial(read_split, CIFAR100DataModule, "fit"),
    ),
    "stl10": Reader(
        stl_seeds,
        {"X.bin": (anywhere,), "y.bin": (anywhere, other_labels), "names.txt": (anywhere, *TEXTS, texts.names)},
        partial(read_split, STL10DataModule, "fit"),
    ),
    "annotations": Reader(
        tiny_seeds,
        {"annotations.txt": (anywhere, texts.recoded, texts.lines, texts.annotations, texts.annotations)},
        read_annotations,
    ),
    "images": Reader(
        picture_seeds,
        {"": (anywhere, anywhere, forge_picture, forge_picture, pictures.whole)},
        read_picture,
        checked=b"\x89PNG",
    ),
    "yaml": Reader(
        yaml_seeds,
        {"config.yaml": (anywhere, *TEXTS, texts.yaml_value, texts.yaml_value, texts.yaml_keys, texts.yaml_bomb)},
        read_configuration,
    ),
    "rows": Reader(
        row_seeds,
        {
            "result.json": (anywhere, texts.recoded, texts.row_fields, texts.row_fields, texts.row_whole),
            "test.json": (anywhere, texts.recoded, texts.row_fields, texts.row_whole),
            "metrics.csv": (anywhere, *TEXTS),
        },
        read_rows,
    ),
}
