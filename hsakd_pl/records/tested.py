"""Writes what ``test`` finds: ``test.json``, and in ``test_details.json`` what a page shows beside the numbers."""

import json
import re
import time
from pathlib import Path
from statistics import mean
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from hsakd_pl.files import replacing
from hsakd_pl.files.weights import file_sha256, read_weights
from hsakd_pl.modules.ensembles import BINS
from hsakd_pl.records.details import confused_pairs, describe_example, project, reliability
from hsakd_pl.records.ensembles import PICTURE, ensemble_results, rounded, show
from hsakd_pl.records.formats import DETAILS_FILE, TEST_FILE, TEST_FORMAT
from hsakd_pl.records.protocol import machine

EMBEDDED = 1000  # images, of all devices
ACCURACIES = re.compile(r"test/((peer\d+_)?(acc|branch\d+_(joint|class))(_top\d+)?)")


class EvaluationWriter(pl.Callback):
    """Writes ``test.json`` and ``test_details.json`` into ``folder`` when ``test`` has ended.

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
        self._answers, self._embeddings = list[tuple[Tensor, ...]](), list[tuple[Tensor, ...]]()
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
        if not isinstance(outputs, dict) or not len(labels):  # a test_step of the user's, or a device without images
            return
        self._image_size = images.shape[-1]
        probability, predicted = torch.stack(outputs["logits"]).float().softmax(2).max(2)
        self._answers.append((labels.cpu(), probability.cpu(), predicted.cpu()))
        most, batches = EMBEDDED // trainer.world_size, int(trainer.num_test_batches[0])
        due = (batch_idx + 1) * most // batches - batch_idx * most // batches  # spreads them over all batches
        chosen = torch.linspace(0, len(labels) - 1, min(due, len(labels)), device=labels.device).long()
        with trainer.precision_plugin.forward_context():
            embedding = pl_module.network.outputs(images[chosen]).embedding if len(chosen) else None
            if embedding is not None:
                self._embeddings.append((embedding.float().cpu(), labels[chosen].cpu()))
            if self._example is None:
                data = getattr(trainer, "datamodule", None)
                self._example = describe_example(pl_module.network, images[:1], int(labels[0]), data)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = self._answers, self._embeddings
        ranks: list[Any] = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, own)
        ensembles = getattr(pl_module, "ensembles", None)
        sums = None if ensembles is None else ensembles.compute()  # of all devices together
        # Lightning sets fast_dev_run without declaring it
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        answers, embeddings = ([each for rank in ranks for each in rank[part]] for part in (0, 1))
        if not answers:
            name = type(pl_module).__name__
            rank_zero_info(f"No {TEST_FILE} is written: test_step of {name} does not return what that of its base does")
            return
        labels, probability, predicted = (torch.cat(parts, -1) for parts in zip(*answers, strict=True))
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
        for name, content in ((DETAILS_FILE, details), (TEST_FILE, results)):
            with replacing(self.folder / name) as file:
                json.dump(content, file, indent=1 if content is results else None, allow_nan=False)
                file.write("\n")
        (self.folder / PICTURE).unlink(missing_ok=True)  # an earlier test's
        if sums is not None:
            show(results, self.folder / PICTURE)
        rank_zero_info(f"The results of the test are in {self.folder / TEST_FILE}")

    def _results(
        self, trainer: pl.Trainer, module: pl.LightningModule, labels: Tensor, probability: Tensor, predicted: Tensor
    ) -> dict[str, Any]:
        # the winning class alone decides: MulticlassCalibrationError makes the same of all classes' probabilities
        pairs = zip(probability, predicted == labels, strict=True)
        errors = [rounded(float(binary_calibration_error(*pair, n_bins=BINS, norm="l1"))) for pair in pairs]
        metrics, limit = trainer.callback_metrics, trainer.limit_test_batches
        peers = [f"peer{peer}" for peer in range(1, len(errors) + 1)] if len(errors) > 1 else []
        checkpoint = trainer.ckpt_path or module.hparams.get("weights")
        return {
            "format": TEST_FORMAT,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "epoch": read_weights(trainer.ckpt_path)["epoch"] + 1 if trainer.ckpt_path else None,
            "sha256": weights_sha256(trainer, module),
            "split": "test",
            "images": len(labels),
            "limited": {"limit_test_batches": limit} if isinstance(limit, int) or limit < 1 else {},
            **{
                match[1]: rounded(float(metrics[match[0]]))
                for match in map(ACCURACIES.fullmatch, sorted(metrics))
                if match
            },
            "nll": float(metrics["test/loss"]),
            "ece": mean(errors),
            **{f"{peer}_nll": float(metrics[f"test/{peer}_loss"]) for peer in peers},
            **{f"{peer}_ece": error for peer, error in zip(peers, errors, strict=False)},
            "seconds": round(time.monotonic() - self._start, 2),
            **machine(trainer),
        }


def weights_sha256(trainer: pl.Trainer, module: pl.LightningModule) -> str | None:
    """Return the SHA-256 of the checkpoint that is tested, or of the module's own weight file."""
    if trainer.ckpt_path:
        return file_sha256(str(trainer.ckpt_path))
    weight_file = getattr(module, "weight_files", {}).get("weights")
    return None if weight_file is None else weight_file.sha256
