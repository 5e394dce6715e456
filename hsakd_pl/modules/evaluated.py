"""The networks of a module, trained and frozen, and their evaluation."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch.nn as nn
from torch import Tensor
from torchmetrics import Metric

from hsakd_pl.data import Description, FeatureDataModule, ImageDataModule
from hsakd_pl.data.splits import check_batch, check_normalised_images
from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import WeightFile, require_present
from hsakd_pl.modules.ensembles import EnsembleMetrics, Views
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.means import Mean
from hsakd_pl.modules.metrics import TOP_K, Evaluation, Metrics
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.network import outputs_of, require_logits

Batch = tuple[Tensor, Tensor]


class Evaluator(Protocol):
    """Compute what a network computes, for evaluation alone."""

    def __call__(self, images: Tensor) -> NetworkOutput:
        """Return all outputs for images (B, 3, S, S)."""

    def classify(self, images: Tensor) -> Tensor:
        """Return the class logits (B, N) of images (B, 3, S, S)."""


class EvaluatedModule(pl.LightningModule):
    """Hold one or more networks of the same classes, and evaluate them.

    ``frozen`` holds the frozen networks, teachers or parts of trained networks; teachers are not registered as
    submodules. ``weight_files`` holds the facts about the weight files that the options name, by option.
    ``evaluators`` are called in place of the networks in an evaluation while :mod:`hsakd_pl.fast` sets them.
    ``branch_metrics_every`` and ``ensemble``: see :class:`hsakd_pl.HSAKDModule`.
    """

    networks: Any  # a ModuleList of Network; ModuleList is not generic
    description: Description | None = None  # description of the training data
    views: int = 1  # transformed or augmented copies of an image in a training step
    is_probe: bool = False  # the networks are frozen features and a classifier
    keeps_classes: bool = True  # the classes of the option ``weights`` are those of the data
    network_normalisation: bool = True  # images are normalised as the frozen part of a trained network has learnt
    batch_terms: tuple[str, ...] = ()  # loss terms that depend on which images are in a batch together
    gathers_batch: bool = False  # these terms see the images of all devices
    needs_indices: bool = False  # training batches end in the samples' indices (B,) in the training split
    needs_strong_view: bool = False  # training batches are images (2 * B, 3, S, S), usual and then strong views

    def __init__(self, networks: Sequence[Network], branch_metrics_every: int, ensemble: Views | None = None) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.branch_metrics_every = branch_metrics_every
        self.evaluators: Sequence[Evaluator] = ()
        self.frozen: list[Frozen] = []
        self.weight_files: dict[str, WeightFile] = {}
        self.evaluation = Evaluation(networks)
        self.ensembles = None if ensemble is None else EnsembleMetrics(networks, ensemble)

    @property
    def network(self) -> Network:
        """The network that is trained (the first peer where there are several)."""
        return self.networks[0]

    @property
    def teachers(self) -> list[Frozen]:
        """The frozen networks that are not part of a trained one."""
        registered = set(self.modules())
        return [frozen for frozen in self.frozen if frozen.network not in registered]

    @property
    def num_classes(self) -> int:
        """Number of classes N of all networks."""
        return self.network.num_classes

    def forward(self, images: Tensor) -> Any:
        self._prepare()
        return self.network(images.clone())  # as everywhere, since a network may change its input in place

    def classify(self, peer: int, images: Tensor) -> Tensor:
        """Return the class logits (B, N) of images (B, 3, S, S); the branches are not computed."""
        copy = images.clone()
        if self.evaluators:
            return self.evaluators[peer].classify(copy)
        logits = self.networks[peer].without_branches(copy)
        require_logits(self.networks[peer], logits, images, self.num_classes)
        return logits

    def _outputs(self, peer: int, images: Tensor) -> NetworkOutput:
        if self.evaluators:
            return self.evaluators[peer](images.clone())
        return outputs_of(self.networks[peer], images)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._check_batch(batch, batch_idx)
        self._evaluate(batch, "val", self._branches_are_due())

    def _branches_are_due(self) -> bool:
        """Return True if this validation measures the branches: in a fit, in every n-th epoch and in the last."""
        every = self.branch_metrics_every
        if every == 0:
            return False
        epoch = self.current_epoch + 1
        return self.trainer.state.fn != "fit" or epoch == self.trainer.max_epochs or epoch % every == 0

    def on_test_start(self) -> None:
        if self.ensembles is not None:
            self.ensembles.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Tensor]]:
        """Evaluate a batch and return the class ``logits`` (B, N) of each peer."""
        self._check_batch(batch, batch_idx)
        return {"logits": self._evaluate(batch, "test", self.branch_metrics_every > 0)}

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the class, its probability, the source and the error of each image.

        A batch is that of a data module, or of any loader: normalised images (B, 3, S, S), alone, with their names, or
        with labels, which are ignored. The source of an image without a name is None.

        ``agreement`` is the fraction of the transformations under which the same class is predicted. ``top_class`` and
        ``top_probability`` (B, k) are the k <= 5 most probable classes.
        """
        self._prepare()
        images, sources = self._images_with_sources(batch)
        transforms = self.network.transforms
        logits = transforms.by_transform(self.classify(0, transforms(images)))
        probability, predicted = logits[0].softmax(1).topk(min(TOP_K, self.num_classes))
        agreement = logits.argmax(2).eq(predicted[:, 0]).float().mean(0)
        return {
            "source": [path for path, _ in sources],
            "error": [error for _, error in sources],
            "class": predicted[:, 0],
            "probability": probability[:, 0],
            "agreement": agreement,
            "top_class": predicted,
            "top_probability": probability,
        }

    def _images_with_sources(self, batch: Any) -> tuple[Tensor, Sequence[tuple[str | None, str]]]:
        """Return the images of a batch to predict, with the source and the error of each.

        Raises UsageError for a batch without images.
        """
        images, *others = batch if isinstance(batch, tuple | list) else [batch]
        if not isinstance(images, Tensor):
            raise UsageError(f"the loader returns {type(images).__name__}, not a tensor of images: fix its collate_fn")
        names = others[0] if others and isinstance(others[0], tuple | list) else []
        if names and all(isinstance(name, tuple | list) and len(name) == 2 for name in names):
            return images, names
        check_normalised_images(images, self.dtype, self.network.in_channels)
        if names and all(isinstance(name, str) for name in names):
            return images, [(name, "") for name in names]
        return images, [(None, "")] * len(images)

    def _evaluate(self, batch: Batch, split: str, with_branches: bool) -> list[Tensor]:
        self._prepare()
        images, labels = batch
        ensembles = self.ensembles if split == "test" else None
        all_views = with_branches or (ensembles is not None and ensembles.views > 1)
        class_logits: list[Tensor] = []
        outputs: list[NetworkOutput] = []
        for peer, network in enumerate(self.networks):
            metrics: Metrics = {}
            if len(network.branches) and (with_branches or ensembles is not None):
                output = self._outputs(peer, network.transforms(images) if all_views else images)
                logits = output.logits[: len(labels)]
                outputs.append(output._replace(features=[]))
                if with_branches:
                    metrics |= self.evaluation.add_branches(peer, output, labels)
            else:
                logits = self.classify(peer, images)
            class_logits.append(logits)
            metrics |= self.evaluation.add_head(peer, logits, labels)
            for name, metric in metrics.items():
                self._log_metric(f"{split}/{name}", metric, in_bar=name == "acc")
        for name, metric in self.evaluation.add_ensemble(class_logits, labels).items():
            self._log_metric(f"{split}/{name}", metric, in_bar=False)
        if ensembles is not None and len(labels):
            ensembles.update(outputs, labels)
        return class_logits

    def _log_metric(self, name: str, metric: Metric, in_bar: bool) -> None:
        # without metric_attribute Lightning looks for the metric by its id, which in a copy of the module is another
        self.log(name, metric, on_step=False, on_epoch=True, prog_bar=in_bar, metric_attribute=name)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"evaluators": ()}  # of this module: a copy may change its weights

    def train(self, mode: bool = True) -> "EvaluatedModule":
        super().train(mode)
        for frozen in self.frozen:
            frozen.guard()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EvaluatedModule":
        for teacher in self.teachers:  # they follow to every device and dtype
            teacher.network._apply(fn)
            if teacher.adapter is not None:
                teacher.adapter._apply(fn)
        return super()._apply(fn, recurse)

    def _transform_names(self) -> list[str]:
        return [str(network.transforms) for network in self.networks]

    def _check_batch(self, batch: Any, batch_idx: int) -> None:
        """Raise UsageError for a batch that cannot be used; the package's data modules check theirs themselves."""
        data = getattr(self._trainer, "datamodule", None)
        if self._trainer is not None and not isinstance(data, ImageDataModule | FeatureDataModule):
            check_batch(batch, self.num_classes, self.dtype, batch_idx == 0, self.network.in_channels)

    def _prepare(self) -> None:
        """Keep frozen networks in eval mode; raises UsageError where a network lacks the weights it was to have."""
        if "weights" in self.weight_files:
            require_present([self.weight_files["weights"]])
        for frozen in self.frozen:
            frozen.guard()

    def on_validation_epoch_end(self) -> None:
        self._raise_unless_evaluated("val")

    def on_test_epoch_end(self) -> None:
        self._raise_unless_evaluated("test")

    def _raise_unless_evaluated(self, split: str) -> None:
        finite = bool(cast(Mean, self.evaluation.pooled["loss"]).total.isfinite())
        if not self.trainer.strategy.reduce_boolean_decision(finite):
            remedy = "the weights have diverged (lower lr) or some images contain NaN or inf"
            raise UsageError(f"{split}/loss is NaN or infinite in epoch {self.current_epoch}: {remedy}")
