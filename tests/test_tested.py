"""Test the files written by ``test``, compared with the logits themselves."""

import base64
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import run
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from hsakd_pl import BaselineModule, DigitsDataModule, MutualModule, TeacherModule
from hsakd_pl.records.details import confused_pairs, project, reliability

PEERS = {"init_args": {"networks": ["resnet8", "resnet14"]}}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    results, details = (json.loads((folder / f"{name}.json").read_text()) for name in ("test", "test_details"))
    return results, details


def digits() -> tuple[Tensor, Tensor]:
    """Return all 540 test images, normalised, and their labels."""
    data = DigitsDataModule(num_workers=0)
    data.setup("test")
    images, labels = zip(*(data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()), strict=True)
    return torch.cat(images), torch.cat(labels)


@torch.no_grad()
def test_test_details_equal_metrics_of_the_logits() -> None:
    run(
        "fit",
        module="TeacherModule",
        model={"init_args": {"lr": 0.02}},
        trainer={"limit_train_batches": 19, "max_epochs": 3},
    )
    folder = run("test", "--ckpt_path", "last", module="TeacherModule")
    results, details = read(folder)
    images, labels = digits()
    network = TeacherModule.load_from_checkpoint(folder / "last.ckpt").eval().network
    logits, joint_logits = network.outputs(network.transforms(images))[:2]
    logits = logits[:540]
    right = logits.argmax(1) == labels
    assert right.float().mean() > 0.15 and len(logits.argmax(1).unique()) > 3  # something was learnt
    accuracies = {"acc": right, "acc_top5": (logits.topk(5).indices == labels[:, None]).any(1)}
    for number, joint in enumerate(joint_logits, 1):
        summed = joint.unflatten(1, (10, 4)).sum(2)
        accuracies[f"branch{number}_class"] = summed.argmax(1) == labels.repeat(4)
        rotations = torch.arange(4).repeat_interleave(540)
        accuracies[f"branch{number}_joint"] = joint.argmax(1) == 4 * labels.repeat(4) + rotations
    for name, correct in accuracies.items():
        assert results[name] == pytest.approx(correct.double().mean().item(), abs=1e-5), name
    ece = MulticlassCalibrationError(10, n_bins=15, norm="l1")(logits.softmax(1), labels)
    assert results["ece"] == pytest.approx(ece.item(), abs=1e-5) and results["ece"] > 0.01
    assert results["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    assert (results["split"], results["images"], results["limited"]) == ("test", 540, {})
    assert results["checkpoint"].endswith("last.ckpt")
    assert results["sha256"] == hashlib.sha256((folder / "last.ckpt").read_bytes()).hexdigest()
    for true, predicted, count in details["confused"]:
        assert count == int(((labels == true) & (logits.argmax(1) == predicted)).sum()) > 0
    assert sum(full[0] for full in details["reliability"] if full) == 540
    gaps = [full[0] * abs(full[1] - full[2]) / 540 for full in details["reliability"] if full]
    assert sum(gaps) == pytest.approx(results["ece"], abs=1e-5)  # the diagram matches the number
    assert details["embedding"]["labels"] == labels.tolist() and len(details["embedding"]["points"]) == 540

    example = details["example"]
    shown = network.outputs(network.transforms(images[:1]))
    by_view = [network.transforms.view_logits(joint, range(4)).flatten(0, 1) for joint in shown.joint_logits]
    assert [*example["heads"]] == ["class head", "branch 1", "branch 2", "branch 3"]
    for rows, head in zip(example["heads"].values(), [shown.logits, *by_view], strict=True):
        for row, probabilities in zip(rows, head.softmax(1), strict=True):
            best = probabilities.topk(3)
            assert [each[0] for each in row] == best.indices.tolist()
            assert [each[1] for each in row] == pytest.approx(best.values.tolist(), abs=1e-4)
    upright, turned, *_ = (picture(text) for text in example["pictures"])
    assert np.array_equal(np.rot90(upright), turned) and len(example["pictures"]) == 4
    data = DigitsDataModule(num_workers=0)
    data.setup("test")
    assert np.array_equal(upright, data.splits["test"].images[0].permute(1, 2, 0))


def picture(text: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@torch.no_grad()
def test_test_reports_each_peer_and_their_mean() -> None:
    limits = {"limit_train_batches": 5, "limit_test_batches": 2}
    run("fit", module="MutualModule", model=PEERS, trainer=limits)
    folder = run("test", "--ckpt_path", "last", module="MutualModule", model=PEERS, trainer=limits)
    results, details = read(folder)
    assert (results["images"], results["limited"]) == (128, {"limit_test_batches": 2})
    images, labels = (part[:128] for part in digits())
    heads = [
        peer.outputs(images).logits for peer in MutualModule.load_from_checkpoint(folder / "last.ckpt").eval().networks
    ]
    for name in ("acc", "ece", "peer1_branch3_joint"):
        assert 0 <= results[name] <= 1
    for name in ("acc", "ece", "nll"):
        assert results[name] == pytest.approx((results[f"peer1_{name}"] + results[f"peer2_{name}"]) / 2, abs=1e-5)
    for peer, logits in enumerate(heads, 1):
        ece = MulticlassCalibrationError(10, n_bins=15, norm="l1")(logits.softmax(1), labels)
        assert results[f"peer{peer}_ece"] == pytest.approx(ece.item(), abs=1e-5)
    assert sum(full[0] for full in details["reliability"] if full) == 256


def test_test_accepts_weight_file_and_skips_branch_metrics() -> None:
    folder = run("fit")
    torch.save(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"], "weights.pt")
    weights = {"init_args": {"weights": "weights.pt", "branch_metrics_every": 0}}
    results, details = read(run("test", model=weights, trainer={"limit_test_batches": 1}))
    assert results["checkpoint"] == "weights.pt"
    assert results["sha256"] == hashlib.sha256(Path("weights.pt").read_bytes()).hexdigest()
    assert not [name for name in results if "branch" in name] and [*details["example"]["heads"]] == ["class head"]


def test_second_test_replaces_first_and_trial_writes_nothing() -> None:
    random = {"init_args": {"weights": "random"}}
    folder = run("test", model=random, trainer={"fast_dev_run": True})
    assert not list(Path().rglob("test*.json"))
    for batches in (2, 1):
        results, _ = read(run("test", model=random, trainer={"limit_test_batches": batches}))
        assert results["images"] == 64 * batches
    assert (results["checkpoint"], results["sha256"]) == ("random", None)
    assert sorted(path.name for path in folder.glob("test*")) == ["test.json", "test_details.json"]


class Silent(BaselineModule):
    """Return no logits, as users' modules may."""

    def test_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        super().test_step(batch, batch_idx)


def test_module_without_logits_is_named_in_log(caplog: pytest.LogCaptureFixture) -> None:
    options = {"class_path": "test_tested.Silent", "init_args": {"weights": "random"}}
    run("test", model=options, trainer={"limit_test_batches": 1})
    assert "test_step of Silent does not return" in caplog.text
    assert not list(Path().rglob("test*.json"))


def test_confused_pairs_are_sorted_by_frequency() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2])
    predicted = torch.tensor([[1, 1, 0, 0, 2], [1, 2, 0, 0, 2]])
    assert confused_pairs(labels, predicted) == [(0, 1, 3), (1, 0, 2), (0, 2, 1)]


def test_reliability_bins_hold_count_confidence_and_accuracy() -> None:
    bins = reliability(torch.tensor([0.0, 0.01, 0.5, 1.0]), torch.tensor([False, True, True, False]))
    assert bins[0] == (2, pytest.approx(0.005), 0.5) and bins[7] == (1, 0.5, 1.0) and bins[14] == (1, 1.0, 0.0)
    assert [index for index, full in enumerate(bins) if full] == [0, 7, 14]


@pytest.mark.parametrize(
    ("images", "width", "method"), [(1, 8, "PCA"), (19, 1, "PCA"), (20, 8, "t-SNE"), (60, 80, "t-SNE")]
)
def test_projected_embedding_is_two_dimensional_for_any_size(images: int, width: int, method: str) -> None:
    vectors = torch.randn(images, width, generator=torch.Generator().manual_seed(0))
    first, second = (project(vectors, torch.zeros(images, dtype=torch.long)) for _ in range(2))
    assert first == second and first["method"] == method
    assert np.asarray(first["points"]).shape == (images, 2)


@pytest.mark.slow
def test_test_on_two_devices_equals_one() -> None:
    last = run("fit", trainer={"limit_train_batches": 10}) / "last.ckpt"
    one, details = read(run("test", "--ckpt_path", str(last), trainer={"limit_test_batches": 4}))
    spread = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.default_root_dir=two"]
    command = [sys.executable, "-m", "hsakd_pl", "test", "--config", "config.yaml", "--ckpt_path", str(last), *spread]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    two, details_of_two = read(Path("two"))
    assert (two["devices"], two["images"], two["limited"]) == (2, 256, {"limit_test_batches": 4})
    for name in ("acc", "acc_top5", "nll", "ece"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name
    assert details_of_two["confused"] == details["confused"]
    assert sorted(details_of_two["embedding"]["labels"]) == sorted(details["embedding"]["labels"])
