"""Test rotated batches and joint labels against the recorded ones, whose rows run image by image."""

import torch

from hsakd_pl.ops import ROTATIONS

from . import inputs
from .recordings import deviation, read, recorded_arrays

RECORDING = read("rotation.json")


def image_by_image(rows: torch.Tensor) -> torch.Tensor:
    """Reorder rows (4B, ...) from rotation by rotation to the recorded order, image by image."""
    return rows.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)


def test_rotated_batch_and_joint_labels_match_published_code() -> None:
    batch = torch.from_numpy(inputs.normal(0, *RECORDING["batch"]))
    targets = torch.from_numpy(inputs.labels(1, 100, len(batch)))
    rotated, labels = ROTATIONS(batch), ROTATIONS.joint_labels(targets)
    assert torch.equal(rotated[: len(batch)], batch)
    recorded = recorded_arrays({"rotated": RECORDING["rotated"]}, "rotation.npz")["rotated"]
    assert deviation(image_by_image(rotated), recorded) < 1e-15
    assert labels.dtype == torch.int64
    assert image_by_image(labels).tolist() == RECORDING["joint_labels"]
    assert image_by_image(targets.repeat(4)).tolist() == RECORDING["repeated_targets"]
    assert torch.equal(labels // 4, targets.repeat(4))
