"""Test the content of checkpoints, what they rebuild, and that divergence does not spoil them."""

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import BATCH, MODULES, loader, make, trainer

from hsakd_pl import FLIPS, HSAKDModule, StudentModule, TeacherModule, Transforms, create_network
from hsakd_pl.errors import UsageError


@pytest.mark.parametrize("kind", MODULES)
def test_checkpoint_rebuilds_module_built_from_names(tmp_path: Path, kind: str) -> None:
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


def test_checkpoint_pins_teacher_weights(tmp_path: Path) -> None:
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


def other_weights(path: Path) -> dict[str, str]:
    torch.save(create_network("resnet14", 4).state_dict(), path)
    return {"teacher_weights": str(path)}


@pytest.mark.parametrize("teacher", ["another file", "another network", "none"])
def test_resumed_fit_refuses_another_teacher(tmp_path: Path, teacher: str) -> None:
    first = other_weights(tmp_path / "teacher.pth")
    trainer(tmp_path).fit(make("student", **first), loader())
    last, digest = tmp_path / "last.ckpt", hashlib.sha256((tmp_path / "teacher.pth").read_bytes()).hexdigest()
    options: dict[str, Any] = {
        "another file": other_weights(tmp_path / "other.pth"),
        "another network": {"teacher": create_network("resnet14", 4)},
        "none": {},
    }[teacher]
    with pytest.raises(
        UsageError, match=rf"teacher_sha256 asks for {digest}: name the teacher that the run began with"
    ):
        trainer(tmp_path, max_epochs=2).fit(make("student", **options), loader(), ckpt_path=last)
    (tmp_path / "teacher.pth").rename(tmp_path / "moved.pth")
    moved = make("student", teacher_weights=str(tmp_path / "moved.pth"))
    trainer(max_epochs=2).fit(moved, loader(), ckpt_path=last)
    trainer().validate(make("student", **options), loader(), ckpt_path=last, verbose=False)  # needs no teacher


def test_resumed_fit_takes_another_teacher_on_request(tmp_path: Path) -> None:
    trainer(tmp_path).fit(make("student", **other_weights(tmp_path / "teacher.pth")), loader())
    other = other_weights(tmp_path / "other.pth")
    digest = hashlib.sha256((tmp_path / "other.pth").read_bytes()).hexdigest()
    run, module = trainer(tmp_path, max_epochs=2), make("student", **other, teacher_sha256=digest)
    run.fit(module, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert run.current_epoch == 2 and module.hparams["teacher_sha256"] == digest


def test_checkpoint_with_other_transforms_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).fit(make("teacher", transforms="flips*flips"), loader())
    last = tmp_path / "last.ckpt"
    assert TeacherModule.load_from_checkpoint(last).network.transforms == FLIPS * FLIPS
    with pytest.raises(UsageError, match=r"transforms \['4 flips\*flips'\], not \['4 rotations'\]"):
        TeacherModule.load_from_checkpoint(last, transforms=None)


def test_transforms_object_must_be_passed_again_on_load(tmp_path: Path) -> None:
    own = Transforms(4, lambda images, m: images.roll(m, 3))
    trainer(tmp_path).fit(make("teacher", transforms=own), loader())
    last = tmp_path / "last.ckpt"
    with pytest.raises(UsageError, match=r"transforms \['4 unnamed transforms'\], not \['4 rotations'\]"):
        TeacherModule.load_from_checkpoint(last)
    assert TeacherModule.load_from_checkpoint(last, transforms=own).network.transforms == own


@pytest.fixture(params=["cpu", "gpu"])
def checked_as_on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the sum of an epoch's losses instead of each step's loss, as on a GPU."""
    if request.param == "gpu":
        check = HSAKDModule._raise_unless_finite
        monkeypatch.setattr(
            HSAKDModule, "_raise_unless_finite", lambda self, loss, *_: loss.requires_grad or check(self, loss)
        )


@pytest.mark.usefixtures("checked_as_on")
@pytest.mark.parametrize("kind", MODULES)
def test_non_finite_loss_stops_fit(tmp_path: Path, kind: str) -> None:
    module = make(kind, lr=0.01)
    trainer(tmp_path).fit(module, loader())
    last, before = tmp_path / "last.ckpt", (tmp_path / "last.ckpt").read_bytes()
    images = BATCH[0].clone()
    images[3] = math.inf
    with pytest.raises(
        UsageError, match=r"the loss became NaN or infinite in epoch 1: lower lr|The input images contain NaN or inf"
    ):
        trainer(tmp_path, max_epochs=3).fit(module, loader(images), ckpt_path=last)
    assert last.read_bytes() == before
    type(module).load_from_checkpoint(last)
    trainer(tmp_path).validate(module, loader(), ckpt_path=last, verbose=False)
    trainer(tmp_path, max_epochs=2).fit(module, loader(), ckpt_path=last)  # the same module, with sound data


def test_diverging_learning_rate_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the loss became NaN or infinite in epoch 0: lower lr"):
        trainer(tmp_path).fit(make("teacher", lr=1e30), loader())
    assert not list(tmp_path.glob("*.ckpt"))
