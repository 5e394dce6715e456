"""Test exported students: folders, cards, int8, loading, and what is refused."""

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import small
import torch
from data.test_images import TRANSPARENT_FILES, WIDE_FILES, tiff, turned
from data.test_images import saved as pictured
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from torch import Tensor
from torch.torch_version import TorchVersion

from hsakd_pl import BaselineModule, DigitsDataModule, create_network, export_student, load_student, open_image
from hsakd_pl.cli.main import main
from hsakd_pl.data import Description
from hsakd_pl.data.augment import normalise
from hsakd_pl.errors import UsageError
from hsakd_pl.export import Student, student_from_checkpoint
from hsakd_pl.export.formats import ONNX_MINIMUM_TORCH, onnx_runner, quantise
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.networks.keys import published_state_dict

DIGITS = DigitsDataModule().description
KNOWN = Description(["ant", "bee", "cow", "dog"], 16, 18, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
ALONE = """
import sys
from importlib.machinery import ModuleSpec
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            return ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Refuse())
"""


def digits() -> Tensor:
    """Return digits as uint8 (32, 3, 16, 16)."""
    data = DigitsDataModule(num_workers=0)
    return data.read(train=False).images[:32]  # type: ignore[return-value]


def saved(folder: Path, kind: str = "teacher", describe: bool = True, **options: Any) -> tuple[Path, HSAKDModule]:
    """Return a checkpoint after one training step, and the module in eval mode."""
    module = small.make(kind, **options)
    trainer = small.trainer(folder)
    trainer.fit(module, small.loader())
    path = folder / "last.ckpt"
    if describe:
        content = torch.load(path, weights_only=True)
        torch.save(content | {"data": KNOWN.saved()}, path)
    return path, module.eval()


def logits(module: HSAKDModule, images: Tensor, peer: int = 0) -> Tensor:
    """Return the logits of a module for uint8 images."""
    statistics = (torch.tensor(each)[:, None, None] for each in (KNOWN.mean, KNOWN.std))
    with torch.no_grad():
        return module.classify(peer, normalise(images, *statistics))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export all formats of a student trained for two steps, next to its run's folder."""
    if torch.__version__ < ONNX_MINIMUM_TORCH:
        pytest.skip(f"the format onnx needs PyTorch {ONNX_MINIMUM_TORCH} or newer")
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = small.run("fit", module="TeacherModule")
        small.run("test", "--ckpt_path", "last", module="TeacherModule")
        main(["export", str(run), "out", "--int8", "dynamic"])
    return folder / "out"


@pytest.mark.parametrize("kind", small.MODULES)
def test_student_from_checkpoint_equals_module(kind: str, tmp_path: Path) -> None:
    path, module = saved(tmp_path, kind)
    student = student_from_checkpoint(path, peer=1 if kind == "mutual" else None)
    assert torch.equal(student(digits()), logits(module, digits()))
    assert not student.training and student.class_names == KNOWN.class_names
    assert not [key for key in student.state_dict() if "branches" in key]


def test_export_takes_best_peer_unless_named(tmp_path: Path) -> None:
    path, module = saved(tmp_path, "mutual")
    content = torch.load(path, weights_only=True)
    content["callbacks"]["ResultWriter"] = {"metrics": {"val/peer1_acc": 0.1, "val/peer2_acc": 0.2}}
    torch.save(content, path)
    assert torch.equal(student_from_checkpoint(path)(digits()), logits(module, digits(), 1))
    assert torch.equal(student_from_checkpoint(path, peer=1)(digits()), logits(module, digits(), 0))
    with pytest.raises(UsageError, match="peer must be a number from 1 to 2, got 3"):
        student_from_checkpoint(path, peer=3)


def test_unnamed_network_must_be_passed_to_export(tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(4))

    network = make()
    network(torch.zeros(2, 3, 8, 8))
    module = BaselineModule(network, num_classes=4)
    small.trainer(tmp_path).fit(module, small.loader())
    with pytest.raises(UsageError, match=r"last\.ckpt does not name its network: give network"):
        student_from_checkpoint(tmp_path / "last.ckpt")
    other = make()
    other(torch.zeros(2, 3, 8, 8))
    known = Description(KNOWN.class_names, 8, 8, KNOWN.mean, KNOWN.std)
    formats = ("safetensors", "pt2")
    export_student(tmp_path / "last.ckpt", tmp_path / "out", formats, network=other, description=known)
    with pytest.raises(UsageError, match="does not name its network"):
        load_student(tmp_path / "out")
    again = make()
    again(torch.zeros(2, 3, 8, 8))
    images = digits()[..., :8, :8]
    assert torch.equal(load_student(tmp_path / "out", again)(images), logits(module.eval(), images))


def test_checkpoint_without_description_requires_description(tmp_path: Path) -> None:
    path, module = saved(tmp_path, "baseline", describe=False)
    with pytest.raises(UsageError, match="does not describe its data: give description"):
        student_from_checkpoint(path)
    student = student_from_checkpoint(path, description=KNOWN)
    assert torch.equal(student(digits()), logits(module, digits()))


def test_published_weight_file_exports_with_network_name(tmp_path: Path) -> None:
    network = create_network("resnet8", 4).eval()
    torch.save({"net": published_state_dict(network), "acc": 70.0, "epoch": 3}, tmp_path / "teacher.pth.tar")
    found = export_student(tmp_path / "teacher.pth.tar", tmp_path / "out", ["safetensors"], "resnet8", KNOWN)
    assert [file.difference for file in found.files] == [pytest.approx(0, abs=1e-5)]
    assert load_student(tmp_path / "out").network.name == "resnet8"


def test_exported_formats_match_pytorch_for_any_batch_size(exported: Path) -> None:
    names = {"model.safetensors", "model.pt2", "model.onnx", "model.int8.onnx"}
    names |= {"config.json", "export.json", "README.md"}
    assert {path.name for path in exported.iterdir()} == names
    images = digits() / 255
    student = student_from_checkpoint(exported.parent / "runs/TeacherModule")
    graph, session = torch.export.load(exported / "model.pt2").module(), onnx_runner(exported / "model.onnx")
    for count in (1, 3, 32):
        wanted = student(images[:count])
        for run in (load_student(exported), graph, session):
            torch.testing.assert_close(run(images[:count]), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(student(digits()), student(images))


@small.needs_onnx
def test_exported_graphs_accept_uint8(tmp_path: Path) -> None:
    path, module = saved(tmp_path)
    export_student(path, tmp_path / "out", input="uint8")
    graph = torch.export.load(tmp_path / "out/model.pt2").module()
    for run in (graph, onnx_runner(tmp_path / "out/model.onnx"), load_student(tmp_path / "out")):
        torch.testing.assert_close(run(digits()), logits(module, digits()), rtol=0, atol=1e-4)
    assert json.loads((tmp_path / "out/config.json").read_text())["input"] == "uint8"
    assert "astype" not in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("refused", "run"),
    [
        (
            {"hsakd_pl"},
            "import torch; logits = torch.export.load('model.pt2').module()(torch.tensor(images)).detach().numpy()",
        ),
        (
            {"hsakd_pl", "torch", "onnx", "pytorch_lightning"},
            "import onnxruntime; logits = onnxruntime.InferenceSession('model.onnx').run(None, {'input': images})[0]",
        ),
    ],
    ids=["pt2", "onnx"],
)
def test_exported_graphs_run_without_the_package(exported: Path, tmp_path: Path, refused: set[str], run: str) -> None:
    images = (digits() / 255).numpy()
    np.save(tmp_path / "images.npy", images)
    code = ALONE.format(refused=refused) + "import numpy; images = numpy.load(sys.argv[1])\n" + run
    code += "\nnumpy.save(sys.argv[2], logits)\nassert 'hsakd_pl' not in sys.modules\n"
    files = [str(tmp_path / name) for name in ("images.npy", "logits.npy")]
    subprocess.run([sys.executable, "-I", "-c", code, *files], cwd=exported, check=True)
    wanted = load_student(exported)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.load(files[1]), wanted, rtol=0, atol=1e-4)


def test_model_card_describes_training_and_parses_on_hub(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    card = ModelCard(text)
    row, test = (
        json.loads((exported.parent / "runs/TeacherModule" / name).read_text()) for name in ("result.json", "test.json")
    )
    [result] = [each for each in card.data.eval_results if each.metric_name == "test accuracy"]
    assert result.metric_value == pytest.approx(test["acc"], abs=1e-4)
    for fact in (
        row["protocol"]["hash"],
        f"{100 * test['acc']:.2f} %",
        "CC BY 4.0",
        "78,042",
        "arxiv.org/abs/2107.13715",
    ):
        assert fact in text, fact
    assert card.data.license == "other" and card.data.library_name == "hsakd_pl"


def test_model_card_lists_differences_from_recipe(exported: Path, tmp_path: Path) -> None:
    (row,) = exported.parent.rglob("result.json")
    shutil.copytree(row.parent, tmp_path / "run")
    content = json.loads(row.read_text()) | {"recipe": "digits/teacher_joint_resnet20"}
    (tmp_path / "run/result.json").write_text(json.dumps(content))
    export_student(tmp_path / "run/last.ckpt", tmp_path / "out", formats=("safetensors",))
    (line,) = (line for line in (tmp_path / "out/README.md").read_text().splitlines() if line.startswith("| recipe"))
    assert line.startswith("| recipe | digits/teacher_joint_resnet20, ") and ", network resnet8" in line


def test_export_compares_on_a_single_picture(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "baseline")
    Image.fromarray(digits()[0].permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    export_student(path, tmp_path / "out", formats=("pt2",), images=tmp_path)
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    assert program(digits().float() / 255).shape == (len(digits()), 4)


@pytest.mark.slow
def test_model_card_examples_run(exported: Path, tmp_path: Path) -> None:
    Image.fromarray(digits()[3].permute(1, 2, 0).numpy()).save(exported.parent / "picture.png")
    torch_lines, onnx_lines = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    picture = str(exported.parent / "picture.png")
    with_torch, alone = tmp_path / "with_torch.py", ALONE.format(refused={"hsakd_pl", "torch"})
    with_torch.write_text(torch_lines.replace("picture.jpg", picture).replace('"out"', repr(str(exported))))
    found = programs.run(programs.script, str(with_torch))
    assert found.stdout.strip() in DIGITS.class_names, found.stderr
    command = [sys.executable, "-c", alone + onnx_lines.replace("picture.jpg", picture)]
    found_alone = subprocess.run(command, cwd=exported, check=True, capture_output=True, text=True)
    assert found_alone.stdout == found.stdout


def gradient(mode: str) -> Image.Image:
    """Return a picture of 20 x 13 pixels whose every pixel is different."""
    pixels = np.arange(20 * 13 * 3).reshape(13, 20, 3) % 251
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def rotated(mode: str, ending: str, orientation: int) -> Callable[[Path], Path]:
    _, exif = turned(orientation)
    return lambda folder: pictured(folder / f"a.{ending}", gradient(mode), exif=exif)


PICTURES: dict[str, Callable[[Path], Path]] = {
    "rotated jpg": rotated("RGB", "jpg", 6),
    "mirrored png": rotated("RGB", "png", 5),
    "rotated webp": rotated("RGB", "webp", 8),
    "rotated grey tif": rotated("L", "tif", 6),
    "rotated palette tif": rotated("P", "tif", 7),
    "CMYK jpg": lambda folder: pictured(folder / "a.jpg", gradient("CMYK")),
    "rotated CMYK tif": rotated("CMYK", "tif", 8),
    "palette gif": lambda folder: pictured(folder / "a.gif", gradient("P")),
    "black and white": lambda folder: pictured(folder / "a.png", gradient("1")),
    "12 bits": lambda folder: tiff(folder / "a.tif", bytes(range(24)), (4, 4), 12),
    "upright and square": lambda folder: pictured(folder / "a.png", gradient("RGB").resize((11, 11))),
    **{f"transparent {kind}": file for kind, file in TRANSPARENT_FILES.items()},
    **{f"16-bit {kind}": file for kind, file in WIDE_FILES.items()},
}


def check_lines(card: str, folder: Path, picture: Path, student: Student) -> None:
    """Check that the card's lines read a picture, and classify it, as ``predict`` does."""
    expected = student.transform(open_image(picture))
    label = int(student(expected[None]).argmax())
    for lines in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        code = lines.replace("picture.jpg", str(picture)).replace('"out"', repr(str(folder)))
        names: dict[str, Any] = {}
        with redirect_stdout(StringIO()) as printed:
            exec(compile(code, "README.md", "exec"), names)
        pixels = names.get("image")
        if pixels is None:
            pixels = torch.from_numpy(names["pixels"][0] * 255).round().to(torch.uint8)
        assert torch.equal(pixels, expected)
        assert printed.getvalue().strip() == student.class_names[label]


@pytest.mark.parametrize("kind", PICTURES)
def test_lines_of_model_card_read_pictures_as_predict_does(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(exported)
    check_lines((exported / "README.md").read_text(), exported, PICTURES[kind](tmp_path), load_student(exported))


@small.needs_onnx
@pytest.mark.nightly
def test_lines_of_model_card_crop_as_predict_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(create_network("resnet8", 4, branches=False).state_dict(), tmp_path / "weights.pth")
    export_student(tmp_path / "weights.pth", tmp_path / "out", ["safetensors", "onnx"], "resnet8", KNOWN)
    monkeypatch.chdir(tmp_path / "out")
    for size in ((20, 13), (13, 20), (18, 18), (301, 57), (5, 4)):
        picture = pictured(tmp_path / "a.png", gradient("RGB").resize(size))
        check_lines(Path("README.md").read_text(), tmp_path / "out", picture, load_student(tmp_path / "out"))


def test_pictures_of_model_card_need_their_metadata(tmp_path: Path) -> None:
    for kind in ("rotated jpg", "transparent RGBA", "16-bit png"):
        path = PICTURES[kind](tmp_path)
        plain = Image.open(path).convert("RGB")
        assert np.asarray(plain).tolist() != np.asarray(open_image(path)).tolist()


def test_model_card_omits_accuracies_of_other_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = small.run("fit")
    small.run("test", "--ckpt_path", "last")
    content = json.loads((run / "test.json").read_text())
    (run / "test.json").write_text(json.dumps(content | {"weights_digest": "0" * 64}))
    export_student(run, tmp_path / "out", ["safetensors"])
    text = (tmp_path / "out/README.md").read_text()
    assert "test accuracy |" not in text.partition("## Files")[0] and "validation accuracy" in text


@small.needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_int8_is_small_and_reports_accuracy_next_to_float(kind: str, tmp_path: Path) -> None:
    data = DigitsDataModule(num_workers=0)
    module = BaselineModule("resnet8", num_classes=10, lr=0.1)
    small.trainer(tmp_path).fit(module, datamodule=data)
    found = export_student(tmp_path, tmp_path / "out", ["onnx"], int8=kind, data=DigitsDataModule(num_workers=0))
    exact, rounded = found.files
    assert rounded.path.name == "model.int8.onnx" and rounded.megabytes < 0.5 * exact.megabytes
    images, labels = DigitsDataModule().read(train=False)
    for file in found.files:
        correct = onnx_runner(tmp_path / "out" / file.path.name)(images / 255).argmax(1).eq(labels)
        assert file.accuracy == pytest.approx(100 * float(correct.float().mean()), abs=0.3)
    assert exact.accuracy is not None and rounded.accuracy is not None and rounded.accuracy > exact.accuracy - 5
    assert (
        f"| model.int8.onnx | {rounded.megabytes:.2f} |  | {rounded.accuracy:.2f} % |"
        in (tmp_path / "out/README.md").read_text()
    )


@small.needs_onnx
def test_int8_export_without_test_images_is_refused(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with pytest.raises(UsageError, match="int8: its accuracy is measured on a test split"):
        export_student(path, tmp_path / "out", ["onnx"], int8="dynamic")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@small.needs_onnx
@pytest.mark.slow
def test_export_runs_without_teacher_images_and_initial_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from test_description import NAMES, photographs

    photographs(tmp_path / "photos")
    for name in ("resnet14", "resnet8"):
        torch.save(create_network(name, len(NAMES)).state_dict(), f"{name}.pth")
    options = {"network": "resnet8", "weights": "resnet8.pth", "teacher": "resnet14", "teacher_weights": "resnet14.pth"}
    data = {"class_path": "hsakd_pl.ImageNetDataModule"}
    data["init_args"] = {"root": "photos", "image_size": 16, "num_workers": 0, "batch_size": 4}  # type: ignore[assignment]
    run = small.run("fit", module="StudentModule", data=data, model={"init_args": options})
    for path in [*Path("photos").rglob("*.png"), *Path().glob("*.pth")]:
        path.unlink()
    main(["export", str(run)])
    assert "parts of two photographs" in capsys.readouterr().out
    assert load_student(run / "export").class_names == NAMES
    main(["export", str(run), "--checkpoint", "best", "--formats", "safetensors"])
    names = {"config.json", "export.json", "README.md", "model.safetensors"}
    assert {path.name for path in (run / "export").iterdir()} == names


def test_export_refuses_folder_with_other_files(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("mine")
    with pytest.raises(UsageError, match="is not an export; name another folder"):
        export_student(path, tmp_path / "out", ["safetensors"])
    with pytest.raises(UsageError, match=r"contains last\.ckpt, which is not part of an export"):
        export_student(path, tmp_path, ["safetensors"])
    assert (tmp_path / "out/README.md").read_text() == "mine"


def enlarged(folder: Path, factor: float, *layers: str) -> Path:
    """Return a checkpoint with the weights of some layers multiplied by ``factor``."""
    path, _ = saved(folder, "baseline")
    content = torch.load(path, weights_only=True)
    for key, tensor in content["state_dict"].items():
        if key.endswith(tuple(f"{layer}.weight" for layer in layers)):
            tensor *= factor
    torch.save(content, path)
    return path


@small.needs_onnx
def test_export_with_differing_logits_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    """Use finite weights whose products overflow float32."""
    with pytest.raises(UsageError, match=r"a logit differs from PyTorch's by nan, more than"):
        export_student(enlarged(tmp_path, 1e30, "conv1", "fc"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx_export_with_older_torch_names_needed_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0"))
    message = (
        "formats: onnx needs PyTorch 2.7 or newer, but 2.6.0 is installed; update PyTorch, or leave onnx out of formats"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        export_student(tmp_path / "last.ckpt", tmp_path / "out")


@small.needs_onnx
@pytest.mark.parametrize("factor", [1e3, 1e5])
def test_large_logits_are_compared_by_relative_error(tmp_path: Path, factor: float) -> None:
    files = export_student(enlarged(tmp_path, factor, "fc"), tmp_path / "out").files
    assert [file.path.name for file in files] == ["model.safetensors", "model.pt2", "model.onnx"]


def test_student_follows_hub_conventions(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.from_pretrained(exported)
    student.save_pretrained(tmp_path / "again")
    cards = [ModelCard.load(folder / "README.md") for folder in (tmp_path / "again", exported)]
    assert cards[0].text == cards[1].text and cards[0].data.to_dict() == cards[1].data.to_dict()
    images = digits()
    assert torch.equal(load_student(tmp_path / "again")(images), student(images))
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **options: type("Url", (), {"repo_id": repo_id}))
    pushed: dict[str, set[str]] = {}

    def upload_folder(self: HfApi, repo_id: str, folder_path: str, **options: Any) -> str:
        pushed[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        return repo_id

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    student.push_to_hub("me/student")
    assert pushed == {"me/student": {"config.json", "README.md", "model.safetensors"}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"has no model\.safetensors: export .* with the format safetensors",
        ),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "config.json is not the configuration",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not the configuration of an export"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), r"model\.safetensors cannot be read"),
        (lambda folder: rename_network(folder, "resnet14"), r"model\.safetensors does not fit"),
        (lambda folder: rename_network(folder, "resnet9"), "unknown network 'resnet9'"),
    ],
)
def test_damaged_export_is_refused(exported: Path, tmp_path: Path, damage: Any, message: str) -> None:
    student = load_student(exported)
    student.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_student(tmp_path)


def rename_network(folder: Path, name: str) -> None:
    """Replace the network's name in the configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"network": name}))


@pytest.mark.parametrize("revision", [None, "v1.0", "0123abc"])
def test_student_of_a_revision_is_downloaded(
    exported: Path, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options.get("revision")))
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_student("me/student", revision=revision).class_names
    assert asked == [("me/student", revision)]
    with pytest.raises(UsageError, match=r"revision: .* is a folder here, not a model on the hub"):
        load_student(exported, revision="v1.0")


def test_unavailable_hub_id_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="me/no-such-student is neither a folder here nor a model"):
        load_student("me/no-such-student")


def test_student_refuses_images_of_other_dtypes() -> None:
    student = Student("resnet8", **KNOWN.saved())
    with pytest.raises(UsageError, match=r"images are torch\.int64"):
        student(digits().long())


@pytest.mark.slow
def test_safetensors_export_works_without_optional_libraries(exported: Path) -> None:
    code = ALONE.format(refused={"huggingface_hub", "onnx", "onnxruntime", "onnxscript"}) + (
        "from hsakd_pl import load_student, export_student\n"
        "from hsakd_pl.errors import UsageError\n"
        "student = load_student(sys.argv[1])\n"
        "student.save_pretrained(sys.argv[2])\n"
        "load_student(sys.argv[2])\n"
        "for action in (lambda: student.push_to_hub('me/it'), lambda: load_student('me/it'),\n"
        "               lambda: export_student(sys.argv[3], 'out', ['onnx'])):\n"
        "    try: action()\n"
        "    except UsageError as error: print(error)\n"
    )
    again, run = str(exported.parent / "again"), str(exported.parent / "runs/TeacherModule")
    command = [sys.executable, "-c", code, str(exported), again, run]
    found = subprocess.run(command, cwd=exported.parent, check=True, capture_output=True, text=True)
    assert re.findall(r"hsakd_pl\[\w+\]", found.stdout) == ["hsakd_pl[hub]", "hsakd_pl[hub]", "hsakd_pl[export]"]


def test_export_command_mistakes_are_one_line(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported.parent)
    run = "runs/TeacherModule"
    for options, message in (
        (["nowhere"], "nowhere does not exist"),
        ([run, "--int8", "half"], "int8 must be dynamic or static, got half"),
        ([run, "--input", "int"], "input must be float or uint8, got int"),
        ([run, "--formats", "onnxx"], "onnxx"),
        ([run, "--formts", "onnx"], "formts"),
        ([run, "--checkpoint", "hpc"], "hpc_ckpt"),
        ([run, "--images", "none"], "images: none does not exist"),
        ([run, "--data", "NoSuchModule"], "NoSuchModule"),
        ([run, "--peer", "1"], "peer 1 has no effect"),
        ([run, "--images", "photos", "--data.init_args.root", "x"], "--data.init_args.root has no effect with images"),
    ):
        assert message in small.error_of(capsys, lambda options=options: main(["export", *options, "o"])), options
    assert not Path("o").exists()


OWN = """
import torch.nn as nn
open("imported", "a").close()
def make(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
"""


def test_checkpoint_cannot_run_code_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("theirs.py").write_text(OWN)
    path, _ = saved(tmp_path / "run", "baseline")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"networks": ["theirs.make"]}, path)
    with pytest.raises(UsageError, match=r"a file cannot choose code to import.*network='theirs\.make'"):
        export_student(path, "exported", ["safetensors"])
    folder = tmp_path / "exported"
    Student(create_network("resnet8", 4, branches=False), **KNOWN.saved()).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"network": "theirs.make"}))
    with pytest.raises(UsageError, match="a file cannot choose code to import"):
        load_student(folder)
    assert not Path("imported").exists()


def test_network_by_import_path_must_be_named_on_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("ours.py").write_text(OWN)
    student = Student("ours.make", **KNOWN.saved())
    student.save_pretrained(tmp_path / "exported")
    again = load_student("exported", "ours.make")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(images), student(images))
    module = BaselineModule("ours.make", num_classes=4)
    small.trainer(tmp_path / "run").fit(module, small.loader())
    export_student(tmp_path / "run", "again", ("safetensors", "pt2"), network="ours.make", description=KNOWN)
    assert torch.allclose(load_student("again", "ours.make").network(images), module.eval()(images))


@contextmanager
def full_disk(size: int = 100_000) -> Iterator[None]:
    """Refuse to write files beyond a size, as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@small.needs_onnx
@pytest.mark.parametrize("export_format", ["safetensors", "pt2", "onnx"])
def test_export_onto_a_full_disk_raises_and_keeps_the_earlier_one(export_format: str, tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    folder = tmp_path / "out"
    export_student(path, folder, ["safetensors"])
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UsageError, match="File too large"), full_disk():
        export_student(path, folder, [export_format])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert {file.name for file in tmp_path.iterdir()} == {"out", path.name}


@small.needs_onnx
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_int8_onto_a_full_disk_raises(kind: str, tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    export_student(path, tmp_path / "out", ["onnx"])
    with pytest.raises(UsageError, match=r"int8: onnxruntime cannot write model\.int8\.onnx \("), full_disk():
        quantise(tmp_path / "out/model.onnx", torch.rand(4, 3, 16, 16) if kind == "static" else None)
