"""Test transformations, joint labels, class logits and the losses."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl import COLOURS, FLIPS, ROTATIONS, Transforms
from hsakd_pl.errors import UsageError
from hsakd_pl.ops import cross_entropy, joint_cross_entropy, joint_kd_loss, kd_loss, named_transforms

RANDOM = torch.Generator().manual_seed(0)
ALL = {"rotations": ROTATIONS, "flips": FLIPS, "colours": COLOURS, "both": ROTATIONS * FLIPS, "all": COLOURS * FLIPS}
every = pytest.mark.parametrize("transforms", ALL.values(), ids=ALL)


def test_rotations_are_counter_clockwise_in_blocks_per_rotation() -> None:
    corner = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert ROTATIONS(corner)[:, 0].tolist() == expected
    images = torch.rand(3, 3, 5, 5, generator=RANDOM)
    rows = ROTATIONS(images)
    assert rows.shape == (12, 3, 5, 5)
    assert torch.equal(rows[:3], images)
    for quarter_turns in range(ROTATIONS.count):
        assert torch.equal(rows[3 * quarter_turns : 3 * quarter_turns + 3], torch.rot90(images, quarter_turns, (2, 3)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_four_quarter_turns_are_the_identity(dtype: torch.dtype) -> None:
    images = torch.randint(256, (2, 3, 4, 4), generator=RANDOM).to(dtype)
    turned = images
    for _ in range(ROTATIONS.count):
        turned = ROTATIONS(turned)[2:4]
    assert turned.dtype == dtype
    assert torch.equal(turned, images)


def test_rotations_refuse_images_that_are_not_square() -> None:
    with pytest.raises(UsageError, match=r"square images, got 32 x 48"):
        ROTATIONS(torch.zeros(1, 3, 32, 48))


def test_rotations_pass_gradients_from_every_rotation() -> None:
    images = torch.rand(2, 3, 4, 4, generator=RANDOM, requires_grad=True)
    ROTATIONS(images).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, torch.full_like(images, ROTATIONS.count))


@every
def test_transforms_start_with_the_identity_and_differ(transforms: Transforms) -> None:
    images = torch.rand(2, 3, 4, 4, generator=RANDOM)
    rows = transforms(images)
    assert rows.shape == (transforms.count * 2, 3, 4, 4)
    parts = transforms.by_transform(rows)
    assert torch.equal(parts[0], images) and torch.equal(transforms.apply(images, 0), images)
    assert len({tuple(part.flatten().tolist()) for part in parts}) == transforms.count
    assert all(torch.equal(part.flatten().sort().values, images.flatten().sort().values) for part in parts)


def test_transforms_product_applies_second_then_first() -> None:
    images = torch.rand(2, 3, 4, 4, generator=RANDOM)
    product = ROTATIONS * FLIPS
    assert (product.count, product.name) == (8, "rotations*flips")
    turned_mirror = torch.rot90(images.flip(3), 3, (2, 3))
    assert torch.equal(product.by_transform(product(images))[3 * 2 + 1], turned_mirror)
    assert product == ROTATIONS * FLIPS != FLIPS * ROTATIONS


SHEARS = Transforms(3, lambda images, m: images.roll(m, 2))


def test_named_transforms_resolve_names_and_import_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(SHEARS=SHEARS, other=3))
    assert named_transforms("rotations") == ROTATIONS
    assert named_transforms("colours * flips") == COLOURS * FLIPS
    assert named_transforms("mine.SHEARS*flips") == SHEARS * FLIPS
    assert named_transforms("mine.SHEARS").name == "mine.SHEARS"
    for name in ("rotation", "mine.nothing", "nowhere.SHEARS", "mine.other", "", "flips*"):
        with pytest.raises(
            UsageError, match=r"transforms: .* is neither one of rotations, flips, colours nor the import path"
        ):
            named_transforms(name)
    with pytest.raises(UsageError, match="count must be at least 1, for the identity, got 0"):
        Transforms(0, SHEARS.apply)


@every
def test_joint_labels_follow_row_order(transforms: Transforms) -> None:
    labels, m = torch.tensor([0, 7, 99]), transforms.count
    joint = transforms.joint_labels(labels)
    assert joint.dtype == torch.int64
    assert joint.tolist() == [m * label + index for index in range(m) for label in labels.tolist()]
    assert torch.equal(joint // m, transforms.class_labels(labels))


@every
def test_class_logits_map_joint_labels_to_classes(transforms: Transforms) -> None:
    labels = torch.arange(6)
    joint = F.one_hot(transforms.joint_labels(labels), transforms.count * len(labels)).float()
    assert torch.equal(transforms.class_logits(joint), F.one_hot(transforms.class_labels(labels), len(labels)).float())


@every
def test_class_logits_sum_over_transformations(transforms: Transforms) -> None:
    logits = torch.rand(5, 8, generator=RANDOM, dtype=torch.float64)
    spread = logits.repeat_interleave(transforms.count, dim=1)
    torch.testing.assert_close(transforms.class_logits(spread), transforms.count * logits)


def gradients_at(dtype: torch.dtype) -> tuple[list[Tensor], list[float]]:
    """Return the gradients of each loss by its logits (bfloat16 values in any dtype), and the loss values."""
    drawn = torch.randn(2, 2, 32, 40, generator=torch.Generator().manual_seed(0)).mul(4).bfloat16()
    labels = torch.randint(40, (32,), generator=torch.Generator().manual_seed(1))
    found, values = [], []
    for loss in (
        lambda learnt: kd_loss(learnt[0], drawn[1, 0].to(dtype), 3.0),
        lambda learnt: joint_kd_loss([*learnt], [*drawn[1].to(dtype)], 3.0),
        lambda learnt: cross_entropy(learnt[0], labels),
        lambda learnt: joint_cross_entropy([*learnt], labels),
    ):
        learnt = drawn[0].to(dtype).requires_grad_()
        value = loss(learnt)
        value.backward()
        values.append(value.item())
        found.append(learnt.grad.double())
    return found, values


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("half", "bound"), [(torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
def test_losses_of_half_precision_logits_are_computed_in_float32(
    half: torch.dtype, bound: float, autocast: bool
) -> None:
    exact, values = gradients_at(torch.float64)
    with torch.autocast("cpu", half, enabled=autocast):
        found, rounded = gradients_at(half)
    assert rounded == pytest.approx(values, rel=1e-5)
    assert all((one - other).norm() < bound * other.norm() for one, other in zip(found, exact, strict=True))
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)).mul(5).bfloat16()
    assert kd_loss(logits, logits, 3.0).abs() < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 3.0, 4.0])
def test_kd_loss_is_scaled_divergence_averaged_over_rows(temperature: float) -> None:
    student, teacher = torch.randn(2, 7, 10, generator=RANDOM, dtype=torch.float64)
    taught = (teacher / temperature).softmax(1)
    divergence = (taught * (taught.log() - (student / temperature).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(kd_loss(student, teacher, temperature), temperature**2 * divergence)
    assert kd_loss(student, student, temperature).abs() < 1e-12
    assert kd_loss(student, teacher, temperature) > 0


def test_losses_of_stacked_branches_sum_over_branches() -> None:
    student, teacher = torch.randn(2, 3, 8, 20, generator=RANDOM, dtype=torch.float64)
    each = sum(kd_loss(*pair, 3.0) for pair in zip(student, teacher, strict=True))
    torch.testing.assert_close(kd_loss(student, teacher, 3.0), each)
    torch.testing.assert_close(joint_kd_loss([*student], [*teacher], 3.0), each)
    labels = torch.tensor([3, 1])
    joint_labels = ROTATIONS.joint_labels(labels)
    branches = sum(F.cross_entropy(branch, joint_labels) for branch in student)
    torch.testing.assert_close(joint_cross_entropy([*student], joint_labels), branches)


def test_kd_loss_gradient_is_stable_at_high_temperature() -> None:
    gradients = []
    for temperature in (1e3, 1e4):
        student = torch.randn(4, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        kd_loss(student, torch.zeros(4, 10, dtype=torch.float64), temperature).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-6)


def test_kd_loss_detaches_the_teacher() -> None:
    student, teacher = (torch.randn(4, 10, generator=RANDOM, requires_grad=True) for _ in range(2))
    kd_loss(student, teacher, 3.0).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
