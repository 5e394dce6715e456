"""``test.json`` and ``test_details.json``: the results of ``test``, and the details that a page shows."""

import json
import re
import time
from collections.abc import Sized
from pathlib import Path
from statistics import mean
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from hsakd_pl.errors import UsageError
from hsakd_pl.files import replacing
from hsakd_pl.files.lock import in_turn
from hsakd_pl.files.weights import file_sha256, read_weights, weights_digest
from hsakd_pl.modules.ensembles import BINS
from hsakd_pl.modules.trainers import is_trial
from hsakd_pl.records.details import confused_pairs, describe_example, project, reliability
from hsakd_pl.records.ensembles import PICTURE, ensemble_results, rounded, show
from hsakd_pl.records.formats import (
    DETAILS_FILE,
    RESULT_FILE,
    TEST_FILE,
    TEST_FORMAT,
    Row,
    for_weights,
    read_row,
    read_test,
)
from hsakd_pl.records.measured import checkpoint_name, coverage, is_partial
from hsakd_pl.records.protocol import machine

EMBEDDED_IMAGES = 1000  # over all devices
DIGEST = re.compile("[0-9a-f]{64}")  # SHA-256
ACCURACIES = re.compile(r"test/((peer\d+_|ensemble_)?((linear_)?acc|branch\d+_(joint|class))(_top\d+)?)")


class EvaluationWriter(pl.Callback):
    """Write ``test.json`` and ``test_details.json`` into ``folder`` when ``test`` has ended.

    Tests of several weights are all kept: ``test.json`` is that of the run's last weights, or the newest one if these
    were not tested. The names of the others contain the digest of their weights, as in ``test_0123456789ab.json``.

    Accuracies and the expected calibration error (``ece``) are fractions in [0, 1], ``nll`` is the negative
    log-likelihood. With several peers these are means, and each peer has its own entries too. Images of all devices
    count. The details: the most confused pairs of classes and the reliability bins, over all peers; from the first peer
    the embedding of about 1,000 images in two dimensions, and the predictions of its heads for one image under each
    transformation. Ensembles, where the module measures them, are also printed, and drawn in ``ensemble.png``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()
        self._predictions = list[tuple[Tensor, Tensor, Tensor]]()
        self._embeddings = list[tuple[Tensor, Tensor]]()
        self._example: dict[str, Any] | None = None
        self._image_size = 0

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        images, labels = batch
        if not isinstance(outputs, dict) or not len(labels):  # a test_step of a user, or a device without images
            return
        self._image_size = images.shape[-1]
        logits = outputs.get("logits", [])  # an embedding has none
        probability, predicted = labels.new_empty(2, 0, len(labels))
        if logits:
            probability, predicted = torch.stack(logits).float().softmax(2).max(2)
        self._predictions.append((labels.cpu(), probability.cpu(), predicted.cpu()))
        selected = _selected_images(trainer, batch_idx, labels)
        with trainer.precision_plugin.forward_context():
            embedding = outputs["embedding"][selected] if "embedding" in outputs else None
            if len(selected) and embedding is None:
                embedding = pl_module.network.without_branches.outputs(images[selected]).embedding
            if embedding is not None:
                self._embeddings.append((embedding.float().cpu(), labels[selected].cpu()))
            if self._example is None and logits:
                data = getattr(trainer, "datamodule", None)
                self._example = describe_example(pl_module.network, images[:1], int(labels[0]), data)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        predictions = _gathered(trainer, self._predictions)
        embeddings = _gathered(trainer, self._embeddings)
        ensembles = getattr(pl_module, "ensembles", None)
        sums = None if ensembles is None else ensembles.compute()  # over all devices
        if is_trial(trainer) or not trainer.is_global_zero:
            return
        if not predictions:
            name = type(pl_module).__name__
            rank_zero_info(f"No {TEST_FILE} is written: test_step of {name} does not return what that of its base does")
            return
        labels, probability, predicted = (torch.cat(parts, -1) for parts in zip(*predictions, strict=True))
        details = {
            "confused": confused_pairs(labels, predicted),
            "reliability": reliability(probability, predicted == labels),
            "embedding": project(*map(torch.cat, zip(*embeddings, strict=True))) if embeddings else None,
            "example": self._example,
            "class_names": getattr(getattr(trainer, "datamodule", None), "class_names", None),
        }
        results = self._results(trainer, pl_module, labels, probability, predicted)
        if sums is not None:
            results |= ensemble_results(sums, pl_module.networks, self._image_size)
        with in_turn(self.folder / ".test.writer"):  # the files of one test, also if two end at the same time
            self._write(results, details, drawn=sums is not None)

    def _write(self, results: dict[str, Any], details: dict[str, Any], drawn: bool) -> None:
        """Write the files of a test, unless they would replace those of a whole split by those of a part."""
        test, detailed, picture = self._files(results)
        earlier = _read(test)
        if is_partial(results) and earlier is not None and not is_partial(earlier) and _is_same(earlier, results):
            rank_zero_info(f"{test} stays as it is: a test of {coverage(results)} does not replace it")
            return
        if earlier is not None and not _is_same(earlier, results):
            for path in (test, detailed, picture):
                if path.exists():
                    path.replace(path.with_name(for_weights(path.name, _identity(earlier))))
        _write_json(detailed, details, indent=None)
        _write_json(test, results, indent=1)
        picture.unlink(missing_ok=True)  # of an earlier test
        if drawn:
            show(results, picture)
        rank_zero_info(f"The results of the test are in {test}")

    def _files(self, results: dict[str, Any]) -> list[Path]:
        """Return the files of a test, with a digest in their names if ``test.json`` is of the run's last weights."""
        names = [TEST_FILE, DETAILS_FILE, PICTURE]
        earlier = _read(self.folder / TEST_FILE)
        if earlier is not None and not _is_same(earlier, results) and self._is_of_last_weights(earlier):
            names = [for_weights(name, results["weights_digest"]) for name in names]
        return [self.folder / name for name in names]

    def _is_of_last_weights(self, test: Row) -> bool:
        try:
            row = read_row(self.folder / RESULT_FILE) if (self.folder / RESULT_FILE).exists() else {}
        except UsageError:  # it is not one
            return False
        return checkpoint_name(row, test.get("weights_digest") or "", test.get("epoch")) == "last"

    def _results(
        self, trainer: pl.Trainer, module: pl.LightningModule, labels: Tensor, probability: Tensor, predicted: Tensor
    ) -> dict[str, Any]:
        # of the predicted class alone: MulticlassCalibrationError computes the same from all probabilities
        errors = []
        for peer_probability, peer_correct in zip(probability, predicted == labels, strict=True):
            error = binary_calibration_error(peer_probability, peer_correct, n_bins=BINS, norm="l1")
            errors.append(rounded(float(error)))
        metrics = trainer.callback_metrics
        limit = trainer.limit_test_batches
        source = trainer.ckpt_path or module.hparams.get("weights")
        checkpoint = read_weights(trainer.ckpt_path) if trainer.ckpt_path else {}
        data = getattr(trainer, "datamodule", None)
        results: dict[str, Any] = {
            "format": TEST_FORMAT,
            "checkpoint": None if source is None else str(source),
            "epoch": checkpoint["epoch"] + 1 if checkpoint else None,
            "sha256": weights_sha256(trainer, module),
            "weights_digest": weights_digest(checkpoint.get("state_dict") or module.state_dict()),
            "split": "test",
            "data": getattr(data, "fingerprints", {}).get("test"),
            "images": len(labels),
            "split_images": _images_of_split(trainer),
            "limited": {"limit_test_batches": limit} if isinstance(limit, int) or limit < 1 else {},
        }
        for name in sorted(metrics):
            if match := ACCURACIES.fullmatch(name):
                results[match[1]] = rounded(float(metrics[name]))
        if errors:
            results["nll"] = float(metrics["test/loss"])
            results["ece"] = mean(errors)
        if len(errors) > 1:
            for peer, peer_error in enumerate(errors, 1):
                results[f"peer{peer}_nll"] = float(metrics[f"test/peer{peer}_loss"])
                results[f"peer{peer}_ece"] = peer_error
        results["seconds"] = round(time.monotonic() - self._start, 2)
        return results | machine(trainer)


def _read(path: Path) -> Row | None:
    """Read an earlier test; None if the file is not one, and may be replaced."""
    try:
        return read_test(path)
    except UsageError:
        return None


def _is_same(earlier: Row, results: Row) -> bool:
    """Return whether two tests are of the same weights; of early versions, of the same file."""
    field = "weights_digest" if earlier.get("weights_digest") else "sha256"
    return bool(earlier.get(field) == results[field])


def _identity(test: Row) -> str:
    """Return the digest of the weights of an earlier test, or of their file; ``earlier`` if it has neither."""
    digest = str(test.get("weights_digest") or test.get("sha256"))
    return digest if DIGEST.fullmatch(digest) else "earlier"


def _images_of_split(trainer: pl.Trainer) -> int | None:
    """Return the number of images of the whole test split; None for loaders that do not know it."""
    data = getattr(trainer, "datamodule", None)
    split = getattr(data, "splits", {}).get("test")
    if split is not None:
        return len(split.targets)
    loaders = trainer.test_dataloaders
    datasets = [getattr(loader, "dataset", None) for loader in (loaders if isinstance(loaders, list) else [loaders])]
    if not all(isinstance(dataset, Sized) for dataset in datasets):
        return None
    return sum(len(dataset) for dataset in datasets if isinstance(dataset, Sized))


def _selected_images(trainer: pl.Trainer, batch_idx: int, labels: Tensor) -> Tensor:
    """Return the indices of the images of a batch whose embeddings are kept, spread evenly over all batches."""
    most = EMBEDDED_IMAGES // trainer.world_size
    batches = int(trainer.num_test_batches[0])
    count = (batch_idx + 1) * most // batches - batch_idx * most // batches
    return torch.linspace(0, len(labels) - 1, min(count, len(labels)), device=labels.device).long()


def _gathered(trainer: pl.Trainer, parts: list[Any]) -> list[Any]:
    """Return the parts of all devices."""
    if trainer.world_size == 1:
        return parts
    parts_of_ranks: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts_of_ranks, parts)
    return [part for rank_parts in parts_of_ranks for part in rank_parts]


def _write_json(path: Path, content: dict[str, Any], indent: int | None) -> None:
    with replacing(path) as file:
        json.dump(content, file, indent=indent, allow_nan=False)
        file.write("\n")


def weights_sha256(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """Return the SHA-256 of the checkpoint that is tested, or of the module's own weight file."""
    if trainer.ckpt_path:
        return file_sha256(str(trainer.ckpt_path))
    weight_file = getattr(module, "weight_files", {}).get("weights")
    return None if weight_file is None else weight_file.sha256
