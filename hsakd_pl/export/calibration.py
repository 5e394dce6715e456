"""The calibration of a trained student: a temperature for its probabilities, and thresholds of its early exits.

Both are chosen on validation images, which neither trained the network nor test it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError, counted
from hsakd_pl.export.checkpoint import Trained
from hsakd_pl.files import read_text, replacing
from hsakd_pl.files.hub import BRANCHES_FILE
from hsakd_pl.files.schema import Fields, Items, Number, Schema, Text, parse_json
from hsakd_pl.files.weights import StateDict, read_weights, unwrap
from hsakd_pl.networks import Network, create_network
from hsakd_pl.networks.bounded import limited_by
from hsakd_pl.networks.exits import Exit, branch_exits, early_exit, ensemble_exits, first_sure
from hsakd_pl.networks.hsakd import HSAKDNet
from hsakd_pl.networks.keys import split_peers
from hsakd_pl.networks.weights import load_weights

CALIBRATION_FILE = "calibration.json"  # next to a checkpoint
EXITS: dict[str, Callable[[HSAKDNet], Sequence[Exit]]] = {"early_exit": branch_exits, "cascade": ensemble_exits}
THRESHOLDS = [number / 100 for number in range(101)]  # that are compared; at 0 all images leave at the first exit
LOWEST, HIGHEST = 0.05, 20.0  # temperatures that are searched

FRACTION = Number(0, 1)
COST = Number(0, 1e18)
TEMPERATURE = Number(1e-6, 1e6)
EXIT_FIELDS: dict[str, Schema] = {
    "kind": Text(),
    "threshold": FRACTION,
    "temperatures": Items(TEMPERATURE, fewest=2),
    "acc": FRACTION,
    "multiply_adds": COST,
    "target": Text(),
}
CALIBRATION_FIELDS = Fields(
    {
        "weights_digest": Text(),
        "images": Number(1, 1e12, whole=True),
        "split": Text(),
        "temperature": TEMPERATURE,
        "nll": Items(Number(0, 1e9)),
        "exits": Fields(EXIT_FIELDS, required=tuple(EXIT_FIELDS), optional=True),
    },
    required=("weights_digest", "images", "split", "temperature"),
)


class Operation(NamedTuple):
    """Early exits with a threshold of the confidence.

    Args:
        kind: ``early_exit``, through the branches to the class head, or ``cascade``, from the class head to larger
            ensembles.
        threshold: least probability of the most probable class at which an image leaves.
        temperatures: temperature of each exit.
        acc: accuracy on the validation images, in [0, 1].
        multiply_adds: mean multiply-adds per image.
        target: target that was asked for.
    """

    kind: str
    threshold: float
    temperatures: list[float]
    acc: float
    multiply_adds: float
    target: str = ""

    def __str__(self) -> str:
        return (
            f"{self.kind.replace('_', ' ')} at {self.threshold:.2f}: {100 * self.acc:.2f} %, "
            f"{self.multiply_adds / 1e6:,.1f} M multiply-adds"
        )


class Calibration(NamedTuple):
    """A calibration, and what it belongs to.

    Args:
        weights_digest: digest of the weights of the checkpoint, those of branches included.
        images: number of validation images.
        split: these images in words.
        temperature: divisor of the logits of the class head.
        nll: negative log-likelihood of the class head before and after it.
        exits: how images leave early, if a target was given.
    """

    weights_digest: str
    images: int
    split: str
    temperature: float
    nll: list[float]
    exits: Operation | None = None

    def saved(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return self._asdict() | {"exits": None if self.exits is None else self.exits._asdict()}

    def __str__(self) -> str:
        phrase = f"temperature {self.temperature:.3f}, from {counted(self.images, 'image')}: {self.split}"
        return phrase if self.exits is None else f"{self.exits}; {phrase}"


def read_calibration(content: Any, origin: str) -> Calibration:
    """Read the result of :meth:`Calibration.saved`; raises UsageError naming ``origin`` if it is anything else."""
    try:
        CALIBRATION_FIELDS.check(content)
        exits = content.get("exits")
        if exits is not None and exits["kind"] not in EXITS:
            raise ValueError(f"exits.kind is {exits['kind']!a:.40}")
    except ValueError as error:
        raise UsageError(f"{origin} is not a calibration ({error!s:.200}): calibrate again") from error
    fields = {name: content[name] for name in Calibration._fields if name in content}
    fields.setdefault("nll", [])
    if exits is not None:
        exits = Operation(**{name: exits[name] for name in Operation._fields})
    return Calibration(**fields | {"exits": exits})


def calibration_next_to(trained: Trained) -> Calibration | None:
    """Return the calibration in the folder of a checkpoint, if it is of these weights."""
    path = trained.path.with_name(CALIBRATION_FILE)
    if not path.is_file():
        return None
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path} is not a calibration ({error!s:.200}): remove it, or calibrate again") from error
    calibration = read_calibration(content, str(path))
    return calibration if calibration.weights_digest == trained.digest else None


def write_calibration(calibration: Calibration, trained: Trained) -> Path:
    """Write ``calibration.json`` next to a checkpoint, and return its path."""
    path = trained.path.with_name(CALIBRATION_FILE)
    with replacing(path) as file:
        json.dump(calibration.saved(), file, indent=1, ensure_ascii=False)
    return path


def network_with_branches(trained: Trained) -> HSAKDNet | None:
    """Return the network of a checkpoint with its trained branches, in eval mode; None if it has none."""
    student = trained.student
    parts = split_peers(unwrap(read_weights(trained.path), str(trained.path)))
    part = parts[(trained.peer or 1) - 1]
    if student.network.name is None or not any(key.startswith(("branches.", "auxiliary")) for key in part):
        return None
    return _with_branches(student.network, part)


def _with_branches(student: Network, weights: StateDict | Path) -> HSAKDNet:
    """Return the frozen network with branches whose network without them is ``student``, with these weights."""
    network = create_network(
        str(student.name), student.num_classes, transforms=student.transforms, channels=student.in_channels
    )
    load_weights(network, weights)
    assert isinstance(network, HSAKDNet), "networks by name have the package's branches"
    network.requires_grad_(False)
    return network.eval()


def save_branches(calibration: Calibration, trained: Trained, folder: Path) -> None:
    """Write ``branches.safetensors``, the network with its branches, if early exits are part of a calibration."""
    network = None if calibration.exits is None else network_with_branches(trained)
    if network is None:
        return
    weights = {key: tensor.detach().contiguous().clone() for key, tensor in network.state_dict().items()}
    with replacing(folder / BRANCHES_FILE, "wb") as file:
        file.write(safetensors.torch.save(weights, {"format": "pt"}))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that minimises the cross-entropy of ``logits / T``, logits (n, N) and labels (n,).

    Guo et al., "On calibration of modern neural networks", ICML 2017.

    Examples:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 1, 1])), 2)  # three of four are right: log(3) / 4
        3.64
    """
    from scipy.optimize import minimize_scalar

    wide = logits.double()

    def loss(log_temperature: float) -> float:
        temperature = torch.tensor(log_temperature, dtype=torch.float64).exp()
        return float(F.cross_entropy(wide / temperature, labels))

    bounds = torch.tensor([LOWEST, HIGHEST]).log().tolist()
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return round(float(torch.tensor(found.x).exp()), 4)


def operations(kind: str, logits: Tensor, labels: Tensor, costs: Sequence[float]) -> list[Operation]:
    """Return what each threshold leads to.

    Args:
        kind: ``early_exit`` or ``cascade``.
        logits: logits (K, n, N) of each exit for the validation images.
        labels: their labels (n,).
        costs: multiply-adds of an image until each exit.
    """
    temperatures = [fit_temperature(of_exit, labels) for of_exit in logits]
    scaled = logits / torch.tensor(temperatures)[:, None, None]
    taken = first_sure(scaled, THRESHOLDS)  # (thresholds, n)
    right = (logits.argmax(2) == labels).float()  # (K, n)
    accuracies = right.gather(0, taken).mean(1).tolist()
    means = torch.tensor(costs, dtype=torch.float64)[taken].mean(1).tolist()
    return [
        Operation(kind, threshold, temperatures, round(accuracy, 6), round(mean))
        for threshold, accuracy, mean in zip(THRESHOLDS, accuracies, means, strict=True)
    ]


def choose(candidates: Sequence[Operation], target_accuracy: float | None, target_macs: float | None) -> Operation:
    """Return the cheapest operation with an accuracy, or the most accurate one within a mean of multiply-adds.

    Raises UsageError, naming what is possible, if there is none.
    """
    if target_accuracy is not None:
        reaching = [operation for operation in candidates if operation.acc >= target_accuracy]
        if not reaching:
            best = max(candidates, key=lambda operation: operation.acc)
            raise UsageError(
                f"target-accuracy: {target_accuracy:g} is not reached, the most on these images is {best.acc:.4f} "
                f"({best}): lower it"
            )
        cheapest = min(reaching, key=lambda operation: (operation.multiply_adds, -operation.acc))
        return cheapest._replace(target=f"accuracy {target_accuracy:g}")
    assert target_macs is not None, "one of the targets is given"
    affordable = [operation for operation in candidates if operation.multiply_adds <= target_macs]
    if not affordable:
        least = min(candidates, key=lambda operation: operation.multiply_adds)
        raise UsageError(
            f"target-macs: no exit needs at most {target_macs:,.0f} multiply-adds, the least is "
            f"{least.multiply_adds:,.0f}: raise it"
        )
    best = max(affordable, key=lambda operation: (operation.acc, -operation.multiply_adds))
    return best._replace(target=f"at most {target_macs:,.0f} multiply-adds")


def check_exits(network: HSAKDNet, exits: Operation) -> None:
    """Raise UsageError if early exits are those of another network."""
    count = len(EXITS[exits.kind](network))
    if len(exits.temperatures) != count:
        raise UsageError(
            f"the calibration has {len(exits.temperatures)} temperatures, but the network has {count} exits: calibrate "
            "again"
        )


def calibrated_logits(network: HSAKDNet, exits: Operation, images: Tensor) -> Tensor:
    """Return the scaled logits (B, N) of the exit at which each of normalised images (B, 3, S, S) leaves."""
    logits, _ = early_exit(network, images, exits.threshold, EXITS[exits.kind], exits.temperatures)
    return logits


def exits_of_export(folder: Path, student: Network) -> HSAKDNet | None:
    """Return the network with branches of an export that was calibrated for early exits, None without them.

    Args:
        folder: folder of the export.
        student: its network without branches, which was created by a registered name or one that the user chose.
    """
    file = folder / BRANCHES_FILE
    if student.name is None or not file.is_file():
        return None
    with limited_by(file):
        return _with_branches(student, file)
