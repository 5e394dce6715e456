"""Rotated batches and joint labels against the recorded ones, whose rows run image by image."""

from pathlib import Path

import numpy as np
import torch

from hsakd_pl.ops import ROTATIONS


def image_by_image(rows: torch.Tensor) -> torch.Tensor:
    """Rows ordered rotation by rotation (4B, ...) -> the recorded order, image by image."""
    return rows.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)


def test_rotated_batch_and_joint_labels_match_published_code(golden: Path) -> None:
    recording = np.load(golden / "rotation.npz")
    batch, targets = torch.from_numpy(recording["batch"]), torch.from_numpy(recording["targets"])
    assert len(batch) > 0
    rotated, labels = ROTATIONS(batch), ROTATIONS.joint_labels(targets)
    assert torch.equal(rotated[: len(batch)], batch)
    assert torch.equal(image_by_image(rotated), torch.from_numpy(recording["rotated"]))
    assert torch.equal(image_by_image(labels), torch.from_numpy(recording["joint_labels"]))
    assert labels.dtype == torch.int64
    assert torch.equal(image_by_image(targets.repeat(4)), torch.from_numpy(recording["repeated_targets"]))
    assert torch.equal(labels // 4, targets.repeat(4))
