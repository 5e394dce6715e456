"""The yardstick: the loop that a script in plain PyTorch has, as the published one does it.

fp32 in PyTorch's own memory format, images opened and transformed one by one in the main process, rotations stacked, a
teacher that just runs without gradients, SGD by default, accuracies counted, and the loss read back at every step.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.cases import Case
from hsakd_pl import create_network
from hsakd_pl.data import ImageDataModule
from hsakd_pl.modules.heap import keep_freed_memory
from hsakd_pl.networks import NetworkOutput

TEMPERATURE = 3.0  # T = 3: Sec. 4.1 of the paper
SOURCE_CLASSES = 100  # of the network that is probed

Networks = tuple[nn.Module, ...]


class Learnt(NamedTuple):
    """The loss of a batch of B and, for counting, each learner's logits (B, N) and joint logits, L tensors (4B, 4N)."""

    loss: Tensor
    outputs: list[NetworkOutput]


def rotations(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The four rotations of each image, one image after the other: (4B, C, S, S), and their joint labels (4B,)."""
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)], 1).view(-1, *images.shape[1:])
    return turned, torch.stack([4 * labels + k for k in range(4)], 1).view(-1)


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """Distillation with temperature, averaged over the rows."""
    log_p, p = F.log_softmax(logits / TEMPERATURE, dim=1), F.softmax(target.detach() / TEMPERATURE, dim=1)
    return F.kl_div(log_p, p, reduction="batchmean") * TEMPERATURE**2


def student(networks: Networks, images: Tensor, labels: Tensor) -> Learnt:
    """Cross-entropy and distillation from the first network to the second."""
    teacher, network = networks
    inputs, _ = rotations(images, labels)
    with torch.no_grad():
        teacher_logits, teacher_joint = teacher(inputs)
    logits, joint = network(inputs)
    loss = F.cross_entropy(logits[::4], labels) + kl(logits, teacher_logits)
    for ours, theirs in zip(joint, teacher_joint, strict=True):
        loss = loss + kl(ours, theirs)
    return Learnt(loss, [NetworkOutput(logits[::4], joint)])


def teacher(networks: Networks, images: Tensor, labels: Tensor) -> Learnt:
    """Cross-entropy of the class head and, over all rotations, of each branch."""
    inputs, joint_labels = rotations(images, labels)
    logits, joint = networks[0](inputs)
    loss = F.cross_entropy(logits[::4], labels)
    for branch in joint:
        loss = loss + F.cross_entropy(branch, joint_labels)
    return Learnt(loss, [NetworkOutput(logits[::4], joint)])


def mutual(networks: Networks, images: Tensor, labels: Tensor) -> Learnt:
    """Two networks that learn as teachers do, and from each other."""
    inputs, joint_labels = rotations(images, labels)
    (logits_a, joint_a), (logits_b, joint_b) = (network(inputs) for network in networks)
    loss = F.cross_entropy(logits_a[::4], labels) + F.cross_entropy(logits_b[::4], labels)
    loss = loss + kl(logits_a, logits_b) + kl(logits_b, logits_a)
    for a, b in zip(joint_a, joint_b, strict=True):
        loss = loss + F.cross_entropy(a, joint_labels) + F.cross_entropy(b, joint_labels) + kl(a, b) + kl(b, a)
    return Learnt(loss, [NetworkOutput(logits_a[::4], joint_a), NetworkOutput(logits_b[::4], joint_b)])


def probe(networks: Networks, images: Tensor, labels: Tensor) -> Learnt:
    """Cross-entropy of a classifier on the features of a frozen backbone."""
    features, classifier = networks
    with torch.no_grad():
        inputs = features(images)
    logits = classifier(inputs)
    return Learnt(F.cross_entropy(logits, labels), [NetworkOutput(logits, ())])


LOSSES: dict[str, Callable[[Networks, Tensor, Tensor], Learnt]] = {
    "student": student,
    "teacher": teacher,
    "mutual": mutual,
    "probe": probe,
}


def build(case: Case, num_classes: int) -> Networks:
    """The networks that the loss of a case takes; those that do not learn are in eval mode, without gradients."""
    if case.method == "probe":
        features = create_network(case.trained, SOURCE_CLASSES, branches=False).eval().requires_grad_(False)
        head = features.get_submodule("head")
        assert isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear)
        classifier = nn.Linear(head[-1].in_features, num_classes)
        head[-1] = nn.Identity()
        return features, classifier
    if case.method == "student":
        teacher, student = (create_network(name, num_classes) for name in case.networks)
        return teacher.eval().requires_grad_(False), student
    return tuple(create_network(case.trained, num_classes) for _ in range(2 if case.method == "mutual" else 1))


class OneByOne(Dataset[tuple[Tensor, Tensor]]):
    """uint8 images (N, 3, S, S) as torchvision's data sets give them out: a PIL image, transformed."""

    def __init__(self, images: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.pixels, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels
        crop = transforms.RandomCrop(images.shape[-1], padding=4)
        flip, normalise = transforms.RandomHorizontalFlip(), transforms.Normalize(mean, std)
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class PlainLoop:
    """Networks, optimizer and loader of a case; :meth:`step` trains on the next batch."""

    def __init__(self, case: Case, data: ImageDataModule, device: torch.device) -> None:
        self.device, self.loss = device, LOSSES[case.method]
        self.networks = tuple(network.to(device) for network in build(case, data.num_classes))
        trained = [each for network in self.networks for each in network.parameters() if each.requires_grad]
        lr, weight_decay = case.recipe["lr"], case.recipe["weight_decay"]
        self.optimizer = torch.optim.SGD(trained, lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
        images, labels = data.splits["train"]
        assert isinstance(images, Tensor)
        dataset = OneByOne(images, labels, data.mean, data.std)
        pinned = device.type == "cuda"
        self.loader = DataLoader(dataset, data.batch_size, shuffle=True, num_workers=0, pin_memory=pinned)
        self.batches = self._endless()
        self.loss_sum, self.seen, self.hits = 0.0, 0, torch.zeros((), device=device)

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> None:
        """One batch, from the images to the updated weights.

        As in a script: with cuDNN's search for algorithms, and without what a fit asks of the C library's heap.
        """
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        keep_freed_memory(self.device, False)
        try:
            self._step()
        finally:
            torch.backends.cudnn.benchmark = before
            keep_freed_memory(self.device, True)

    def _step(self) -> None:
        images, labels = (part.to(self.device) for part in next(self.batches))
        self.optimizer.zero_grad()
        loss, outputs = self.loss(self.networks, images, labels)
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item()
        self.seen += len(labels)
        self.count(outputs, labels)

    def count(self, outputs: list[NetworkOutput], labels: Tensor) -> None:
        """Top-1 and top-5 of the class head, of each branch and of the classes in its joint logits."""
        turned = labels.repeat_interleave(4)
        joint_labels = torch.stack([4 * labels + k for k in range(4)], 1).view(-1)
        for logits, joint in outputs:
            self.hits = self.hits + correct(logits, labels)
            for branch in joint:
                classes = branch.view(len(branch), -1, 4).sum(2)
                self.hits = self.hits + correct(branch, joint_labels) + correct(classes, turned)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many rows have their label among the five highest logits, plus how many have it highest."""
    found = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return found[:, 0].float().sum() + found.float().sum()
