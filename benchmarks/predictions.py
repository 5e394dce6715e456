"""Compare what a network predicts as evaluation computes it, in float32 and in bf16, with its plain forward pass.

The images are the test images of CIFAR-100 and as many training images, without augmentation. The network is that of a
BaselineModule, whose ``fast=False`` is the plain forward pass, and the weights are those of a file.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import hsakd_pl
from benchmarks.machine import processor
from hsakd_pl import BaselineModule, CIFAR100DataModule

BATCH_SIZE = 200
PLAIN = "plain, 32-bit"
FORMS = {  # fast and precision of each
    PLAIN: (False, "32-true"),
    "evaluation, 32-bit": (True, "32-true"),
    "evaluation, bf16": (True, "bf16-mixed"),
}
HEADS = (
    "",
    "same class",
    "of the test images",
    "largest margin where it is another",
    "largest difference of logits",
    "test accuracy",
    "times as fast",
)


class Classified(BaselineModule):
    """A baseline that predicts the logits of each image itself, as validation computes them."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self._prepare()
        return self.classify(0, batch[0])


class Prediction(NamedTuple):
    """Logits (n, N) in float32, and the seconds that they took."""

    logits: Tensor
    seconds: float


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser("python -m benchmarks predictions", description=__doc__)
    options.add_argument("--network", default="wrn_40_2", help="name of the network (default: %(default)s)")
    options.add_argument("--weights", required=True, help="file of its weights for the classes of CIFAR-100")
    options.add_argument("--data", default="data", help="folder of CIFAR-100 (default: %(default)s)")
    return options


def images_of(data: CIFAR100DataModule) -> tuple[Tensor, Tensor]:
    """Return normalised test images and as many training images (n, 3, 32, 32), and the labels of the test images."""
    test, train = data.read(train=False), data.read(train=True)
    images = torch.cat([torch.as_tensor(test.images), torch.as_tensor(train.images[: len(test.images)])])
    (normalised,) = data.on_after_batch_transfer((images,), 0)
    return normalised, torch.as_tensor(test.targets)


def predict(images: Tensor, options: argparse.Namespace, fast: bool, precision: Any) -> Prediction:
    """Return what the network predicts in one form."""
    module = Classified(options.network, weights=options.weights, fast=fast)
    loader = DataLoader(TensorDataset(images), batch_size=BATCH_SIZE)
    trainer = pl.Trainer(accelerator="cpu", precision=precision, logger=False, enable_progress_bar=False)
    start = time.perf_counter()
    batches: Any = trainer.predict(module, loader)
    return Prediction(torch.cat(batches).float(), time.perf_counter() - start)


def table(predictions: dict[str, Prediction], labels: Tensor) -> list[str]:
    """Return the lines of a table; a margin is the difference between the two largest logits of the plain pass."""
    plain = predictions[PLAIN]
    largest = plain.logits.topk(2).values
    margins = largest[:, 0] - largest[:, 1]
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    for name, (logits, seconds) in predictions.items():
        is_same = logits.argmax(1) == plain.logits.argmax(1)
        others = margins[~is_same]
        cells = [
            name,
            f"{is_same.sum():,} of {len(is_same):,}",
            f"{100 * is_same[: len(labels)].float().mean():.2f} %",
            f"{others.max():.2g}" if len(others) else "-",
            f"{(logits - plain.logits).abs().max():.1e}",
            f"{100 * (logits[: len(labels)].argmax(1) == labels).float().mean():.2f} %",
            f"{plain.seconds / seconds:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Predict in each form, and print a table."""
    options = parser().parse_args(arguments)
    warnings.filterwarnings("ignore")  # the trainer's advice about loaders
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    images, labels = images_of(CIFAR100DataModule(options.data))
    predictions = {name: predict(images, options, *form) for name, form in FORMS.items()}
    print(*table(predictions, labels), "", sep="\n")
    environment = {"processor": processor(), "hsakd_pl": hsakd_pl.__version__, "torch": torch.__version__}
    print(*(f"{name}: {value}" for name, value in environment.items()), sep="\n")
