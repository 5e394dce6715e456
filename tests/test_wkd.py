"""Test WKD's costs: computed once from the training images, read from a file, and kept in checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from small import trainer
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import DigitsDataModule
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import WKDModule, wkd_cost_matrix, wkd_decay, wkd_feature_loss
from hsakd_pl.methods.wkd import sinkhorn

BATCH = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8)


def make(**options: Any) -> WKDModule:
    torch.manual_seed(0)
    defaults = {"num_classes": 10, "image_size": 16, "lr": 0.001, "logit_weight": 20.0}
    return WKDModule("resnet8", "resnet14", teacher_weights="random", **defaults | options)


def fit(module: WKDModule, folder: Path | None = None, resumed: Path | None = None, **options: Any) -> pl.Trainer:
    run = trainer(folder, limit_train_batches=2, limit_val_batches=0, **options)
    data = DigitsDataModule(batch_size=8, seed=0)
    run.fit(module, datamodule=data, ckpt_path=resumed and str(resumed))
    return run


def test_costs_are_those_of_the_teachers_last_map() -> None:
    """Compute them image by image, class by class, from images that are not augmented."""
    module = make(sharpness=2.0)
    fit(module)
    data = DigitsDataModule(batch_size=8)
    data.setup("fit")
    images, labels = data.splits["train"].images, data.splits["train"].targets
    smallest = int(labels.bincount().min())
    features = []
    for label in range(10):
        chosen = images[labels == label][:smallest]
        normalised, _ = data.on_after_batch_transfer((chosen, labels), 0)
        with torch.no_grad():
            feature_map = module.teacher.network.outputs(normalised).features[-1]
        features.append(feature_map.flatten(2).transpose(1, 2).flatten(0, 1))
    expected = wkd_cost_matrix(torch.stack(features), sharpness=2.0)
    assert module.cost is not None
    torch.testing.assert_close(module.cost, expected, rtol=1e-4, atol=1e-5)
    assert module.cost.diagonal().eq(0).all() and (module.cost + torch.eye(10) > 0).all()


@pytest.mark.filterwarnings("ignore:.*ckpt_path")
def test_resumed_fit_keeps_its_costs(tmp_path: Path) -> None:
    """Change the costs in the checkpoint: a resumed fit does not compute them again."""
    fit(make(), tmp_path / "first")
    checkpoint = torch.load(tmp_path / "first" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["cost"].shape == (10, 10)
    checkpoint["state_dict"]["cost"] = torch.full((10, 10), 0.25)
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    module = make()
    fit(module, resumed=tmp_path / "changed.ckpt", max_epochs=2)
    assert torch.equal(module.cost, torch.full((10, 10), 0.25))
    again = WKDModule.load_from_checkpoint(tmp_path / "changed.ckpt")
    assert torch.equal(again.cost, torch.full((10, 10), 0.25))


def test_costs_come_from_a_file(tmp_path: Path) -> None:
    costs = np.random.default_rng(0).uniform(0, 1, (10, 10))
    np.save(tmp_path / "costs.npy", costs)
    module = make(cost_file=str(tmp_path / "costs.npy"))
    fit(module)
    assert torch.equal(module.cost, torch.from_numpy(costs).float())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*costs.npy"),
        (b"no array", "cannot read .*costs.npy"),
        (np.zeros((9, 9)), r"has to contain finite floating point numbers \(10, 10\)"),
        (np.full((10, 10), np.nan), "has to contain finite"),
        (np.zeros((10, 10), dtype=np.int64), "has to contain finite"),
        (np.array([[None]]), "cannot read .*costs.npy"),
    ],
)
def test_broken_cost_file_raises_usage_error(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(UsageError, match=f"cost_file: .*{message}"):
        fit(make(cost_file=str(path)))


def test_step_without_costs_raises_usage_error() -> None:
    with pytest.raises(UsageError, match="WKDModule has no costs yet"):
        make().training_step(BATCH, 0)
    loader = DataLoader(TensorDataset(*BATCH), batch_size=4)
    with pytest.raises(UsageError, match="computes costs from the training images: call fit"):
        trainer(limit_val_batches=0).fit(make(), loader)


def test_weights_leave_a_part_out() -> None:
    features = make(logit_weight=0.0, feature_weight=0.5)
    assert features.losses(BATCH).keys() == {"loss_ce", "loss_kd", "loss_wkd_feature"}
    fit(features)
    assert features.cost is None
    logits = make()
    assert logits.projector is None
    with pytest.raises(UsageError, match="logit_weight must be above 0 if feature_weight is 0"):
        make(logit_weight=0.0)


def test_decay_scales_transport_and_features_alone() -> None:
    module = make(feature_weight=0.5, decay_start=1, decay_epochs=5)
    module._trainer = trainer()
    weights = []
    for epoch in range(5):
        module.trainer.fit_loop.epoch_progress.current.completed = epoch
        weights.append([module.loss_weight(f"loss_{term}") for term in ("ce", "wkd_target", "wkd_transport")])
        assert module.loss_weight("loss_wkd_feature") == pytest.approx(0.5 * wkd_decay(epoch + 1, 1, 5))
    assert [weight[:2] for weight in weights] == [[1.0, 1.0]] * 5
    transport = [weight[2] for weight in weights]
    assert transport == pytest.approx([20 * wkd_decay(epoch, 1, 5) for epoch in range(1, 6)])
    assert transport[0] == 20 and transport[-1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 4}, "grid must be at least 1, with two or more of the map's 4 x 4 positions in each cell, got 4"),
        ({"grid": 0}, "grid must be at least 1"),
        ({"transport_temperature": 0.0}, "transport_temperature must be above 0"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"decay_start": 300}, "decay_start must be from 0 to decay_epochs, 240"),
        ({"regularization": 0.0}, "regularization must be above 0"),
    ],
)
def test_invalid_options_raise_usage_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(feature_weight=0.1, **options)


@pytest.mark.parametrize(("side", "grid"), [(7, 4), (5, 2), (6, 3), (4, 3)])
def test_cells_are_those_of_an_adaptive_average_pooling(side: int, grid: int) -> None:
    student, teacher = torch.randn(2, 3, 5, side, side, dtype=torch.float64)
    pooled = [torch.nn.functional.adaptive_avg_pool2d(each, grid) for each in (student, teacher)]
    expected = (pooled[0] - pooled[1]).square().sum() / (3 * grid**2)
    means = wkd_feature_loss(student, teacher, 1.0, grid) - wkd_feature_loss(student, teacher, 0.0, grid)
    torch.testing.assert_close(means, expected)


def test_plan_moves_students_probabilities_to_the_teachers() -> None:
    """After many rounds the sums of rows and columns are both distributions, and cheap moves are preferred."""
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64).softmax(2)
    costs = (1 - torch.eye(6, dtype=torch.float64)).expand(3, 6, 6)
    plan = sinkhorn(student, teacher, costs, regularization=0.05, iterations=2000)
    torch.testing.assert_close(plan.sum(2), student, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plan.sum(1), teacher, rtol=1e-3, atol=1e-4)
    moved = (plan * costs).sum((1, 2))
    torch.testing.assert_close(moved, (student - teacher).abs().sum(1) / 2, rtol=1e-3, atol=1e-3)
