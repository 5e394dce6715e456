"""The details of a test for a page, as plain data: mistakes, calibration, embedding, and an example."""

from base64 import b64encode
from collections import Counter
from io import BytesIO
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image

from hsakd_pl.data import ImageDataModule
from hsakd_pl.modules.ensembles import BINS
from hsakd_pl.networks import Network
from hsakd_pl.networks.network import outputs_of

CONFUSED_PAIRS = 10  # pairs of classes that are kept
EXAMPLE_CLASSES = 3  # classes that are kept for each head
LARGEST_PICTURE = 96  # pixels per side of the example's pictures, which keeps the file small
FEWEST_FOR_TSNE = 20  # images; fewer have no neighbourhoods


def confused_pairs(labels: Tensor, predicted: Tensor) -> list[tuple[int, int, int]]:
    """Count the most frequent mistakes, labels (n,) against the classes that P peers predict (P, n).

    Returns tuples (true class, predicted class, count), the most frequent first.
    """
    counts = Counter(zip(labels.repeat(len(predicted)).tolist(), predicted.flatten().tolist(), strict=True))
    mistakes = [(true, guess, count) for (true, guess), count in counts.items() if true != guess]
    mistakes.sort(key=lambda mistake: (-mistake[2], mistake[0], mistake[1]))
    return mistakes[:CONFUSED_PAIRS]


def reliability(probability: Tensor, correct: Tensor) -> list[tuple[int, float, float] | None]:
    """Sort predictions into equal bins of their probability (any shape); ``correct`` has the same shape.

    Returns for each bin the count, mean probability and accuracy in [0, 1], and None for an empty bin.
    """
    bins = (probability * BINS).long().clamp(max=BINS - 1)
    diagram: list[tuple[int, float, float] | None] = []
    for number in range(BINS):
        probabilities = probability[bins == number].double()
        accuracy = correct[bins == number].double().mean()
        count = len(probabilities)
        diagram.append((count, float(probabilities.mean()), float(accuracy)) if count else None)
    return diagram


def project(embeddings: Tensor, labels: Tensor) -> dict[str, Any]:
    """Project embeddings (n, D) to two dimensions: principal components, and t-SNE unless there are few images.

    Returns the points (n, 2) with their labels and the name of the method; the same input gives the same points.
    """
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.manifold import TSNE

    is_few = len(embeddings) < FEWEST_FOR_TSNE
    components = min(2 if is_few else 50, *embeddings.shape)
    points = PCA(components, random_state=0).fit_transform(embeddings.numpy())
    if not is_few:
        perplexity = min(30, (len(points) - 1) / 3)  # scikit-learn's default, and its limit for few images
        points = TSNE(perplexity=perplexity, random_state=0).fit_transform(points)
    plane = torch.zeros(len(points), 2)  # a single image has no second component
    plane[:, : points.shape[1]] = torch.as_tensor(points)
    rounded = [[round(coordinate, 3) for coordinate in point] for point in plane.tolist()]
    return {"method": "PCA" if is_few else "t-SNE", "points": rounded, "labels": labels.tolist()}


def describe_example(network: Network, image: Tensor, label: int, data: Any) -> dict[str, Any]:
    """Return the predictions of each head for a normalised image (1, C, S, S) under each of M transformations.

    Contains the label, the pictures as PNG in base64, and by name of the head M lists of the most probable classes with
    their probabilities. Of a branch, each picture is read by the joint labels of the transformation that it shows
    (``transforms.view_logits``), as in ensembles and early exits. ``data`` is the data module, which knows the
    normalisation.
    """
    transforms = network.transforms
    inputs = transforms(image)
    output = outputs_of(network, inputs)
    heads = {"class head": output.logits}
    for number, joint_logits in enumerate(output.joint_logits, 1):
        by_view = transforms.view_logits(joint_logits, range(transforms.count))
        heads[f"branch {number}"] = by_view.flatten(0, 1)
    return {
        "label": label,
        "transforms": str(transforms),
        "pictures": [_png(picture) for picture in _pixels(inputs.float().cpu(), data)],
        "heads": {name: _most_probable(logits) for name, logits in heads.items()},
    }


def _most_probable(logits: Tensor) -> list[list[tuple[int, float]]]:
    """Return for each row of logits (M, N) the most probable classes with their probabilities."""
    top = logits.float().softmax(1).topk(min(EXAMPLE_CLASSES, logits.shape[1]))
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [list(zip(classes, probabilities, strict=True)) for classes, probabilities in rows]


def _pixels(images: Tensor, data: Any) -> Tensor:
    """Undo the normalisation of images."""
    if isinstance(data, ImageDataModule):
        shift, scale = torch.tensor([data.mean, data.std])[:, :, None, None]
    else:  # the normalisation is unknown: from the darkest to the brightest value
        scale = 1 / (images.max() - images.min()).clamp(min=1e-9)
        shift = -images.min() * scale
    return ((images * scale + shift).clamp(0, 1) * 255).round().to(torch.uint8)


def _png(picture: Tensor) -> str:
    """Return a picture (C, H, W) as PNG in base64: the first three channels as red, green and blue, or one as grey."""
    shown = picture[:3] if len(picture) >= 3 else picture[:1]
    small = resize(shown, [min(LARGEST_PICTURE, shown.shape[-1])])
    file = BytesIO()
    to_pil_image(small).save(file, "PNG")
    return b64encode(file.getvalue()).decode()
