"""Test mixed precision: an overflow of the loss scale skips a step and is not a divergence."""

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from small import loader, make, trainer

from hsakd_pl.errors import UsageError


def fit(scale: float, lr: float = 0.01) -> tuple[float, int]:
    """Train two epochs of two batches in float16; return the loss scale and the number of changed weights."""
    module = make("student", lr=lr)
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    trainer(max_epochs=2, plugins=[precision]).fit(module, loader())
    assert all(weight.isfinite().all() for weight in module.parameters())
    return scaler.get_scale(), sum(not torch.equal(weight, before[name]) for name, weight in module.named_parameters())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_loss_scale_overflow_skips_the_step() -> None:
    assert fit(2.0**127) == (2.0**123, 0)  # four steps, each skipped, each halves the scale
    scale, changed = fit(2.0**8)
    assert scale == 2.0**8
    assert changed > 20


def test_non_finite_loss_ends_the_run() -> None:
    with pytest.raises(UsageError, match="NaN or infinite"):
        fit(1.0, lr=1e30)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradient_clipping_limits_the_step(precision: str) -> None:
    module = make("student", lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    before = [weight.detach().clone() for weight in module.parameters()]
    trainer(gradient_clip_val=1e-3, limit_train_batches=1, precision=precision).fit(module, loader())
    moved = [(weight - old).square().sum() for weight, old in zip(module.parameters(), before, strict=True)]
    assert float(sum(moved)) ** 0.5 == pytest.approx(1e-3, rel=1e-2)
