"""Wasserstein distance distillation (WKD; Lv et al., NeurIPS 2024): transport probabilities, and Gaussians of features.

WKD-L transports the student's probabilities to the teacher's, at costs that are smaller between similar classes; WKD-F
compares means and standard deviations of the last maps.
"""

import math
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.data import ImageDataModule
from hsakd_pl.data.progress import tracked
from hsakd_pl.errors import UsageError, require
from hsakd_pl.files import local_path
from hsakd_pl.files.weights import WeightFile, file_sha256
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.fitnet import make_regressor
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack

LEAST = 1e-8  # added to costs and divisors, as in the published code
LEAST_VARIANCE = 1e-5  # added to variances, as in the published code


@full_precision
def linear_cka(one: Tensor, other: Tensor) -> Tensor:
    r"""Return the linear centred kernel alignment of two classes' features, a scalar from 0 to 1.

    .. math:: \frac{\Vert Y^\top X \Vert^2}{\Vert X^\top X \Vert \, \Vert Y^\top Y \Vert}

    with Frobenius norms, of features whose mean is subtracted (Kornblith et al., ICML 2019).

    Source: Lv et al., NeurIPS 2024.

    Args:
        one: features X (n, D) of one class.
        other: features Y (n, D') of another class, paired with those of the first.

    Returns:
        Alignment, a scalar from 0 to 1.

    Examples:
        >>> features = torch.randn(20, 4)
        >>> (linear_cka(features, 3 * features + 1) - 1).abs() < 1e-5
        tensor(True)
    """
    one = one - one.mean(0)
    other = other - other.mean(0)
    alignment = (other.T @ one).square().sum()
    return alignment / ((one.T @ one).norm() * (other.T @ other).norm())


@full_precision
def wkd_cost_matrix(class_features: Tensor, sharpness: float = 1.0) -> Tensor:
    r"""Return the costs (N, N) of moving probability between classes: 1 - exp(-sharpness (1 - CKA)), 0 on the diagonal.

    The features of two classes are paired in their order, so that the costs depend on it.

    Source: Lv et al., NeurIPS 2024.

    Args:
        class_features: features (N, n, D) of n samples of each class.
        sharpness: factor of 1 - :func:`linear_cka`.

    Returns:
        Symmetric costs (N, N) from 0 to 1.

    Examples:
        >>> wkd_cost_matrix(torch.randn(5, 20, 4)).diagonal()
        tensor([0., 0., 0., 0., 0.])
    """
    num_classes = len(class_features)
    alignments = class_features.new_zeros(num_classes, num_classes)
    for label in range(num_classes):
        centred = class_features[label] - class_features[label].mean(0)  # centring one of the two is enough
        products = class_features[label:].transpose(1, 2) @ centred
        alignments[label, label:] = products.square().sum((1, 2))
    norms = alignments.diagonal().sqrt()
    similarities = alignments / (norms[:, None] * norms)
    costs = 1 - torch.exp(-sharpness * (1 - similarities))
    return costs.triu(1) + costs.triu(1).T


@full_precision
def wkd_logit_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    temperature: float,
    regularization: float = 0.05,
    iterations: int = 10,
) -> dict[str, Tensor]:
    """Return the two losses of :func:`wkd_logit_loss`, scalars: ``loss_wkd_target``, ``loss_wkd_transport``.

    Arguments: :func:`wkd_logit_loss`.
    """
    target = labels[:, None]
    teacher_logits = teacher_logits.detach()
    student_log = student_logits.log_softmax(1).gather(1, target)
    target_loss = -(teacher_logits.softmax(1).gather(1, target) * student_log).sum(1).mean()
    others = _others(labels, student_logits.shape[1])
    student = (student_logits.gather(1, others) / temperature).softmax(1)
    teacher = (teacher_logits.gather(1, others) / temperature).softmax(1)
    costs = cost.clamp(min=0)[others[:, :, None], others[:, None, :]] + LEAST
    plan = sinkhorn(student, teacher, costs, regularization, iterations)
    return {"loss_wkd_target": target_loss, "loss_wkd_transport": (plan * costs).sum((1, 2)).mean()}


def _others(labels: Tensor, num_classes: int) -> Tensor:
    """Return the classes (B, N - 1) other than the labels (B,), in order."""
    classes = torch.arange(num_classes - 1, device=labels.device)
    return classes + (classes >= labels[:, None]).long()


def sinkhorn(student: Tensor, teacher: Tensor, costs: Tensor, regularization: float, iterations: int) -> Tensor:
    """Return plans (B, K, K) that move the student's probabilities (rows) to the teacher's (columns).

    They minimise transport costs and, weighted by ``regularization``, negative entropy (Cuturi, NeurIPS 2013). The sums
    of rows are exact, those of columns up to the rounds that are missing.

    Args:
        student: probabilities (B, K).
        teacher: probabilities (B, K).
        costs: costs (B, K, K).
        regularization: weight of the entropy.
        iterations: number of rounds.
    """
    kernel = torch.exp(-costs / regularization)
    rows = torch.full_like(student, 1 / student.shape[1])
    columns = rows
    for _ in range(iterations):
        columns = teacher / (_times(kernel.transpose(1, 2), rows) + LEAST)
        rows = student / (_times(kernel, columns) + LEAST)
    return rows[:, :, None] * kernel * columns[:, None, :]


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return the products (B, K) of matrices (B, K, K) and vectors (B, K)."""
    return (matrices @ vectors[:, :, None]).squeeze(2)


def wkd_logit_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    weight: float,
    temperature: float,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    r"""Return the loss of WKD-L, a scalar: the target's cross-entropy and the transport among all other classes.

    .. math:: -\overline{\text{softmax}(t)_y \log \text{softmax}(s)_y}
        + \text{weight} \overline{\sum_{ij} P_{ij} C_{ij}}

    The plan P moves the student's softmax over the classes other than y to the teacher's, both at T, in
    ``iterations`` rounds of :func:`sinkhorn`, through which the gradient passes.

    Source: Lv et al., NeurIPS 2024; JiamingLv/WKD @ 214cf88.

    Args:
        student_logits: class logits s (B, N) of the student.
        teacher_logits: class logits t (B, N) of the teacher.
        labels: classes y (B,).
        cost: costs (N, N) of :func:`wkd_cost_matrix`.
        weight: weight of the transport.
        temperature: temperature T of the transport; the target's is 1.
        regularization: weight of the plan's entropy.
        iterations: rounds of Sinkhorn's algorithm.

    Returns:
        Loss, a scalar.

    Examples:
        >>> logits, cost = torch.zeros(4, 10), 1 - torch.eye(10)
        >>> wkd_logit_loss(logits, logits, torch.arange(4), cost, weight=1.0, temperature=8.0)
        tensor(0.2303)
    """
    terms = wkd_logit_terms(student_logits, teacher_logits, labels, cost, temperature, regularization, iterations)
    return terms["loss_wkd_target"] + weight * terms["loss_wkd_transport"]


@full_precision
def wkd_feature_loss(student_map: Tensor, teacher_map: Tensor, ratio: float, grid: int = 1) -> Tensor:
    r"""Return the squared differences of means and of standard deviations, a scalar.

    .. math:: \frac{1}{B G^2} \sum \left( \mathrm{ratio} \, (\mu_s - \mu_t)^2 + (\sigma_s - \sigma_t)^2 \right)

    They are taken in each channel of each of G x G cells, and summed over images, cells and channels. The squared
    Wasserstein distance of two Gaussians with independent channels is that with a ratio of 1.

    Source: Lv et al., NeurIPS 2024.

    Args:
        student_map: feature map (B, C, H, W) of the student after the projector.
        teacher_map: feature map (B, C, H, W) of the teacher.
        ratio: weight of the means.
        grid: number of cells along each side, cut as an adaptive average pooling cuts them.

    Returns:
        Loss, a scalar.

    Raises:
        UsageError: if a cell has a single position, which has no standard deviation.

    Examples:
        >>> wkd_feature_loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4), ratio=4.0)
        tensor(32.)
    """
    _check_grid(student_map, grid)
    student_mean, student_std = _cell_statistics(student_map, grid)
    teacher_mean, teacher_std = _cell_statistics(teacher_map.detach(), grid)
    cells = len(student_map) * grid**2
    mean_loss = (student_mean - teacher_mean).square().sum() / cells
    std_loss = (student_std - teacher_std).square().sum() / cells
    return ratio * mean_loss + std_loss


def _check_grid(feature_map: Tensor, grid: int) -> None:
    """Raise UsageError unless each cell of a map (B, C, H, W) has two or more positions."""
    height, width = feature_map.shape[2:]
    valid = 1 <= grid <= min(height, width) and math.ceil(height / grid) * math.ceil(width / grid) > 1
    require(valid, "grid", grid, f"at least 1, with two or more of the map's {height} x {width} positions in each cell")


def _cell_statistics(feature_map: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (grid**2, B, C) of each cell of a map (B, C, H, W)."""
    means = []
    stds = []
    for top, bottom in _cuts(feature_map.shape[2], grid):
        for left, right in _cuts(feature_map.shape[3], grid):
            cell = feature_map[:, :, top:bottom, left:right].flatten(2)
            means.append(cell.mean(2))
            stds.append((cell.var(2) + LEAST_VARIANCE).sqrt())
    return torch.stack(means), torch.stack(stds)


def _cuts(side: int, grid: int) -> list[tuple[int, int]]:
    """Return begin and end of each cell along a side, as an adaptive average pooling cuts it."""
    return [(cell * side // grid, -(-(cell + 1) * side // grid)) for cell in range(grid)]


def wkd_decay(epoch: int, start: int = 150, epochs: int = 240) -> float:
    """Return the factor of the weights in an epoch, counted from 1: 1 up to ``start``, by a cosine to 0 at ``epochs``.

    Source: Lv et al., NeurIPS 2024.

    Args:
        epoch: epoch, from 1.
        start: last epoch at full weight.
        epochs: epoch in which the factor reaches 0.

    Returns:
        Factor from 0 to 1.

    Examples:
        >>> wkd_decay(150), wkd_decay(195), wkd_decay(240)
        (1.0, 0.5, 0.0)
    """
    if epoch <= start:
        return 1.0
    if epoch >= epochs:
        return 0.0
    return (1 + math.cos(math.pi * (epoch - start) / (epochs - start))) / 2


class WKDModule(DistilledModule):
    """Minimise CE + WKD-L (:func:`wkd_logit_loss`) + WKD-F (:func:`wkd_feature_loss` after a trained projector).

    WKD-L needs costs between the classes: at the start of a fit, the teacher passes once over the unaugmented training
    images, and :func:`wkd_cost_matrix` compares every position of its last map in the order of the images, of as many
    images per class as the smallest class has. Checkpoints keep the costs. The published code trains with Nesterov
    momentum.

    Source: Lv et al., NeurIPS 2024.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        logit_weight: weight of the transport; 600 or 200 in the paper, with WKD-F 200 or 60, depending on the networks.
            0 leaves out WKD-L, the loss of the target class too.
        feature_weight: weight of WKD-F; 0.08 or 0.3 in the paper, with WKD-L 0.08 or 0.5. 0 leaves it out.
        ratio: weight of the means in WKD-F, next to the standard deviations; 3, 4 or 8 in the paper.
        grid: cells along each side of the map in WKD-F; 1 or 4 in the paper.
        transport_temperature: temperature of the transport; 8, 6 or 4 in the paper.
        sharpness: sharpness of the costs.
        regularization: weight of the entropy in the transport.
        iterations: rounds of Sinkhorn's algorithm.
        cost_file: file of costs (N, N), written by ``numpy.save``, instead of the teacher's pass; only a fit that is
            not resumed needs it. Its SHA-256 is part of the protocol.
        decay_start: last epoch with the full weights of transport and features.
        decay_epochs: epoch in which a cosine brings these weights to 0.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: if both weights are 0, for constants out of range, and in ``fit`` for data from which the costs
            cannot be computed.

    Examples:
        >>> module = WKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10, feature_weight=0.1)
        >>> module.cost = 1 - torch.eye(10)  # in fit it is computed from the training images
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_wkd_target', 'loss_wkd_transport', 'loss_wkd_feature']
    """

    uses_unlabelled = False
    cost: Tensor | None

    def __init__(
        self,
        network: Net,
        teacher: Net,
        logit_weight: float = 600.0,
        feature_weight: float = 0.0,
        ratio: float = 4.0,
        grid: int = 1,
        transport_temperature: float = 8.0,
        sharpness: float = 1.0,
        regularization: float = 0.05,
        iterations: int = 10,
        cost_file: str | None = None,
        decay_start: int = 150,
        decay_epochs: int = 240,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        require(logit_weight > 0 or feature_weight > 0, "logit_weight", logit_weight, "above 0 if feature_weight is 0")
        for name, value in (
            ("transport_temperature", transport_temperature),
            ("sharpness", sharpness),
            ("regularization", regularization),
        ):
            require(0 < value < math.inf, name, value, "above 0, and finite")
        require(iterations >= 1, "iterations", iterations, "at least 1")
        require(0 <= decay_start <= decay_epochs, "decay_start", decay_start, f"from 0 to decay_epochs, {decay_epochs}")
        self.register_buffer("cost", None)
        decay = partial(wkd_decay, start=decay_start, epochs=decay_epochs)
        self.with_logits = logit_weight != 0
        if self.with_logits:
            self.set_loss_weights(loss_wkd_target=1.0, loss_wkd_transport=logit_weight)
            self.schedule_weights(decay, "loss_wkd_transport")
        self.projector: nn.Module | None = None
        if feature_weight != 0:
            self.set_loss_weights(loss_wkd_feature=feature_weight)
            self.schedule_weights(decay, "loss_wkd_feature")
            student_shapes, teacher_shapes = self.shapes("features")
            self.projector = make_regressor(student_shapes.features[-1], teacher_shapes.features[-1])
            _check_grid(teacher_shapes.features[-1], grid)
        self.ratio = ratio
        self.grid = grid
        self.transport_temperature = transport_temperature
        self.sharpness = sharpness
        self.regularization = regularization
        self.iterations = iterations
        self.cost_file = cost_file

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.with_logits and self.cost_file is not None:
            path = local_path("cost_file", self.cost_file)
            if path.is_file():  # a resumed fit does not need it
                reason = "it holds costs"
                self.weight_files["cost_file"] = WeightFile(str(path), sha256=file_sha256(path), missing=reason)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        cost = checkpoint["state_dict"].get("cost")
        if self.with_logits and isinstance(cost, Tensor):
            self.cost = torch.empty_like(cost, device=self.device)
        super().on_load_checkpoint(checkpoint)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.cost is not None:
            checkpoint["state_dict"]["cost"] = self.cost  # which an averaged copy of the module may lack
        super().on_save_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.with_logits and self.cost is None:
            cost = self._read_cost() if self.cost_file is not None else self._compute_cost()
            self.cost = cost.to(self.device, cast(torch.dtype, self.dtype))

    def _read_cost(self) -> Tensor:
        """Return the costs in the file; raise UsageError for anything but finite numbers (N, N)."""
        path = local_path("cost_file", str(self.cost_file))
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"cost_file: cannot read {path} ({error}): write it with numpy.save") from error
        size = (self.num_classes, self.num_classes)
        numeric = isinstance(array, np.ndarray) and array.dtype.kind == "f"
        if not numeric or array.shape != size or not np.isfinite(array).all():
            raise UsageError(f"cost_file: {path} has to contain finite floating point numbers {size}")
        return torch.from_numpy(array)

    def _compute_cost(self) -> Tensor:
        """Return the costs that the teacher's features give; the first device computes them for all."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise UsageError(
                "WKDModule computes costs from the training images: call fit(datamodule=...) with an ImageDataModule, "
                "or set cost_file"
            )
        cost = None
        if self.trainer.is_global_zero:
            cost = wkd_cost_matrix(class_features(self.teacher, data, self.device), self.sharpness).cpu()
            rank_zero_info(f"Computed the costs between {self.num_classes} classes from the teacher's last map")
        return self.trainer.strategy.broadcast(cost)  # type: ignore[return-value]

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        terms = super().terms(student, teacher, labels)
        if self.with_logits:
            if self.cost is None:
                raise UsageError("WKDModule has no costs yet: fit it with a data module of this package")
            terms |= wkd_logit_terms(
                student.logits,
                teacher.logits,
                labels,
                self.cost,
                self.transport_temperature,
                self.regularization,
                self.iterations,
            )
        if self.projector is not None:
            projected = self.projector(student.features[-1])
            terms["loss_wkd_feature"] = wkd_feature_loss(projected, teacher.features[-1], self.ratio, self.grid)
        return terms


@torch.no_grad()
def class_features(teacher: Frozen, data: ImageDataModule, device: torch.device) -> Tensor:
    """Return the features (N, n, C) of each class: all positions of the teacher's last map, in the order of the images.

    n is the number of positions times the number of images of the smallest class; later images of others are left out.

    Args:
        teacher: the teacher, whose images are adapted as in training.
        data: data module whose training images are passed, without augmentation.
        device: device of the teacher.
    """
    split = data.splits["train"]
    counts = split.targets.bincount(minlength=data.num_classes)
    smallest = int(counts.min())
    require(smallest > 0, "the training split's images of the smallest class", smallest, "at least 1")
    loader = data.plain_loader(split, on_every_device=True)
    features: list[list[Tensor]] = [[] for _ in range(data.num_classes)]
    for images, labels in tracked(loader, len(loader), "Comparing the classes"):
        normalised, _ = data.on_after_batch_transfer((images.to(device), labels), 0)
        output = teacher.network.outputs(teacher.adapted(normalised))
        if not output.features:
            raise UsageError("teacher: it returns no features to compare the classes by: set cost_file")
        rows = output.features[-1].flatten(2).transpose(1, 2)  # (B, positions, C)
        for row, label in zip(rows, labels.tolist(), strict=True):
            if len(features[label]) < smallest:
                features[label].append(row)
    return torch.stack([torch.cat(rows) for rows in features])
