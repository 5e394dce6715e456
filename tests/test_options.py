"""Options of modules: declared once, shown in full in Python and on the command line, and saved as hyperparameters."""

import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from jsonargparse import ArgumentParser
from small import BATCH, TEACHER, loader, make, trainer

from hsakd_pl import BaselineModule, HSAKDModule, LinearProbeModule, MutualModule, StudentModule, TeacherModule
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import DistilledModule, DKDModule
from hsakd_pl.modules.options import BranchOptions

BASES = [BaselineModule, TeacherModule, StudentModule, MutualModule, LinearProbeModule, DistilledModule, DKDModule]


def test_typed_options_equal_parameters_of_the_base_module() -> None:
    parameters = get_type_hints(HSAKDModule.__init__)
    del parameters["networks"], parameters["return"]
    assert get_type_hints(BranchOptions) == parameters


@pytest.mark.parametrize("base", BASES)
def test_subclass_shows_all_options_of_its_bases(base: type[HSAKDModule]) -> None:
    class Mine(base):  # type: ignore[valid-type, misc]
        """A user's module, documented in NumPy's style.

        Parameters
        ----------
        my_weight : float
            Weight of my term.
        """

        def __init__(self, *args: Any, my_weight: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    options = inspect.signature(base).parameters
    shown = inspect.signature(Mine).parameters
    assert set(shown) == {*options, "my_weight"}
    assert {"lr", "momentum", "milestones", "fast", "loss_weights"} <= set(shown)
    assert all(shown[name].default == option.default for name, option in options.items())
    first = "networks" if base is MutualModule else "network"
    assert shown[first].default is inspect.Parameter.empty
    parser = ArgumentParser()
    assert set(parser.add_class_arguments(Mine)) == set(shown)
    text = parser.format_help()
    assert "Weight of my term." in text and "learning rate of SGD" in text
    assert f"{first} {first.upper()}" in text or "required" in text


class Fixed(StudentModule):
    """A user's module that decides some options of its base."""

    def __init__(self, network: Any, **options: Any) -> None:
        super().__init__(network, joint_kd_weight=0.0, transform_images=False, **options)


def test_options_that_a_class_sets_are_neither_shown_nor_saved(tmp_path: Path) -> None:
    assert {"joint_kd_weight", "transform_images"}.isdisjoint(inspect.signature(Fixed).parameters)
    module = Fixed("resnet8", **TEACHER, num_classes=4, lr=0.01)
    trainer(tmp_path).fit(module, loader())
    again = Fixed.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.hparams == module.hparams
    assert again.hparams["lr"] == 0.01 and again.hparams["momentum"] == 0.9
    assert "joint_kd_weight" not in again.hparams


class Opaque(StudentModule):
    """A user's module whose options cannot be found by reading its code."""

    def __init__(self, network: Any, **options: Any) -> None:
        super().__init__(network, **{**options, "temperature": 2.0})


def test_options_given_to_a_class_are_saved_where_its_signature_lacks_them(tmp_path: Path) -> None:
    module = Opaque("resnet8", **TEACHER, num_classes=4, lr=0.01)
    assert "num_classes" not in inspect.signature(Opaque).parameters
    trainer(tmp_path).fit(module, loader())
    again = Opaque.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.num_classes == 4 and again.lr == 0.01 and again.temperature == 2.0
    assert again.hparams == module.hparams


def test_checkpoint_of_an_earlier_version_loads_and_resumes(tmp_path: Path) -> None:
    trainer(tmp_path).fit(make("student"), loader())
    path = tmp_path / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["hyper_parameters"]["loss_weights"]
    torch.save(checkpoint, path)
    module = StudentModule.load_from_checkpoint(path)
    run = trainer(max_epochs=2)
    run.fit(module, loader(), ckpt_path=path)
    assert run.current_epoch == 2


def test_loss_weights_replace_those_of_the_module() -> None:
    module = make("student", kd_weight=2.0, loss_weights={"loss_kd": 0.5})
    terms = module.losses(BATCH)
    expected = terms["loss_ce"] + 0.5 * terms["loss_kd"] + terms["loss_joint_kd"]
    torch.testing.assert_close(module.training_step(BATCH, 0), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_weights": {"loss_mine": -1.0}}, r"loss_weights\.loss_mine must be at least 0"),
        ({"kd_weight": -1.0}, "kd_weight must be at least 0"),
    ],
)
def test_negative_loss_weight_raises_naming_an_existing_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        make("student", **options)
