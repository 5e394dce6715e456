"""Properties of rotations, joint labels, class logits and the distillation loss."""

import pytest
import torch
import torch.nn.functional as F

from hsakd_pl.errors import UsageError
from hsakd_pl.ops import NUM_ROTATIONS, class_logits, joint_cross_entropy, joint_labels, kd_loss, rotate

RANDOM = torch.Generator().manual_seed(0)


def test_rotate_turns_counter_clockwise_rotation_by_rotation() -> None:
    corner = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert rotate(corner)[:, 0].tolist() == expected
    images = torch.rand(3, 3, 5, 5, generator=RANDOM)
    rows = rotate(images)
    assert rows.shape == (12, 3, 5, 5)
    assert torch.equal(rows[:3], images)
    for quarter_turns in range(NUM_ROTATIONS):
        assert torch.equal(rows[3 * quarter_turns : 3 * quarter_turns + 3], torch.rot90(images, quarter_turns, (2, 3)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_four_quarter_turns_lead_back(dtype: torch.dtype) -> None:
    images = torch.randint(256, (2, 3, 4, 4), generator=RANDOM).to(dtype)
    turned = images
    for _ in range(NUM_ROTATIONS):
        turned = rotate(turned)[2:4]
    assert turned.dtype == dtype
    assert torch.equal(turned, images)


def test_rotate_refuses_images_that_are_not_square() -> None:
    with pytest.raises(UsageError, match=r"square images, got 32 x 48"):
        rotate(torch.zeros(1, 3, 32, 48))


def test_rotate_passes_gradients_to_every_rotation() -> None:
    images = torch.rand(2, 3, 4, 4, generator=RANDOM, requires_grad=True)
    rotate(images).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, torch.full_like(images, NUM_ROTATIONS))


def test_joint_labels_follow_the_rows_of_rotate() -> None:
    labels = torch.tensor([0, 7, 99])
    joint = joint_labels(labels)
    assert joint.dtype == torch.int64
    assert joint.tolist() == [0, 28, 396, 1, 29, 397, 2, 30, 398, 3, 31, 399]
    assert torch.equal(joint // NUM_ROTATIONS, labels.repeat(NUM_ROTATIONS))
    assert torch.equal(joint % NUM_ROTATIONS, torch.arange(NUM_ROTATIONS).repeat_interleave(len(labels)))


def test_class_logits_give_the_class_of_every_joint_label() -> None:
    labels = torch.arange(6)
    joint = F.one_hot(joint_labels(labels), NUM_ROTATIONS * len(labels)).float()
    assert torch.equal(class_logits(joint), F.one_hot(labels, len(labels)).float().repeat(NUM_ROTATIONS, 1))


def test_class_logits_sum_the_rotations_of_a_class() -> None:
    logits = torch.rand(5, 8, generator=RANDOM, dtype=torch.float64)
    spread = logits.repeat_interleave(NUM_ROTATIONS, dim=1)
    torch.testing.assert_close(class_logits(spread), NUM_ROTATIONS * logits)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 4.0])
def test_kd_loss_is_the_scaled_divergence_averaged_over_rows(temperature: float) -> None:
    student, teacher = torch.randn(2, 7, 10, generator=RANDOM, dtype=torch.float64)
    taught = (teacher / temperature).softmax(1)
    divergence = (taught * (taught.log() - (student / temperature).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(kd_loss(student, teacher, temperature), temperature**2 * divergence)
    assert kd_loss(student, student, temperature).abs() < 1e-12
    assert kd_loss(student, teacher, temperature) > 0


def test_losses_of_all_branches_at_once_are_the_sums_over_the_branches() -> None:
    student, teacher = torch.randn(2, 3, 8, 20, generator=RANDOM, dtype=torch.float64)
    each = sum(kd_loss(*pair, 3.0) for pair in zip(student, teacher, strict=True))
    torch.testing.assert_close(kd_loss(student, teacher, 3.0), each)
    labels = torch.tensor([3, 1])
    branches = sum(F.cross_entropy(branch, joint_labels(labels)) for branch in student)
    torch.testing.assert_close(joint_cross_entropy([*student], labels), branches)


def test_kd_loss_gradient_hardly_depends_on_a_high_temperature() -> None:
    gradients = []
    for temperature in (1e3, 1e4):
        student = torch.randn(4, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        kd_loss(student, torch.zeros(4, 10, dtype=torch.float64), temperature).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-6)


def test_kd_loss_never_reaches_the_teacher() -> None:
    student, teacher = (torch.randn(4, 10, generator=RANDOM, requires_grad=True) for _ in range(2))
    kd_loss(student, teacher, 3.0).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
