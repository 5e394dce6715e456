"""Measure embeddings by labels without training on them: nearest neighbours, and a linear probe in closed form.

Each image is classified by all others of the same split, so that neither training images nor their labels are needed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from hsakd_pl.ops import full_precision

SHARPNESS = 0.07  # temperature of the votes: Wu et al., CVPR 2018
RIDGE = 1e-3  # of the probe's weights, per image, for embeddings of unit variance
ROWS_AT_ONCE = 1024


@full_precision
def knn_accuracy(embeddings: Tensor, labels: Tensor, neighbours: int) -> Tensor:
    """Return the accuracy (), in [0, 1], of the vote of each image's nearest neighbours among all other images.

    Nearness is the cosine, and a vote counts exp(cosine / 0.07) (Wu et al., CVPR 2018).

    Args:
        embeddings: embeddings (N, D), at least two.
        labels: classes (N,).
        neighbours: number of neighbours.

    Examples:
        >>> knn_accuracy(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]), neighbours=1)
        tensor(0.6667)
    """
    directions = F.normalize(embeddings)
    count = len(directions)
    classes = int(labels.max()) + 1
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    for rows in torch.arange(count, device=labels.device).split(ROWS_AT_ONCE):
        cosines = directions[rows] @ directions.T
        cosines[torch.arange(len(rows), device=rows.device), rows] = -torch.inf  # itself
        nearest = cosines.topk(min(neighbours, count - 1))
        votes = torch.zeros(len(rows), classes, dtype=cosines.dtype, device=rows.device)
        votes.scatter_add_(1, labels[nearest.indices], (nearest.values / SHARPNESS).exp())
        correct += votes.argmax(1).eq(labels[rows]).sum()
    return correct / count


@full_precision
def linear_accuracy(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the accuracy (), in [0, 1], of a linear probe of all other images, by least squares on their classes.

    The probe without an image is not fitted anew: its prediction follows in closed form from that of the probe of all
    images (Cook, 1977). Embeddings have zero mean and unit variance, and weights a ridge of 0.001 per image.

    Args:
        embeddings: embeddings (N, D), at least two.
        labels: classes (N,).

    Examples:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [1.0], [1.1], [1.2]])
        >>> linear_accuracy(points, torch.tensor([0, 0, 0, 1, 1, 1]))
        tensor(1.)
    """
    values = embeddings.double()
    values = (values - values.mean(0)) / values.std(0, correction=0).clamp(min=1e-12)
    values = torch.cat([values, torch.ones_like(values[:, :1])], 1)
    classes = F.one_hot(labels).double()
    gram = values.T @ values
    gram.diagonal()[:-1] += RIDGE * len(values)
    solved = torch.linalg.solve(gram, values.T)
    leverage = (values * solved.T).sum(1, keepdim=True)
    predicted = (values @ (solved @ classes) - leverage * classes) / (1 - leverage).clamp(min=1e-12)
    return predicted.argmax(1).eq(labels).float().mean()


class Embeddings(Metric):
    """Collect embeddings (N, D) with their labels (N,) from all devices; those of unlabelled images are left out."""

    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", [], "cat")
        self.add_state("labels", [], "cat")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        labelled = labels >= 0
        self.embeddings.append(embeddings.detach()[labelled].float())
        self.labels.append(labels[labelled])

    def compute(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.embeddings), dim_zero_cat(self.labels)
