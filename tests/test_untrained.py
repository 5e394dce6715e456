"""Test that an untrained network never silently replaces a trained one, and that a checkpoint suffices."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import MODULES, TEACHER, error_of, loader, make, run, trainer

from hsakd_pl import BaselineModule, LinearProbeModule, StudentModule, TeacherModule, create_network
from hsakd_pl.errors import UsageError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


UNTRAINED: dict[str, tuple[type, dict[str, Any], str]] = {
    "teacher": (StudentModule, {"network": "resnet8", "teacher": "resnet14"}, "teacher_weights: resnet14 would be"),
    "teacher of networks": (
        StudentModule,
        {"network": create_network("resnet8", 4), "teacher": "resnet8", "num_classes": 4},
        "teacher_weights: resnet8 would be",
    ),
    "hinton's": (
        StudentModule,
        {"network": "resnet8", "teacher": "vgg8", "joint_kd_weight": 0, "transform_images": False},
        "teacher_weights: vgg8",
    ),
    "frozen backbone": (TeacherModule, {"network": "resnet8", "freeze_backbone": True}, "weights: resnet8 would be"),
    "probed network": (LinearProbeModule, {"network": "resnet8", "num_classes": 5}, "weights: resnet8 would be"),
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_untrained_network_requires_explicit_random(name: str) -> None:
    kind, options, reason = UNTRAINED[name]
    with pytest.raises(UsageError, match=f"^{reason} .*name the file of its weights, or random"):
        kind(**options)
    kind(**options, **{reason.partition(":")[0]: "random"})


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
@pytest.mark.parametrize("module", ["BaselineModule", "TeacherModule", "MutualModule"])
def test_evaluation_without_trained_weights_raises(
    command: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = {"networks": ["resnet8", "resnet8"]} if module == "MutualModule" else {}
    message = error_of(capsys, lambda: run(command, module=module, model={"init_args": networks}))
    assert message.startswith(f"{command} needs a trained network: name a checkpoint with --ckpt_path, or a file with")
    if command != "predict":
        run(command, module=module, model={"init_args": {**networks, "weights": "random"}})


def files(kind: str) -> dict[str, str]:
    """Return the files that a module is built from and that its checkpoint replaces."""
    torch.save(create_network("resnet8", 4).state_dict(), "initial.pth")
    torch.save(create_network("resnet14", 4).state_dict(), "teacher.pth")
    if kind == "mutual":
        one, two = (create_network(name, 4).state_dict() for name in ("resnet8", "resnet14"))
        torch.save({f"net1.{k}": t for k, t in one.items()} | {f"net2.{k}": t for k, t in two.items()}, "initial.pth")
    options = {"weights": "initial.pth"} | ({"teacher_weights": "teacher.pth"} if kind == "student" else {})
    return options | ({"source_classes": 4} if kind == "probe" else {})  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", MODULES)
def test_checkpoint_loads_without_its_source_files(kind: str, tmp_path: Path) -> None:
    module = make(kind, **files(kind))
    trainer(tmp_path).fit(module, loader())
    for file in tmp_path.glob("*.pth"):
        file.unlink()
    again = type(module).load_from_checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    again(torch.zeros(1, 3, 8, 8))
    trainer().test(again, loader(), verbose=False)
    options = {option: value for option, value in module.hparams.items() if option != "teacher_sha256"}
    fresh = type(module)(**options)
    trainer().test(fresh, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    torch.testing.assert_close(fresh.state_dict(), module.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("use", ["fit", "test", "training_step", "forward"])
def test_missing_weight_file_without_checkpoint_raises(kind: str, use: str) -> None:
    module = make(kind, weights="initial.pth")
    uses = {
        "fit": lambda: trainer().fit(module, loader()),
        "test": lambda: trainer().test(module, loader(), verbose=False),
        "training_step": lambda: module.training_step((torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])), 0),
        "forward": lambda: module(torch.zeros(1, 3, 8, 8)),
    }
    with pytest.raises(UsageError, match=r"weight file initial.pth does not exist"):
        uses[use]()


def test_only_fit_needs_the_teacher_file(tmp_path: Path) -> None:
    trainer(tmp_path).fit(make("student", **files("student")), loader())
    Path("teacher.pth").unlink()
    again = StudentModule.load_from_checkpoint(tmp_path / "last.ckpt")
    for use in (
        lambda: trainer(max_epochs=2).fit(again, loader(), ckpt_path=tmp_path / "last.ckpt"),
        lambda: again.training_step((torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])), 0),
        lambda: again.teacher(torch.zeros(1, 3, 8, 8)),
    ):
        with pytest.raises(UsageError, match=r"weight file teacher.pth does not exist"):
            use()


def test_weight_paths_expand_tilde_and_refuse_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(create_network("resnet14", 4).state_dict(), "teacher.pth")
    make("student", teacher_weights="~/teacher.pth").training_step((torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])), 0)
    for option in ("weights", "teacher_weights"):
        with pytest.raises(UsageError, match=r"https://a/b\.pth is a URL"):
            make("student", **{**TEACHER, "teacher": "resnet14", option: "https://a/b.pth"})


def test_random_weights_are_freshly_initialised() -> None:
    torch.manual_seed(0)
    one = BaselineModule("resnet8", weights="random")
    torch.manual_seed(0)
    torch.testing.assert_close(one.state_dict(), BaselineModule("resnet8").state_dict(), rtol=0, atol=0)
