"""Accumulated batches: the weight of a shorter last window, and losses that compare the images of a batch."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from methods import METHODS, OF_A_BATCH, make_method
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from small import BATCH, run, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hsakd_pl import BaselineModule


class Gradients(pl.Callback):
    """Record the gradient of the class head's bias in every step; the running statistics do not change it."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        module.network.eval()  # each batch then has the same gradient

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        [*_, last] = module.network.parameters()
        self.steps.append(last.grad.clone())


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """Yield the same image ``count`` times; the dataset has no length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return ((BATCH[0][0], BATCH[1][0]) for _ in range(self.count))


def gradients(batches: int, accumulated: int, endless: bool = False, **options: Any) -> list[Tensor]:
    """Return the gradient of each step of an epoch of equal batches of one image, at a learning rate of 0."""
    torch.manual_seed(0)
    module = BaselineModule("resnet8", num_classes=4, lr=0.0, weight_decay=0.0)
    images = Endless(batches) if endless else TensorDataset(*(part[:1].repeat_interleave(batches, 0) for part in BATCH))
    recorder = Gradients()
    callbacks = [recorder, *options.pop("callbacks", [])]
    fit = trainer(accumulate_grad_batches=accumulated, callbacks=callbacks, **options)
    fit.fit(module, DataLoader(images, batch_size=1))
    return recorder.steps


@pytest.mark.parametrize(
    ("batches", "accumulated", "steps"), [(10, 4, 3), (5, 3, 2), (2, 4, 1), (7, 3, 3)], ids=lambda value: str(value)
)
def test_last_step_of_fewer_batches_has_the_gradient_of_its_batches(batches: int, accumulated: int, steps: int) -> None:
    [expected] = gradients(1, 1)
    actual = gradients(batches, accumulated)
    assert len(actual) == steps
    for gradient in actual:
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_limited_epoch_ends_with_a_shorter_step() -> None:
    first, last = gradients(9, 4, limit_train_batches=5)
    torch.testing.assert_close(last, first, rtol=1e-5, atol=1e-7)


def test_scheduled_accumulation_weighs_the_last_step_by_its_own_count() -> None:
    schedule = GradientAccumulationScheduler({0: 2, 1: 4})
    steps = gradients(5, 1, max_epochs=2, callbacks=[schedule])
    assert len(steps) == 3 + 2
    for gradient in steps:
        torch.testing.assert_close(gradient, steps[0], rtol=1e-5, atol=1e-7)


def test_steps_of_full_windows_equal_those_of_lightning_bitwise(monkeypatch: pytest.MonkeyPatch) -> None:
    actual = gradients(8, 4)
    monkeypatch.setattr(BaselineModule, "backward", pl.LightningModule.backward)
    expected = gradients(8, 4)
    assert all(torch.equal(first, second) for first, second in zip(actual, expected, strict=True))


def test_loader_without_length_leaves_lightnings_division() -> None:
    first, last = gradients(6, 4, endless=True)
    torch.testing.assert_close(last, first / 2, rtol=1e-5, atol=1e-7)


def fit_on_digits(name: str, accumulated: int) -> None:
    from methods import make_data

    options = {"limit_train_batches": 2, "limit_val_batches": 1, "accumulate_grad_batches": accumulated}
    trainer(num_sanity_val_steps=0, **options).fit(make_method(name), make_data(batch_size=8, num_workers=0))


@pytest.mark.parametrize("name", ["sp", "crd", "sskd"])
def test_fit_says_once_what_accumulated_batches_change(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        fit_on_digits(name, accumulated=2)
    [message] = [record.message for record in caplog.records if "at a time" in record.message]
    module = METHODS[name][0]
    assert message.startswith(" and ".join(module.batch_terms))
    assert "8 images at a time, 1 of 2 parts" in message


@pytest.mark.parametrize(("name", "accumulated"), [("sp", 1), ("kd", 2)])
def test_fit_says_nothing_where_nothing_changes(name: str, accumulated: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        fit_on_digits(name, accumulated)
    assert not [record for record in caplog.records if "at a time" in record.message]


def test_methods_whose_loss_compares_images_say_so() -> None:
    stated = {name for name, (module, _, _) in METHODS.items() if module.batch_terms}
    assert stated == OF_A_BATCH | {"crd"}
    assert {name for name in stated if METHODS[name][0].gathers_batch} == {"crd"}


@pytest.mark.parametrize("name", sorted(OF_A_BATCH | {"crd"}))
def test_stated_terms_are_terms_of_the_method(name: str) -> None:
    module, _, terms = METHODS[name]
    assert {term.removeprefix("loss_") for term in module.batch_terms} <= terms


@pytest.mark.parametrize(("method", "expected"), [("SimilarityModule", 16), ("KDModule", None)])
def test_result_records_the_images_that_are_compared(
    method: str, expected: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"teacher": "resnet14", "teacher_weights": "random", "image_size": 16}
    folder = run(
        "fit",
        module=f"methods.{method}",
        model={"init_args": arguments},
        data={"init_args": {"batch_size": 16}},
        trainer={"accumulate_grad_batches": 2, "default_root_dir": str(tmp_path / "run")},
    )
    assert folder.name
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["protocol"]["batch_size"] == 16
    assert result["protocol"]["compared_images"] == expected
