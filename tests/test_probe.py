"""Test the linear probe: every network, every kind of file, features instead of images, nearest neighbours."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small import TEACHER, loader, run, trainer

from hsakd_pl import (
    DigitsDataModule,
    FeatureDataModule,
    LinearProbeModule,
    STL10DataModule,
    create_network,
    list_networks,
    load_weights,
)
from hsakd_pl.errors import UsageError
from hsakd_pl.networks.keys import published_state_dict


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect garbage: large networks are in reference cycles."""
    yield
    gc.collect()


@pytest.fixture
def stl10(unpack) -> Path:
    return unpack("stl10-mini.tar.gz") / "stl10-mini"


def probe(**options: Any) -> LinearProbeModule:
    torch.manual_seed(0)
    return LinearProbeModule(create_network("resnet8", 7), num_classes=10, **options)


def fitted(data: pl.LightningDataModule, module: LinearProbeModule, **options: Any) -> dict[str, float]:
    run = trainer(max_epochs=2, **options)
    run.fit(module, datamodule=data)
    return {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("name", list_networks())
def test_every_network_is_probed_and_stays_unchanged(name: str) -> None:
    size = 64 if name.endswith("_imagenet") else 32
    module = LinearProbeModule(name, num_classes=5, weights="random")
    (features,) = module.frozen
    before = {key: tensor.clone() for key, tensor in features.state_dict().items()}
    optimizer = module.configure_optimizers()["optimizer"]
    for step in range(2):
        optimizer.zero_grad()
        module.training_step((torch.randn(2, 3, size, size), torch.tensor([step, 4])), step).backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in features.state_dict().items())
    assert module(torch.randn(2, 3, size, size)).shape == (2, 5)
    trained = [parameter.shape for parameter in module.parameters() if parameter.requires_grad]
    assert [tuple(shape) for shape in trained] == [(5, trained[0][1]), (5,)]


def test_probe_starts_from_student_checkpoint_or_published_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    last = run("fit", module="StudentModule", model={"init_args": TEACHER}) / "last.ckpt"
    student = load_weights(create_network("resnet8", 10), last)
    torch.save({"net": published_state_dict(student)}, "published.pth.tar")
    expected = student.backbone.stages.state_dict()
    for file in (last, "published.pth.tar"):
        module = LinearProbeModule("resnet8", num_classes=4, weights=str(file), source_classes=10)
        torch.testing.assert_close(module.frozen[0].stages.state_dict(), expected, rtol=0, atol=0)


def test_probe_on_features_equals_probe_on_images(stl10: Path) -> None:
    results = {}
    for cached in (False, True):
        module, seen = probe(), []
        module.frozen[0].network.stem.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        data: Any = STL10DataModule(stl10, batch_size=50, augment=False, num_workers=0)
        data = FeatureDataModule(data, module.encode) if cached else data
        metrics = fitted(data, module, num_sanity_val_steps=0)
        results[cached] = (len(seen), metrics, module.network.classifier.weight.detach())
    assert (results[False][0], results[True][0]) == (2 * (4 + 2), 4 + 2)  # every epoch, or once
    assert results[True][1] == pytest.approx(results[False][1], rel=1e-5)
    torch.testing.assert_close(results[True][2], results[False][2], rtol=1e-4, atol=1e-6)


def test_probe_trained_on_features_is_tested_on_images(stl10: Path) -> None:
    images, module = STL10DataModule(stl10, batch_size=50, augment=False, num_workers=0), probe(knn=5)
    metrics = fitted(FeatureDataModule(images, module.encode), module)
    assert images.splits["train"].images.shape == (200, 3, 96, 96) and metrics["val/knn_acc"] > 0.12
    (tested,) = trainer().test(module, datamodule=images, verbose=False)
    assert tested["test/acc"] == pytest.approx(metrics["val/acc"])


def test_probe_reports_nearest_neighbour_accuracy(stl10: Path) -> None:
    data = STL10DataModule(stl10, batch_size=64, num_workers=0)  # augmented: the neighbours are not
    module = probe(knn=5)
    metrics = fitted(data, module, limit_train_batches=1)

    def features(name: str) -> torch.Tensor:
        images = data.test_transform(data.splits[name].images)
        with torch.no_grad():
            return module.frozen[0].network.eval()(data.on_after_batch_transfer((images, None), 0)[0])

    similar = torch.nn.functional.normalize(features("val")) @ torch.nn.functional.normalize(features("train")).T
    votes = data.splits["train"].targets[similar.topk(5).indices]
    counts = torch.nn.functional.one_hot(votes, 10).sum(1)
    expected = (counts.argmax(1) == data.splits["val"].targets).float().mean()
    assert metrics["val/knn_acc"] == pytest.approx(float(expected))
    assert metrics["val/knn_acc"] > 0.12  # chance is 0.1


def test_knn_without_image_data_module_raises() -> None:
    with pytest.raises(UsageError, match=r"knn needs the images of an ImageDataModule"):
        trainer().fit(probe(knn=5), loader(), loader())


def test_custom_network_is_probed() -> None:
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.AdaptiveAvgPool2d(1))
    own = torch.nn.Sequential(own, torch.nn.Flatten(), torch.nn.Linear(8, 7))
    module = LinearProbeModule(own, num_classes=10, source_classes=7, lr=0.1)
    before = {key: tensor.clone() for key, tensor in module.frozen[0].state_dict().items()}
    fitted(DigitsDataModule(batch_size=64, train_fraction=0.1), module)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.frozen[0].state_dict().items())
    assert [tuple(p.shape) for p in module.parameters() if p.requires_grad] == [(10, 8), (10,)]
    with pytest.raises(UsageError, match="no linear layer that a probe could replace"):
        LinearProbeModule(torch.nn.Flatten(), num_classes=10)
