"""Test temperatures and early exits that are chosen on validation images, and where they are used."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import small
import torch
import torch.nn.functional as F
from PIL import Image

from hsakd_pl import DigitsDataModule, EmbeddingModule, TeacherModule, export_student
from hsakd_pl.cli.main import main
from hsakd_pl.data import Split
from hsakd_pl.data.augment import normalise
from hsakd_pl.errors import UsageError
from hsakd_pl.export.calibrate import calibrate
from hsakd_pl.export.calibration import (
    EXITS,
    Operation,
    calibrated_logits,
    check_exits,
    choose,
    fit_temperature,
    network_with_branches,
    operations,
    read_calibration,
)
from hsakd_pl.export.checkpoint import read_trained
from hsakd_pl.export.predictor import find_source
from hsakd_pl.networks.cost import multiply_adds_until
from hsakd_pl.networks.exits import exit_logits

DIGITS = {"num_workers": 0, "val_fraction": 0.3, "seed": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a network with branches, trained for a few steps, with its configuration."""
    folder = tmp_path_factory.mktemp("run")
    module = TeacherModule("resnet8", num_classes=10, lr=0.05)
    trainer = small.trainer(folder, limit_train_batches=12, limit_val_batches=0)
    trainer.fit(module, datamodule=DigitsDataModule(**DIGITS))
    data = {"class_path": "hsakd_pl.DigitsDataModule", "init_args": DIGITS | {"seed": None}}
    (folder / "config.yaml").write_text(json.dumps({"seed_everything": 0, "data": data}))
    return folder


def test_temperature_minimises_the_likelihood() -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, 5)
    labels = torch.distributions.Categorical(logits=logits).sample()
    temperature = fit_temperature(3 * logits, labels)
    losses = [float(F.cross_entropy(3 * logits / divisor, labels)) for divisor in (temperature, 2.0, 3.6, 1.0)]
    assert 2 < temperature < 4 and losses[0] == min(losses)


def test_operations_equal_early_exits_image_by_image(run: Path) -> None:
    trained = read_trained(run)
    network = network_with_branches(trained)
    assert network is not None
    images, labels = DigitsDataModule().read(train=False)
    inputs = normalise(images[:40], trained.student.channel_mean, trained.student.channel_std)
    with torch.no_grad():
        for kind, exits in EXITS.items():
            logits = torch.stack([*exit_logits(network, inputs, exits)])
            costs = multiply_adds_until(network, 16, exits)
            for operation in operations(kind, logits, labels[:40], costs)[::25]:
                taken = calibrated_logits(network, operation, inputs)
                accuracy = float(taken.argmax(1).eq(labels[:40]).float().mean())
                assert accuracy == pytest.approx(operation.acc, abs=1e-6)
                assert costs[0] <= operation.multiply_adds <= costs[-1]


def test_choice_is_the_cheapest_or_the_most_accurate() -> None:
    candidates = [
        Operation("cascade", threshold, [1.0, 1.0], accuracy, cost)
        for threshold, accuracy, cost in ((0.0, 0.7, 100), (0.5, 0.8, 200), (0.9, 0.8, 300), (1.0, 0.79, 400))
    ]
    assert choose(candidates, 0.75, None).threshold == 0.5
    assert choose(candidates, None, 350).threshold == 0.5
    assert choose(candidates, None, 150).threshold == 0.0
    with pytest.raises(UsageError, match=r"target-accuracy: 0\.9 is not reached, the most on these images is 0\.8000"):
        choose(candidates, 0.9, None)
    with pytest.raises(UsageError, match="target-macs: no exit needs at most 50 multiply-adds, the least is 100"):
        choose(candidates, None, 50)


def test_calibration_is_used_by_predictions_of_run_and_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["calibrate", str(run), "--target-macs", "1e9"])
    printed = capsys.readouterr().out
    assert "0.3 of the training split of DigitsDataModule" in printed and "at most 1,000,000,000" in printed
    stored = json.loads((run / "calibration.json").read_text())
    exits = read_calibration(stored, "it").exits
    assert exits is not None
    trained = read_trained(run)
    export_student(run, tmp_path / "out", ("safetensors",))
    assert {"branches.safetensors"} < {path.name for path in (tmp_path / "out").iterdir()}
    assert json.loads((tmp_path / "out/config.json").read_text())["calibration"] == stored
    card = (tmp_path / "out/README.md").read_text()
    assert f"softmax(logits / {stored['temperature']})" in card and "exits early" in card

    images = DigitsDataModule().read(train=False).images[:6]
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"pictures/{number}.png")
    network = network_with_branches(trained)
    assert network is not None
    inputs = normalise(images, trained.student.channel_mean, trained.student.channel_std)
    wanted = calibrated_logits(network, exits, inputs).softmax(1).amax(1)
    for source in (run, tmp_path / "out"):
        main(["predict", str(source), str(tmp_path / "pictures"), "--folder", str(tmp_path), "--num_workers", "0"])
        with (tmp_path / "predictions.csv").open(newline="") as file:
            found = [float(row["probability"]) for row in csv.DictReader(file)]
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=0, atol=1e-5)
    assert f"torch, {exits}" in capsys.readouterr().out


def test_temperature_scales_the_probabilities_of_all_runtimes(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, calibration = calibrate(run / "last.ckpt", DigitsDataModule(**DIGITS))
    assert calibration.exits is None and calibration.nll[1] <= calibration.nll[0]
    export = export_student(run, tmp_path / "out", ("safetensors", "onnx"))
    image = DigitsDataModule().read(train=False).images[:1]
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(tmp_path / "0.png")
    wanted = float((export.trained.student(image) / calibration.temperature).softmax(1).amax())
    for runtime in ("torch", "onnxruntime"):
        main(["predict", str(export.folder), str(tmp_path / "0.png"), "--folder", str(tmp_path),
              "--num_workers", "0", "--runtime", runtime])  # fmt: skip
        with (tmp_path / "predictions.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert float(row["probability"]) == pytest.approx(wanted, abs=1e-5), runtime


def test_calibration_of_another_number_of_exits_is_refused(run: Path) -> None:
    network = network_with_branches(read_trained(run))
    assert network is not None
    with pytest.raises(UsageError, match="has 2 temperatures, but the network has 4 exits: calibrate again"):
        check_exits(network, Operation("early_exit", 0.5, [1.0, 1.0], 0.5, 1.0))


def test_export_cannot_name_the_code_of_its_branches(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(run / "last.ckpt", DigitsDataModule(**DIGITS), target_macs=1e9)
    export_student(run, tmp_path / "out", ("safetensors",))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text("open('imported', 'w')")
    config = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(config | {"network": "theirs.make"}))
    monkeypatch.chdir(tmp_path)
    found = find_source("out", "torch", network="resnet8")
    assert found.predictor.exits is not None and not Path("imported").exists()


def test_calibration_of_other_weights_is_ignored(run: Path, tmp_path: Path) -> None:
    calibrate(run / "last.ckpt", DigitsDataModule(**DIGITS))
    stored = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps(stored | {"weights_digest": "0" * 64}))
    export_student(run, tmp_path / "out", ("safetensors",))
    assert "calibration" not in json.loads((tmp_path / "out/config.json").read_text())


def test_images_that_are_not_held_out_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = small.run("fit")
    with pytest.raises(UsageError, match="calibrate: the run validates on its test split"):
        calibrate(folder / "last.ckpt", DigitsDataModule(num_workers=0))
    with pytest.raises(UsageError, match=r"val_fraction is 0\.3, but the run was trained with 0"):
        calibrate(folder / "last.ckpt", DigitsDataModule(**DIGITS))


class Divided(DigitsDataModule):
    """Digits with a validation split of their own."""

    def read_validation(self) -> Split:
        return self.read(train=False).take(range(0, 400, 2))

    @property
    def validated_on(self) -> str:
        return "validation split"


def test_validation_split_of_the_data_calibrates(run: Path, tmp_path: Path) -> None:
    copy = shutil.copy(run / "last.ckpt", tmp_path / "last.ckpt")
    _, calibration = calibrate(copy, Divided(num_workers=0), target_accuracy=0.1)
    assert calibration.images == 200 and calibration.split == "validation split of Divided"


def test_embedding_network_is_not_calibrated(tmp_path: Path) -> None:
    module = EmbeddingModule("resnet8", "resnet14", "random", teacher_mean="data")
    small.trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(module, DigitsDataModule(**DIGITS))
    with pytest.raises(UsageError, match=r"last\.ckpt is an embedding network, which has no probabilities"):
        calibrate(tmp_path / "last.ckpt", DigitsDataModule(**DIGITS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-accuracy", "0.9", "--target-macs", "1"], "are alternatives"),
        (["--target-accuracy", "90"], "target-accuracy must be a fraction above 0 and at most 1"),
        (["--target-macs", "0"], "target-macs must be above 0"),
        (["--target-macs", "5"], "target-macs: no exit needs at most 5 multiply-adds"),
    ],
)
def test_invalid_targets_are_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in small.error_of(capsys, lambda: main(["calibrate", str(run), *arguments]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "weights_digest is missing"),
        ({"weights_digest": "a", "images": 1, "split": "s", "temperature": 0}, "temperature is 0"),
        (
            {
                "weights_digest": "a",
                "images": 1,
                "split": "s",
                "temperature": 1,
                "exits": {
                    "kind": "x",
                    "threshold": 0,
                    "temperatures": [1, 1],
                    "acc": 0,
                    "multiply_adds": 0,
                    "target": "",
                },
            },
            "exits.kind",
        ),
    ],
)
def test_forged_calibrations_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=f"it is not a calibration .*{message}"):
        read_calibration(content, "it")


def test_details_read_branches_by_the_rotation_that_an_image_shows() -> None:
    from hsakd_pl import create_network
    from hsakd_pl.records.details import describe_example

    torch.manual_seed(0)
    network = small.with_statistics(create_network("resnet8", 5))
    image = torch.randn(1, 3, 16, 16)
    heads = describe_example(network, image, 0, None)["heads"]
    with torch.no_grad():
        output = network(network.transforms(image))
    for number, joint_logits in enumerate(output.joint_logits, 1):
        matching = network.transforms.view_logits(joint_logits, range(4))[:, 0].softmax(1)
        summed = network.transforms.class_logits(joint_logits).softmax(1)
        found = [row[0] for row in heads[f"branch {number}"]]
        assert [label for label, _ in found] == matching.argmax(1).tolist()
        assert [probability for _, probability in found] == pytest.approx(matching.amax(1).tolist())
        assert [probability for _, probability in found] != pytest.approx(summed.amax(1).tolist())
