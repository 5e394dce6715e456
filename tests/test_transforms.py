"""Test transformations other than rotations on the command line: teacher, student, test and resume on the digits."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small import error_of, run

from hsakd_pl import FLIPS, Transforms, create_network, load_weights

NAMES = {"flips": 2, "colours": 6, "rotations*flips": 8}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["main.py"])


def fit(module: str, folder: str, epochs: int, *options: str, **arguments: Any) -> dict[str, Any]:
    trainer = {"max_epochs": epochs, "limit_train_batches": 3, "limit_val_batches": 1, "default_root_dir": folder}
    run("fit", *options, module=module, model={"init_args": arguments}, trainer=trainer)
    return torch.load(Path(folder, "last.ckpt"), weights_only=True)


@pytest.mark.parametrize("name", [pytest.param("flips", marks=pytest.mark.nightly), "colours", "rotations*flips"])
def test_transforms_work_from_teacher_to_resumed_student(name: str) -> None:
    saved = fit("TeacherModule", "teacher", 1, transforms=name)["state_dict"]
    assert saved["networks.0.branches.0.head.fc.bias"].shape == (10 * NAMES[name],)
    student = {"teacher": "resnet8", "teacher_weights": "teacher/last.ckpt", "network": "resnet14", "transforms": name}
    whole = fit("StudentModule", "whole", 2, **student)
    fit("StudentModule", "parts", 1, **student)
    resumed = fit("StudentModule", "parts", 2, "--ckpt_path", "last", **student)
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(resumed[part], whole[part], rtol=0, atol=0)
    tested = {"default_root_dir": "tested", "limit_test_batches": 1}
    run("test", "--ckpt_path", "whole/last.ckpt", module="StudentModule", model={"init_args": student}, trainer=tested)
    row = json.loads(Path("tested/test.json").read_text())
    assert {"acc", "branch1_joint", "branch3_class"} <= set(row)


@pytest.mark.parametrize("module", ["StudentModule", "MutualModule"])
def test_incompatible_or_unknown_transforms_raise(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(create_network("resnet8", 10, transforms=FLIPS).state_dict(), "flips.pth")
    arguments = {"StudentModule": {"teacher": "resnet8", "teacher_weights": "flips.pth"}}.get(
        module, {"networks": ["resnet8", "resnet8"], "transforms": "mirrors"}
    )
    message = error_of(capsys, lambda: fit(module, "refused", 1, **arguments))
    assert (
        "(20, 64)" if module == "StudentModule" else "'mirrors' is neither one of rotations, flips, colours"
    ) in message


def test_custom_transforms_load_by_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("shears.py").write_text(
        "from hsakd_pl import Transforms\nSHEARS = Transforms(3, lambda images, m: images.roll(m, 3))\n"
    )
    monkeypatch.syspath_prepend(".")
    fit("TeacherModule", "teacher", 1, transforms="shears.SHEARS")
    assert (
        load_weights(
            create_network("resnet8", 10, transforms=Transforms(3, lambda images, m: images)), "teacher/last.ckpt"
        ).num_joint_classes
        == 30
    )
    images = {"init_args": {"predict_dir": "images"}}
    Path("images").mkdir()
    Image.new("RGB", (16, 16)).save("images/one.png")
    model = {"init_args": {"transforms": "shears.SHEARS", "weights": "teacher/last.ckpt"}}
    run("predict", module="TeacherModule", model=model, data=images)
    with Path("runs/TeacherModule/predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["agreement"]) in (0.33, 0.67, 1.0)
