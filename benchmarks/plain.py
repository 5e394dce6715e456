"""The reference: a loop in plain PyTorch, as in the published script.

PyTorch's own memory format, images opened and transformed one by one in the main process, rotations stacked, a teacher
without gradients, default SGD, accuracies counted, and the loss read back at every step. In fp32, or with
``torch.autocast`` in bf16; ``torch.compile`` compiles the loss with its networks.
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
from hsakd_pl.networks import NetworkOutput, create_network

TEMPERATURE = 3.0  # T = 3: Sec. 4.1 of the paper
NUM_CLASSES = 100
IMAGE_SIZE = 32
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # of CIFAR-100, as in the published script

Networks = tuple[nn.Module, ...]
LossAndOutputs = tuple[Tensor, list[NetworkOutput]]  # the outputs of the networks that train


def rotations(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate each image four ways, one image after another; returns (4B, C, S, S) and joint labels (4B,)."""
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)], 1).view(-1, *images.shape[1:])
    return turned, torch.stack([4 * labels + k for k in range(4)], 1).view(-1)


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """Return the distillation loss with temperature, averaged over the rows."""
    log_p = F.log_softmax(logits / TEMPERATURE, dim=1)
    p = F.softmax(target.detach() / TEMPERATURE, dim=1)
    return F.kl_div(log_p, p, reduction="batchmean") * TEMPERATURE**2


def student(networks: Networks, images: Tensor, labels: Tensor) -> LossAndOutputs:
    """Return cross-entropy plus distillation from the first network to the second."""
    inputs, _ = rotations(images, labels)
    with torch.no_grad():
        teacher_output = networks[0](inputs)
    output = networks[1](inputs)
    loss = F.cross_entropy(output.logits[::4], labels) + kl(output.logits, teacher_output.logits)
    for logits, teacher_logits in zip(output.joint_logits, teacher_output.joint_logits, strict=True):
        loss = loss + kl(logits, teacher_logits)
    return loss, [output]


def teacher(networks: Networks, images: Tensor, labels: Tensor) -> LossAndOutputs:
    """Return the cross-entropy of the class head plus that of each branch over all rotations, summed over networks."""
    inputs, joint_labels = rotations(images, labels)
    outputs = [network(inputs) for network in networks]
    loss = torch.zeros((), device=images.device)
    for output in outputs:
        loss = loss + F.cross_entropy(output.logits[::4], labels)
        for branch in output.joint_logits:
            loss = loss + F.cross_entropy(branch, joint_labels)
    return loss, outputs


def mutual(networks: Networks, images: Tensor, labels: Tensor) -> LossAndOutputs:
    """Return the loss of two networks that train like teachers, and from each other."""
    loss, (one, other) = teacher(networks, images, labels)
    loss = loss + kl(one.logits, other.logits) + kl(other.logits, one.logits)
    for a, b in zip(one.joint_logits, other.joint_logits, strict=True):
        loss = loss + kl(a, b) + kl(b, a)
    return loss, [one, other]


def probe(networks: Networks, images: Tensor, labels: Tensor) -> LossAndOutputs:
    """Return the cross-entropy of a classifier on the features of a frozen backbone."""
    with torch.no_grad():
        features = networks[0](images)
    logits = networks[1](features)
    return F.cross_entropy(logits, labels), [NetworkOutput(logits, [], [], None)]


LOSSES = {"student": student, "teacher": teacher, "mutual": mutual, "probe": probe}


def build(case: Case, num_classes: int) -> Networks:
    """Build the networks of a case; frozen ones are in eval mode, without gradients."""
    if case.method == "probe":
        features = create_network(case.networks[-1], NUM_CLASSES, branches=False).eval().requires_grad_(False)
        head = features.get_submodule("head")
        assert isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear)
        classifier = nn.Linear(head[-1].in_features, num_classes)
        head[-1] = nn.Identity()
        return features, classifier
    names = case.networks * 2 if case.method == "mutual" else case.networks
    first, *others = (create_network(name, num_classes) for name in names)
    return (first.eval().requires_grad_(False) if case.method == "student" else first, *others)


class OneByOne(Dataset[tuple[Tensor, Tensor]]):
    """Images of noise, opened and transformed one by one as torchvision's CIFAR-100 does."""

    def __init__(self, images: int) -> None:
        self.pixels = torch.randint(256, (images, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8).numpy()
        self.labels = torch.randint(NUM_CLASSES, (images,))
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(IMAGE_SIZE, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class PlainLoop:
    """Networks, optimizer and loader of a case; :meth:`step` trains on the next batch."""

    def __init__(
        self,
        case: Case,
        device: str,
        precision: str = "fp32",
        compiled: bool = False,
        batch_size: int = 64,
        images: int = 50_000,
    ) -> None:
        self.device = torch.device(device)
        self.half = precision == "bf16"
        self.loss = torch.compile(LOSSES[case.method]) if compiled else LOSSES[case.method]
        self.networks = tuple(network.to(self.device) for network in build(case, NUM_CLASSES))
        parameters = chain.from_iterable(network.parameters() for network in self.networks)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
        loader = DataLoader(OneByOne(images), batch_size, shuffle=True, pin_memory=self.device.type == "cuda")
        self.batches: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(repeat(loader))
        self.loss_sum = 0.0
        self.hits = torch.zeros((), device=self.device)

    def step(self) -> None:
        """Train on one batch, from the images to the updated weights, with cuDNN's search for algorithms."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        images, labels = (part.to(self.device) for part in next(self.batches))
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
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
    """Return the number of rows with their label among the five highest logits, plus those where it is the highest."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return hits[:, 0].float().sum() + hits.float().sum()
