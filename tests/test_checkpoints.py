"""What a checkpoint holds, what it rebuilds, and that a diverging run does not spoil it."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from small import BATCH, MODULES, loader, make, trainer

from hsakd_pl import HSAKDModule, StudentModule, create_network
from hsakd_pl.errors import UsageError


@pytest.mark.parametrize("kind", MODULES)
def test_a_checkpoint_rebuilds_a_module_given_by_names(tmp_path: Path, kind: str) -> None:
    module = make(kind, lr=0.003)
    trainer(tmp_path).fit(module, loader())
    path = tmp_path / "last.ckpt"
    again = type(module).load_from_checkpoint(path)
    assert again.lr == 0.003
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    if kind != "probe":
        torch.testing.assert_close(make(kind, weights=str(path)).state_dict(), module.state_dict(), rtol=0, atol=0)
    built = make(kind, built=True)
    assert not {"network", "networks", "teacher"} & set(built.hparams)


def test_a_checkpoint_pins_the_teachers_weights(tmp_path: Path) -> None:
    weights = tmp_path / "teacher.pth"
    torch.save(create_network("resnet14", 4).state_dict(), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    trainer(tmp_path).fit(make("student", teacher_weights=str(weights)), loader())
    path = tmp_path / "last.ckpt"
    assert torch.load(path, weights_only=True)["hyper_parameters"]["teacher_sha256"] == digest
    again = StudentModule.load_from_checkpoint(path)
    torch.testing.assert_close(again.teacher.state_dict(), torch.load(weights), rtol=0, atol=0)
    torch.save(create_network("resnet14", 4).state_dict(), weights)
    again = StudentModule.load_from_checkpoint(path)
    with pytest.raises(UsageError, match=rf"{weights} has sha256 .* teacher_sha256 asks for {digest}"):
        trainer(tmp_path).fit(again, loader())


@pytest.fixture(params=["cpu", "gpu"])
def checked_as_on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the loss of a step is not looked at: an epoch's sum of them is."""
    if request.param == "gpu":
        check = HSAKDModule._raise_unless_finite
        monkeypatch.setattr(
            HSAKDModule, "_raise_unless_finite", lambda self, loss: loss.requires_grad or check(self, loss)
        )


@pytest.mark.usefixtures("checked_as_on")
@pytest.mark.parametrize("kind", MODULES)
def test_a_loss_that_is_not_finite_stops_the_fit(tmp_path: Path, kind: str) -> None:
    module = make(kind, lr=0.01)
    trainer(tmp_path).fit(module, loader())
    last, before = tmp_path / "last.ckpt", (tmp_path / "last.ckpt").read_bytes()
    images = BATCH[0].clone()
    images[3] = math.inf
    with pytest.raises(UsageError, match="the loss became NaN or infinite in epoch 1: lower lr"):
        trainer(tmp_path, max_epochs=3).fit(module, loader(images), ckpt_path=last)
    assert last.read_bytes() == before
    type(module).load_from_checkpoint(last)
    trainer(tmp_path).validate(module, loader(), ckpt_path=last, verbose=False)
    trainer(tmp_path, max_epochs=2).fit(module, loader(), ckpt_path=last)  # the same module, with sound data


def test_a_learning_rate_that_diverges_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the loss became NaN or infinite in epoch 0: lower lr"):
        trainer(tmp_path).fit(make("teacher", lr=1e30), loader())
    assert not list(tmp_path.glob("*.ckpt"))
