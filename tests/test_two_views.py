"""Test the methods that train on a weak and a strong view of each image."""

from typing import Any

import pytest
import torch
from methods import make_method
from small import trainer
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import DigitsDataModule
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import crld_loss, mlkd_loss
from hsakd_pl.methods.views import TwoViewModule

WEAK = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
STRONG = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6)


@pytest.mark.parametrize(("name", "function"), [("mlkd", mlkd_loss), ("crld", crld_loss)])
def test_step_is_the_loss_of_both_views(name: str, function: Any) -> None:
    """The student sees one view at a time: batch norms take the statistics of each alone."""
    module = make_method(name).train()
    logits = []
    for view in (WEAK, STRONG):
        logits += [module.network(view), module.teacher(view).logits]
    thresholds = {"weak_threshold": 0.05, "strong_threshold": 0.05} if name == "crld" else {}
    expected = function(*logits, LABELS, **thresholds)
    loss = module.training_step((torch.cat([WEAK, STRONG]), LABELS), 0)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", ["mlkd", "crld"])
def test_module_names_what_makes_two_views(name: str) -> None:
    module = make_method(name)
    kind = type(module).__name__
    with pytest.raises(UsageError, match=rf"{kind} trains on two views, .* got 6 rows for 6 labels"):
        module.training_step((WEAK, LABELS), 0)
    loader = DataLoader(TensorDataset(WEAK, LABELS), batch_size=2)
    with pytest.raises(UsageError, match=rf"{kind} trains on two views, .*: fit it with a data module"):
        trainer().fit(make_method(name), loader)
    with pytest.raises(UsageError, match="augment is off, but the module trains on a strongly augmented view too"):
        trainer().fit(make_method(name), datamodule=DigitsDataModule(batch_size=4, augment=False))


def test_subclass_gets_all_outputs_of_both_views() -> None:
    class Mine(TwoViewModule):
        def terms(self, student: Any, teacher: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            for output in (student, teacher):
                assert len(output.logits) == len(output.embedding) == len(output.pooled_map) == 2 * len(labels)
                assert {len(feature_map) for feature_map in output.features} == {2 * len(labels)}
            return super().terms(student, teacher, labels)

    module = Mine("resnet8", "resnet14", teacher_weights="random", num_classes=10, image_size=16)
    terms = module.losses((torch.cat([WEAK, STRONG]), LABELS))
    assert terms.keys() == {"loss_ce", "loss_kd"} and module.views == 2


def test_single_image_in_the_last_batch_raises_usage_error() -> None:
    module = make_method("mlkd").train()
    batch = torch.randn(2, 3, 4, 4), LABELS[:1]
    with pytest.raises(UsageError, match="batch_size: BatchNorm needs more than one value per channel"):
        module.training_step(batch, 0)
