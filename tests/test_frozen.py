"""Test that frozen parts - a teacher, a frozen backbone, a probed network - never change, whatever Lightning calls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from pytorch_lightning.callbacks import Callback, StochasticWeightAveraging
from small import BATCH, loader, make, trainer
from torch import Tensor

from hsakd_pl import HSAKDModule, LinearProbeModule, StudentModule, create_network
from hsakd_pl.errors import UsageError
from hsakd_pl.networks import list_networks

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "student": ("student", {"built": True}),
    "student_by_name": ("student", {}),
    "hinton": ("student", {"joint_kd_weight": 0, "transform_images": False}),
    "teacher": ("teacher", {"freeze_backbone": True, "weights": "random"}),
    "probe": ("probe", {}),
}


@pytest.fixture(params=KINDS)
def module(request: pytest.FixtureRequest) -> HSAKDModule:
    kind, options = KINDS[request.param]
    return make(kind, lr=0.01, **options)


class Meddler(Callback):
    """Put every layer into train mode in every hook."""

    def _meddle(self, trainer: pl.Trainer, module: HSAKDModule, *_: Any) -> None:
        for layer in (*module.modules(), *(layer for part in module.frozen for layer in part.modules())):
            layer.training = True

    on_train_start = on_train_epoch_start = on_train_batch_start = on_train_batch_end = on_train_epoch_end = _meddle
    on_validation_start = on_validation_end = on_test_start = on_test_end = _meddle


def state_of(module: HSAKDModule) -> dict[str, Tensor]:
    (part,) = module.frozen
    return {key: tensor.clone() for key, tensor in part.state_dict().items()}


def trained_parameters(module: HSAKDModule) -> list[Tensor]:
    return [parameter.clone() for parameter in module.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("callback", [None, Meddler])
def test_fit_validate_and_test_keep_frozen_parts(module: HSAKDModule, callback: type[Callback] | None) -> None:
    frozen, trained = state_of(module), trained_parameters(module)
    run = trainer(max_epochs=2, callbacks=[callback()] if callback else [])
    run.fit(module, loader(), loader())
    run.test(module, loader(), verbose=False)
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in state_of(module).items())
    assert not any(torch.equal(now, before) for now, before in zip(trained_parameters(module), trained, strict=True))
    if callback is None:
        assert not any(layer.training for layer in module.frozen[0].modules())


@pytest.mark.parametrize("path", ["", "backbone", "backbone.stages.0", "branches"])
def test_training_step_returns_frozen_layers_to_eval_mode(module: HSAKDModule, path: str) -> None:
    frozen = state_of(module)
    (part,) = module.frozen
    names = [name for name, _ in part.named_modules()]
    module.train()
    assert not any(layer.training for layer in part.modules())
    for name in {path, path.removeprefix("backbone.")} & set(names):
        part.get_submodule(name).train()
    module.training_step(BATCH, 0).backward()
    assert not any(layer.training for layer in part.modules())
    assert all(parameter.grad is None for parameter in part.parameters())
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in state_of(module).items())


class Statistics(Callback):
    """Reset the statistics of all batch norms before an epoch, and move all weights after a step."""

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.reset_running_stats()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        for parameter in module.parameters():
            parameter.data.mul_(0.99)


CHANGING: dict[str, Callable[[], Callback]] = {
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
    "statistics": Statistics,
}
if hasattr(callbacks, "EMAWeightAveraging"):  # Lightning 2.6 brought it
    CHANGING["ema"] = lambda: callbacks.EMAWeightAveraging(decay=0.7)


@pytest.mark.parametrize("name", CHANGING)
def test_callbacks_that_change_weights_keep_frozen_parts(module: HSAKDModule, name: str, tmp_path: Path) -> None:
    for layer in module.frozen[0].modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.add_(0.1)
    frozen = state_of(module)
    prefixes = [f"{path}." for path, part in module.named_modules() if part is module.frozen[0].network]
    trainer(tmp_path, max_epochs=2, callbacks=[CHANGING[name]()]).fit(module, loader(), loader())
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in state_of(module).items())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for part in {"state_dict", "current_model_state"} & checkpoint.keys():
        for prefix in prefixes:
            assert all(torch.equal(checkpoint[part][f"{prefix}{key}"], tensor) for key, tensor in frozen.items())


def test_callback_cannot_unfreeze_frozen_parts(module: HSAKDModule) -> None:
    class Unfreeze(Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            module.frozen[0].network.requires_grad_(True)

    with pytest.raises(UsageError, match="has been unfrozen, by a callback"):
        trainer(callbacks=[Unfreeze()]).fit(module, loader(), loader())


@pytest.mark.parametrize("kind", ["student", "student_by_name", "hinton"])
def test_teacher_is_hidden_from_lightning(kind: str, tmp_path: Path) -> None:
    module = make("student", **KINDS[kind][1])
    assert isinstance(module, StudentModule)
    run = trainer(tmp_path)
    run.fit(module, loader())
    teacher = {id(tensor) for tensor in (*module.teacher.parameters(), *module.teacher.buffers())}
    optimized = [parameter for group in run.optimizers[0].param_groups for parameter in group["params"]]
    for tensors in (module.parameters(), module.buffers(), optimized, module.state_dict(keep_vars=True).values()):
        assert not teacher & {id(tensor) for tensor in tensors}
    assert len(optimized) == len(list(module.network.parameters()))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == {f"networks.0.{key}" for key in module.network.state_dict()}
    assert sum(tensor.numel() for tensor in saved.values()) < sum(p.numel() for p in module.teacher.parameters())


def test_teacher_follows_module_dtype_and_device() -> None:
    module = make("student").double()
    assert isinstance(module, StudentModule)
    assert {parameter.dtype for parameter in module.teacher.parameters()} == {torch.float64}
    loss = module.training_step((torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)), 0)
    assert loss.dtype == torch.float64
    module.to(torch.device("meta"))
    assert {tensor.device.type for tensor in module.teacher.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("name", [n for n in list_networks() if n.endswith(("8", "13", "v1", "v2", "_16_2"))])
def test_probe_trains_only_its_classifier(name: str) -> None:
    network = create_network(name, num_classes=6)
    module = LinearProbeModule(network, num_classes=3)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    module.training_step((torch.randn(2, 3, 32, 32), torch.arange(2)), 0).backward()
    optimizer.step()
    assert [parameter.shape[0] for group in optimizer.param_groups for parameter in group["params"]] == [3, 3]
    assert module.network.classifier.weight.grad is not None
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
