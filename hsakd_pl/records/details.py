"""What a page shows of a test beside its numbers, as plain data: mistakes, calibration, embedding, an example."""

from base64 import b64encode
from collections import Counter
from io import BytesIO
from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from hsakd_pl.data import ImageDataModule
from hsakd_pl.modules.ensembles import BINS
from hsakd_pl.networks import Network

PAIRS, TOP = 10, 3  # how many confused pairs are kept, and classes of the example
PIXELS = 96  # side of the example's pictures at most, which keeps the file small
FEWEST = 20  # images that t-SNE can make neighbourhoods of


def confused_pairs(labels: Tensor, predicted: Tensor) -> list[tuple[int, int, int]]:
    """Count the most frequent mistakes, labels (n,) against the classes that P peers predict (P, n).

    Returns (true class, predicted class, how often), the most frequent first.
    """
    pairs = Counter(zip(labels.repeat(len(predicted)).tolist(), predicted.flatten().tolist(), strict=True))
    wrong = sorted((-count, *pair) for pair, count in pairs.items() if pair[0] != pair[1])
    return [(label, taken_for, -count) for count, label, taken_for in wrong[:PAIRS]]


def reliability(probability: Tensor, correct: Tensor) -> list[tuple[int, float, float] | None]:
    """Sort predictions into equal bins of their probability, given with whether each is correct, in equal shapes.

    Returns for each bin its count, mean probability and accuracy in [0, 1], and None for an empty one.
    """
    bins = (probability * BINS).long().clamp(max=BINS - 1)
    members = [(probability[bins == each].double(), correct[bins == each].double()) for each in range(BINS)]
    return [(len(mean), float(mean.mean()), float(right.mean())) if len(mean) else None for mean, right in members]


def project(embeddings: Tensor, labels: Tensor) -> dict[str, Any]:
    """Bring embeddings (n, D) to two dimensions: principal components, then t-SNE where the images are not too few.

    Returns the points (n, 2) with their labels and the name of the method; the same input gives the same points.
    """
    few = len(embeddings) < FEWEST
    components = min(2 if few else 50, *embeddings.shape)
    points = PCA(components, random_state=0).fit_transform(embeddings.numpy())
    if not few:
        perplexity = min(30, (len(points) - 1) / 3)  # scikit-learn's default, and what few images bear
        points = TSNE(perplexity=perplexity, random_state=0).fit_transform(points)
    plane = torch.zeros(len(points), 2)  # a single image has no second component
    plane[:, : points.shape[1]] = torch.as_tensor(points)
    rounded = [[round(coordinate, 3) for coordinate in point] for point in plane.tolist()]
    return {"method": "PCA" if few else "t-SNE", "points": rounded, "labels": labels.tolist()}


def describe_example(network: Network, image: Tensor, label: int, data: Any) -> dict[str, Any]:
    """Say what each head of a network makes of a normalised image (1, 3, S, S) under each of M transformations.

    Returns its label, the pictures as PNG in base64, and by name of the head, M lists of the most probable classes with
    their probabilities; ``data`` is the data module, which knows how the image was normalised.
    """
    transforms = network.transforms
    inputs = transforms(image)
    output = network.outputs(inputs)
    heads = {"class head": output.logits}
    heads |= {f"branch {number}": transforms.class_logits(joint) for number, joint in enumerate(output.joint_logits, 1)}
    best = {name: logits.float().softmax(1).topk(min(TOP, network.num_classes)) for name, logits in heads.items()}
    return {
        "label": label,
        "transforms": str(transforms),
        "pictures": [_png(picture) for picture in _pixels(inputs.float().cpu(), data)],
        "heads": {
            name: [list(zip(*row, strict=True)) for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
            for name, top in best.items()
        },
    }


def _pixels(images: Tensor, data: Any) -> Tensor:
    if isinstance(data, ImageDataModule):
        shift, scale = torch.tensor([data.mean, data.std])[:, :, None, None]
    else:  # it is not known how they were normalised: from the darkest to the brightest value
        scale = 1 / (images.max() - images.min()).clamp(min=1e-9)
        shift = -images.min() * scale
    return ((images * scale + shift).clamp(0, 1) * 255).round().to(torch.uint8)


def _png(picture: Tensor) -> str:
    small, file = resize(picture, [min(PIXELS, picture.shape[-1])]), BytesIO()
    to_pil_image(small).save(file, "PNG")
    return b64encode(file.getvalue()).decode()
