"""Test ensembles of heads and transformations and early exits: against brute force, and as reported by ``test``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import command_line, run_on_two
from small import error_of, make, run, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassCalibrationError

from hsakd_pl import FLIPS, ROTATIONS, DigitsDataModule, MutualModule, StudentModule, TeacherModule, Transforms
from hsakd_pl.errors import UsageError
from hsakd_pl.modules.ensembles import THRESHOLDS, ensemble_logits, scores
from hsakd_pl.networks import HSAKDNet, create_network
from hsakd_pl.networks.cost import multiply_adds, multiply_adds_until
from hsakd_pl.networks.exits import (
    branch_exits,
    early_exit,
    ensemble_exits,
    exit_logits,
    first_sure,
    head_logits,
)
from hsakd_pl.records.ensembles import as_table

IDENTITY = Transforms(1, lambda images, m: images)
TRANSFORMS = pytest.mark.parametrize("transforms", [ROTATIONS, FLIPS, IDENTITY], ids=str)


def network(transforms: Transforms = ROTATIONS) -> HSAKDNet:
    """Return a network of 5 classes that is confident for some images only."""
    torch.manual_seed(0)
    made = create_network("resnet8", 5, transforms=transforms).eval()
    assert isinstance(made, HSAKDNet)
    for head in (made.backbone.head, *(branch.head for branch in made.branches)):
        torch.nn.init.normal_(head[-1].weight, std=2.0)
    return made


IMAGES = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def seen(of: HSAKDNet, images: Tensor = IMAGES) -> Tensor:
    """Return class logits (L + 1, M, B, N), computed per image and per view."""
    count, classes = of.transforms.count, range(of.num_classes)
    found = torch.zeros(1 + len(of.branches), count, len(images), of.num_classes)
    for m in range(count):
        output = of(of.transforms.apply(images, m) if m else images)
        for head, joint_logits in enumerate(output.joint_logits):
            for y in classes:
                found[head, m, :, y] = joint_logits[:, count * y + m]
        found[-1, m] = output.logits
    return found


@TRANSFORMS
@torch.no_grad()
def test_head_logits_refer_to_their_view(transforms: Transforms) -> None:
    of = network(transforms)
    heads = head_logits(of(transforms(IMAGES)), transforms, range(transforms.count))
    torch.testing.assert_close(heads, seen(of))


@TRANSFORMS
@torch.no_grad()
def test_ensembles_average_head_logits(transforms: Transforms) -> None:
    heads = seen(network(transforms))
    found = ensemble_logits(heads)
    branches, views = len(heads) - 1, range(transforms.count)
    assert torch.equal(found["class_head"], heads[branches, 0])
    torch.testing.assert_close(found["all_heads"], sum(heads[head, 0] for head in range(branches + 1)) / (branches + 1))
    if transforms.count == 1:
        assert list(found) == ["class_head", "all_heads"]
        return
    torch.testing.assert_close(found["class_head_all_views"], sum(heads[branches, m] for m in views) / len(views))
    every = sum(heads[head, m] for head in range(branches + 1) for m in views)
    torch.testing.assert_close(found["all_heads_all_views"], every / (len(heads) * len(views)))


def test_early_exit_takes_first_confident_exit_or_last() -> None:
    logits = 3 * torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(0))
    found = first_sure(logits, THRESHOLDS)
    for row, threshold in enumerate(THRESHOLDS):
        for image in range(50):
            sure = [logits[number, image].softmax(0).max() >= threshold for number in range(4)]
            assert found[row, image] == (sure.index(True) if any(sure[:-1]) else 3)
    assert len(found.unique()) == 4


@TRANSFORMS
@pytest.mark.parametrize("exits", [branch_exits, ensemble_exits])
@torch.no_grad()
def test_early_exit_equals_computing_all_exits(exits: Callable[..., Any], transforms: Transforms) -> None:
    of = network(transforms)
    every = torch.stack(list(exit_logits(of, IMAGES, exits)))
    heads = seen(of)
    cascade = torch.stack([heads[-1, 0], heads[:, 0].mean(0), heads.mean((0, 1))])
    torch.testing.assert_close(every, heads[:, 0] if exits is branch_exits else cascade)
    taken = set()
    quantiles = every.softmax(2).amax(2).flatten().quantile(torch.tensor([0.11, 0.33, 0.55, 0.77, 0.93]))
    for threshold in (0.0, *quantiles.tolist(), 1.1):
        logits, numbers = early_exit(of, IMAGES, threshold, exits)
        assert torch.equal(numbers, first_sure(every, [threshold])[0])
        torch.testing.assert_close(logits, every[numbers, torch.arange(len(IMAGES))])
        taken |= set(numbers.tolist())
    assert len(taken) > 2 and len(every) - 1 in taken


@pytest.mark.parametrize("exits", [branch_exits, ensemble_exits])
@torch.no_grad()
def test_exited_images_cost_nothing_more(exits: Callable[..., Any]) -> None:
    of = network()
    costs = torch.tensor(multiply_adds_until(of, 16, exits))
    for threshold in (0.0, 0.8, 1.1):
        with FlopCounterMode(display=False) as counter:
            _, numbers = early_exit(of, IMAGES, threshold, exits)
        assert counter.get_total_flops() // 2 == int(costs[numbers].sum())


@TRANSFORMS
def test_exit_costs_sum_to_network_cost(transforms: Transforms) -> None:
    of = network(transforms)
    whole, alone = multiply_adds(of, 16), multiply_adds(of.without_branches, 16)
    branches, cascade = (multiply_adds_until(of, 16, exits) for exits in (branch_exits, ensemble_exits))
    assert branches[-1] == whole and len(branches) == 4 and sorted(branches) == branches
    assert cascade == [alone, whole, transforms.count * whole]
    assert branches[0] >= alone  # a branch repeats the stages that follow


def test_ensemble_scores_match_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 4 * torch.randn(2, 300, 7, generator=generator), torch.randint(7, (300,), generator=generator)
    logits[1, :5] = 1000.0 * torch.eye(7)[:5]  # a probability of 1
    parts = [scores(logits[:, part], labels[part]) for part in (slice(0, 128), slice(128, 300))]
    found = {name: sum(part[name] for part in parts) / 300 for name in parts[0]}
    for answer in range(2):
        assert float(found["right"][answer]) == pytest.approx(
            float((logits[answer].argmax(1) == labels).float().mean())
        )
        assert float(found["loss"][answer]) == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits[answer], labels)), rel=1e-5
        )
        ece = MulticlassCalibrationError(7, n_bins=15, norm="l1")(logits[answer].softmax(1), labels)
        assert float(found["gaps"][answer].abs().sum()) == pytest.approx(float(ece), abs=1e-5)


LIMITS = {"limit_train_batches": 10, "limit_val_batches": 1, "limit_test_batches": 2}
TEACHER: dict[str, Any] = {"module": "TeacherModule", "trainer": LIMITS}


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a teacher that has learnt a little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("teacher"))
        return (run("fit", **TEACHER) / "last.ckpt").absolute()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def digits(count: int) -> tuple[Tensor, Tensor]:
    """Return the first test images, normalised, and their labels."""
    data = DigitsDataModule(num_workers=0)
    data.setup("test")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    images, labels = zip(*batches, strict=True)
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def expected(heads: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the accuracies of the ensembles of heads (L + 1, V, B, N), and of both early exits at each threshold."""
    answers = ensemble_logits(heads)
    orders = {
        "early_exit": heads[:, 0],
        "cascade": torch.stack([answers[name] for name in answers if "class_head_" not in name]),
    }
    exits = {
        name: [
            float((logits.argmax(2).gather(0, first_sure(logits, [threshold])) == labels).float().mean())
            for threshold in THRESHOLDS
        ]
        for name, logits in orders.items()
    }
    return {name: float((each.argmax(1) == labels).float().mean()) for name, each in answers.items()} | exits


@pytest.mark.parametrize(("views", "branch_metrics_every"), [("all", 0), ("identity", 10), ("identity", 0)])
@pytest.mark.usefixtures("folder")
@torch.no_grad()
def test_test_reports_ensemble_scores_of_logits(
    views: str, branch_metrics_every: int, last: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--model.init_args.ensemble={views}", f"--model.init_args.branch_metrics_every={branch_metrics_every}"]
    where = run("test", "--ckpt_path", str(last), *options, **TEACHER)
    found = json.loads((where / "test.json").read_text())
    of = TeacherModule.load_from_checkpoint(last).eval().network
    images, labels = digits(128)
    heads = seen(of, images)[:, : 4 if views == "all" else 1]
    for name, accuracies in expected(heads, labels).items():
        if isinstance(accuracies, list):
            assert [row["acc"] for row in found[name]] == pytest.approx(accuracies, abs=1e-5), name
        else:
            assert found["ensemble"][name]["acc"] == pytest.approx(accuracies, abs=1e-5), name
    head = found["ensemble"]["class_head"]
    for name in ("acc", "ece", "nll"):
        assert head[name] == pytest.approx(found[name], abs=1e-4)
    alone, whole = multiply_adds(of.without_branches, 16), multiply_adds(of, 16)
    costs = {
        "class_head": alone,
        "all_heads": whole,
        "class_head_all_views": 4 * alone,
        "all_heads_all_views": 4 * whole,
    }
    assert {name: row["multiply_adds"] for name, row in found["ensemble"].items()} == {
        name: costs[name] for name in expected(heads, labels) if name in costs
    }
    assert all(
        sum(row["left"]) == pytest.approx(1, abs=1e-5) for name in ("early_exit", "cascade") for row in found[name]
    )
    assert ("branch1_joint" in found) == (branch_metrics_every > 0)
    assert as_table(found) in capsys.readouterr().out
    assert (where / "ensemble.png").stat().st_size > 10_000


@pytest.mark.usefixtures("folder")
def test_test_without_ensemble_removes_earlier_ensemble_results(last: Path) -> None:
    where = run("test", "--ckpt_path", str(last), "--model.init_args.ensemble=identity", **TEACHER)
    assert "early_exit" in json.loads((where / "test.json").read_text()) and (where / "ensemble.png").exists()
    run("test", "--ckpt_path", str(last), **TEACHER)
    assert "early_exit" not in json.loads((where / "test.json").read_text())
    assert not (where / "ensemble.png").exists()


@pytest.mark.usefixtures("folder")
@torch.no_grad()
def test_ensemble_averages_mutual_peers() -> None:
    torch.manual_seed(0)
    module = MutualModule(["resnet8", "resnet14"], num_classes=10).eval()
    torch.save(module.state_dict(), "peers.pt")
    options = {"init_args": {"networks": ["resnet8", "resnet14"], "weights": "peers.pt", "ensemble": "all"}}
    where = run("test", module="MutualModule", model=options, trainer=LIMITS)
    found, peers = json.loads((where / "test.json").read_text()), module.networks
    images, labels = digits(128)
    heads = torch.stack([seen(peer, images) for peer in peers]).mean(0)
    for name, row in found["ensemble"].items():
        assert row["acc"] == pytest.approx(expected(heads, labels)[name], abs=1e-5)
    assert found["ensemble"]["all_heads"]["multiply_adds"] == sum(multiply_adds(peer, 16) for peer in peers)


def test_ensemble_without_branches_raises() -> None:
    with pytest.raises(UsageError, match="ensemble is all: it needs a network with branches"):
        StudentModule("resnet8", "resnet8", teacher_weights="random", joint_kd_weight=0, ensemble="all")
    with pytest.raises(UsageError, match="ensemble must be identity or all, got some"):
        TeacherModule("resnet8", ensemble="some")  # type: ignore[arg-type]


@pytest.mark.usefixtures("folder")
def test_invalid_ensemble_option_raises_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    random = {"init_args": {"weights": "random", "ensemble": "some"}}
    message = error_of(capsys, lambda: run("test", module="TeacherModule", model=random))
    assert "identity" in message and "ensemble" in message
    random = {"init_args": {"weights": "random", "ensemble": "all"}}
    assert "there is no option model.ensemble" in error_of(capsys, lambda: run("test", model=random))


def test_ensemble_metrics_reset_and_are_not_saved() -> None:
    module = make("teacher", ensemble="all")
    assert not any("ensembles" in key for key in module.state_dict())
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images, torch.arange(6) % 4), batch_size=4)
    for _ in range(2):
        trainer().test(module, loader, verbose=False)
        assert module.ensembles is not None and int(module.ensembles.metric_state["images"]) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_ensemble_scores_of_two_devices_equal_one(last: Path) -> None:
    options = {**TEACHER, "model": {"init_args": {"ensemble": "all"}}}
    one = json.loads((run("test", "--ckpt_path", str(last), **options) / "test.json").read_text())
    spread = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.default_root_dir=two"]
    run_on_two(command_line, "test", "--config", "config.yaml", "--ckpt_path", str(last), *spread)
    two = json.loads(Path("two", "test.json").read_text())
    assert (two["images"], two["devices"]) == (one["images"], 2) == (128, 2)
    assert (two["early_exit"], two["cascade"]) == (one["early_exit"], one["cascade"])
    for name, row in one["ensemble"].items():
        assert two["ensemble"][name] == pytest.approx(row, abs=1e-3)
