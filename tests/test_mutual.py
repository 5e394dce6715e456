"""Targets of mutual distillation, and what a table shows of several peers."""

import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from small import BATCH, loader, make, run, trainer

from hsakd_pl import MutualModule
from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError
from hsakd_pl.modules.mutual import TARGETS, min_logits
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import kd_loss
from hsakd_pl.report.groups import groups
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import all_lines, lines, records

THREE = ["resnet8", "resnet8", "resnet14"]


def peers_logits(count: int = 3, rows: int = 6, classes: int = 5) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return logits (rows, classes) of each peer, with gradients, and labels (rows,)."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [peer.requires_grad_() for peer in logits], torch.arange(rows) % classes


def test_min_target_is_smallest_logit_relative_to_true_class() -> None:
    peers, labels = peers_logits()
    [[target], *_] = min_logits(peers, labels)
    for row, label in enumerate(labels):
        for index in range(5):
            expected = min((peer[row, index] - peer[row, label]).item() for peer in peers)
            assert float(target[row, index]) == expected


def test_min_target_is_at_least_as_sure_of_the_true_class_as_each_peer() -> None:
    peers, labels = peers_logits()
    [[target], *_] = min_logits(peers, labels)
    probability = target.softmax(1).gather(1, labels[:, None])
    for peer in peers:
        assert bool((probability >= peer.softmax(1).gather(1, labels[:, None]) - 1e-12).all())


def kd_by_hand(target: str, peers: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return the KD term at temperature 2, peer by peer."""
    constant = [peer.detach() for peer in peers]
    if target == "others":
        pairs = permutations(range(len(peers)), 2)
        return sum(kd_loss(peers[peer], constant[other], 2.0) for peer, other in pairs) / (len(peers) - 1)
    if target == "mean":
        teacher = sum(constant) / len(constant)
    else:
        rows = torch.arange(len(labels))
        teacher = torch.stack([peer - peer[rows, labels][:, None] for peer in constant]).amin(0)
    return sum(kd_loss(peer, teacher, 2.0) for peer in peers)


@pytest.mark.parametrize("target", TARGETS)
def test_kd_term_and_its_gradients_are_those_towards_constant_targets(target: str) -> None:
    module = make("mutual", networks=THREE, target=target, temperature=2.0, joint_ce_weight=0.0, joint_kd_weight=0.0)
    peers, labels = peers_logits(classes=4)
    outputs = [NetworkOutput(peer, [], [], None) for peer in peers]
    actual = module.terms(outputs, outputs, labels)["loss_kd"]
    expected = kd_by_hand(target, peers, labels)
    torch.testing.assert_close(actual, expected)
    for first, second in zip(torch.autograd.grad(actual, peers), torch.autograd.grad(expected, peers), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("target", ["mean", "min"])
def test_joint_kd_uses_the_target_of_each_branch(target: str) -> None:
    module = make("mutual", target=target, temperature=2.0)
    images, labels = BATCH
    with torch.no_grad():
        inputs = module.network.transforms(images)
        outputs = [peer.outputs(inputs) for peer in module.networks]
        terms = module.terms(outputs, outputs, labels)
        joint_labels = module.network.transforms.joint_labels(labels)
        branches = zip(*(output.joint_logits for output in outputs), strict=True)
        expected = sum(kd_by_hand(target, [*peers], joint_labels) for peers in branches)
        class_labels = module.network.transforms.class_labels(labels)
        torch.testing.assert_close(terms["loss_joint_kd"], expected)
        heads = [output.logits for output in outputs]
        torch.testing.assert_close(terms["loss_kd"], kd_by_hand(target, heads, class_labels))


def test_unknown_target_names_the_choices() -> None:
    with pytest.raises(UsageError, match=r"target.*others, mean, min"):
        MutualModule(["resnet8", "resnet8"], target="max")


@pytest.mark.parametrize("target", TARGETS)
def test_target_trains_and_returns_with_its_checkpoint(target: str, tmp_path: Path) -> None:
    module = make("mutual", target=target, lr=1e-3)
    trainer(tmp_path).fit(module, loader(), loader())
    again = MutualModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert again.target == target


def test_ensemble_accuracy_is_that_of_the_mean_logits() -> None:
    module = make("mutual", networks=THREE)
    fit = trainer()
    fit.validate(module, loader(), verbose=False)
    with torch.no_grad():
        logits = torch.stack([peer.eval().outputs(BATCH[0]).logits for peer in module.networks]).mean(0)
    expected = (logits.argmax(1) == BATCH[1]).float().mean()
    assert fit.callback_metrics["val/ensemble_acc"] == expected


def test_table_shows_peers_ensemble_and_parameters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"networks": ["resnet8", "resnet14"], "num_classes": 10}
    run("fit", module="MutualModule", model={"init_args": options})
    run("fit", module="BaselineModule")
    run("test", "--ckpt_path", "last", module="MutualModule", model={"init_args": options})
    row = json.loads(Path("runs/MutualModule/result.json").read_text())
    metrics = row["metrics"]
    first, second = (
        sum(weight.numel() for weight in network.without_branches.parameters())
        for network in make("mutual", num_classes=10).networks
    )
    assert row["parameters"]["deployed"] == [first, second]
    assert row["parameters"]["trained"] > first + second  # with branches
    assert "ensemble_acc" in json.loads(Path("runs/MutualModule/test.json").read_text())

    table = groups(collect(Path("runs")))
    [mutual] = [record for record in records(table) if record["first_peer_mean"] is not None]
    accuracies = [100 * metrics[f"val/peer{peer}_acc"] for peer in (1, 2)]
    assert mutual["first_peer_mean"] == pytest.approx(accuracies[0])
    assert mutual["best_peer_mean"] == pytest.approx(max(accuracies))
    assert mutual["last_mean"] == pytest.approx(sum(accuracies) / 2)
    assert mutual["ensemble_mean"] == pytest.approx(100 * metrics["val/ensemble_acc"])
    [cells] = [line for line in all_lines(table) if line["first peer"]]
    assert cells["M deployed"] == f"{first / 1e6:.2f} or {second / 1e6:.2f}"
    alone = [group for group in table if group.rows[0]["folder"].endswith("BaselineModule")]
    assert not {"first peer", "best peer", "ensemble", "M trained", "M deployed"} & lines(alone)[0].keys()

    capsys.readouterr()
    main(["report", "runs"])
    assert "best peer" in capsys.readouterr().out
