"""The yardstick: the loop that a script in plain PyTorch has, as the published one does it.

fp32 in PyTorch's own memory format, images opened and transformed one by one in the main process, rotations stacked, a
teacher that just runs without gradients, SGD by default, accuracies counted, and the loss read back at every step.
"""

from collections.abc import Iterator
from itertools import chain, repeat

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.cases import LR, Case
from hsakd_pl import create_network
from hsakd_pl.data import ImageDataModule
from hsakd_pl.networks import NetworkOutput

TEMPERATURE = 3.0  # T = 3: Sec. 4.1 of the paper
SOURCE_CLASSES = 100  # of the network that is probed

Networks = tuple[nn.Module, ...]
Learnt = tuple[Tensor, list[NetworkOutput]]  # the loss, and what each learner made of the images


def rotations(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each image four ways, one image after the other: (4B, C, S, S), and their joint labels (4B,)."""
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)], 1).view(-1, *images.shape[1:])
    return turned, torch.stack([4 * labels + k for k in range(4)], 1).view(-1)


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """Distil with temperature, averaged over the rows."""
    log_p, p = F.log_softmax(logits / TEMPERATURE, dim=1), F.softmax(target.detach() / TEMPERATURE, dim=1)
    return F.kl_div(log_p, p, reduction="batchmean") * TEMPERATURE**2


def student(networks: Networks, images: Tensor, labels: Tensor) -> Learnt:
    """Cross-entropy and distillation from the first network to the second."""
    inputs, _ = rotations(images, labels)
    with torch.no_grad():
        taught = networks[0](inputs)
    learnt = networks[1](inputs)
    loss = F.cross_entropy(learnt.logits[::4], labels) + kl(learnt.logits, taught.logits)
    for ours, theirs in zip(learnt.joint_logits, taught.joint_logits, strict=True):
        loss = loss + kl(ours, theirs)
    return loss, [learnt]


def teacher(networks: Networks, images: Tensor, labels: Tensor) -> Learnt:
    """Cross-entropy of the class head and, over all rotations, of each branch, for each network."""
    inputs, joint_labels = rotations(images, labels)
    learnt, loss = [network(inputs) for network in networks], torch.zeros((), device=images.device)
    for output in learnt:
        loss = loss + F.cross_entropy(output.logits[::4], labels)
        for branch in output.joint_logits:
            loss = loss + F.cross_entropy(branch, joint_labels)
    return loss, learnt


def mutual(networks: Networks, images: Tensor, labels: Tensor) -> Learnt:
    """Two networks that learn as teachers do, and from each other."""
    loss, (one, other) = teacher(networks, images, labels)
    loss = loss + kl(one.logits, other.logits) + kl(other.logits, one.logits)
    for a, b in zip(one.joint_logits, other.joint_logits, strict=True):
        loss = loss + kl(a, b) + kl(b, a)
    return loss, [one, other]


def probe(networks: Networks, images: Tensor, labels: Tensor) -> Learnt:
    """Cross-entropy of a classifier on the features of a frozen backbone."""
    with torch.no_grad():
        features = networks[0](images)
    logits = networks[1](features)
    return F.cross_entropy(logits, labels), [NetworkOutput(logits, [], [], None)]


LOSSES = {"student": student, "teacher": teacher, "mutual": mutual, "probe": probe}


def build(case: Case, num_classes: int) -> Networks:
    """Build what the loss of a case takes; networks that do not learn are in eval mode, without gradients."""
    if case.method == "probe":
        features = create_network(case.networks[-1], SOURCE_CLASSES, branches=False).eval().requires_grad_(False)
        head = features.get_submodule("head")
        assert isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear)
        classifier = nn.Linear(head[-1].in_features, num_classes)
        head[-1] = nn.Identity()
        return features, classifier
    names = case.networks * 2 if case.method == "mutual" else case.networks
    first, *others = (create_network(name, num_classes) for name in names)
    return (first.eval().requires_grad_(False) if case.method == "student" else first, *others)


class OneByOne(Dataset[tuple[Tensor, Tensor]]):
    """uint8 images (N, 3, S, S) as torchvision's data sets give them out: a PIL image, transformed."""

    def __init__(self, data: ImageDataModule) -> None:
        images, self.labels = data.splits["train"]
        assert isinstance(images, Tensor)
        self.pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        crop, flip = transforms.RandomCrop(data.image_size, padding=4), transforms.RandomHorizontalFlip()
        scaled = transforms.ToTensor(), transforms.Normalize(data.mean, data.std)
        self.transform = transforms.Compose([crop, flip, *scaled])

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
        self.optimizer = torch.optim.SGD(trained, LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
        loader = DataLoader(OneByOne(data), data.batch_size, shuffle=True, pin_memory=device.type == "cuda")
        self.batches: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(repeat(loader))
        self.loss_sum, self.hits = 0.0, torch.zeros((), device=device)

    def step(self) -> None:
        """Train on one batch, from the images to the updated weights, with cuDNN's search for algorithms."""
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        images, labels = (part.to(self.device) for part in next(self.batches))
        self.optimizer.zero_grad()
        loss, outputs = self.loss(self.networks, images, labels)
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item()
        joint_labels = torch.stack([4 * labels + k for k in range(4)], 1).view(-1)
        for output in outputs:
            self.hits = self.hits + correct(output.logits[:: len(output.logits) // len(labels)], labels)
            for branch in output.joint_logits:
                classes = branch.view(len(branch), -1, 4).sum(2)
                self.hits = self.hits + correct(branch, joint_labels) + correct(classes, labels.repeat_interleave(4))
        torch.backends.cudnn.benchmark = before


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count rows that have their label among the five highest logits, plus those that have it highest."""
    found = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return found[:, 0].float().sum() + found.float().sum()
