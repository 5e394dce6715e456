"""Test that networks are used for the classes, the normalisation and the image size that they have learnt."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import trainer
from torch import Tensor

from hsakd_pl import (
    BaselineModule,
    HSAKDModule,
    LinearProbeModule,
    MutualModule,
    StudentModule,
    TeacherModule,
    create_network,
    load_weights,
)
from hsakd_pl.data import Description, FeatureDataModule, ImageDataModule
from hsakd_pl.data.augment import PadCropFlip, normalise
from hsakd_pl.data.splits import Split
from hsakd_pl.errors import UsageError
from hsakd_pl.export.student import Student, save
from hsakd_pl.methods import CRDModule, FitNetModule, KDModule, SSKDModule, SSKDProjectionModule
from hsakd_pl.methods.sskd import ProjectedTeacher
from hsakd_pl.networks import Network
from hsakd_pl.ops import COLOURS, FLIPS, ROTATIONS

NAMES = ["ant", "bee", "cow"]
DATA = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))  # mean and std
LEARNED = ((0.1, 0.5, 0.2), (0.5, 0.4, 0.6))
PIXELS = torch.randint(256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Pictures(ImageDataModule):
    """Six random pictures of three classes."""

    num_classes = 3
    train_transform = PadCropFlip(padding=1)

    def __init__(self, names: list[str] = NAMES, statistics: Any = DATA, repeats: int = 1, **options: Any) -> None:
        super().__init__(batch_size=3, **options)
        self.names = names
        self.mean, self.std = statistics
        self.repeats = repeats
        self.image_size = 8 * repeats

    def read(self, train: bool) -> Split:
        return Split(PIXELS.repeat(1, 1, self.repeats, self.repeats), torch.arange(6) % 3)

    def read_class_names(self) -> list[str]:
        return self.names


def saved(
    folder: Path,
    network: Network,
    names: list[str] = NAMES,
    statistics: Any = LEARNED,
    image_size: int = 8,
) -> str:
    """Write a checkpoint of a network that describes its data, and return its path."""
    description = Description(names, image_size, image_size, *statistics)
    path = folder / f"{len([*folder.iterdir()])}.ckpt"
    torch.save({"state_dict": network.state_dict(), "data": description.saved()}, path)
    return str(path)


def fitted(module: HSAKDModule, data: Any = None, **options: Any) -> HSAKDModule:
    trainer(limit_train_batches=1, limit_val_batches=0, **options).fit(module, datamodule=data or Pictures())
    return module


def normalised(statistics: Any = DATA) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    return normalise(PIXELS, mean, std)


def teacher_of(transforms: Any = ROTATIONS, branches: bool = True) -> Network:
    torch.manual_seed(0)
    return create_network("resnet8", 3, branches, transforms).eval()


def by_name(folder: Path, fast: bool = False) -> HSAKDModule:
    weights = saved(folder, teacher_of())
    return StudentModule("resnet8", "resnet8", teacher_weights=weights, num_classes=3, fast=fast)


def by_flips(folder: Path) -> HSAKDModule:
    weights = saved(folder, teacher_of(FLIPS))
    return StudentModule("resnet8", "resnet8", teacher_weights=weights, num_classes=3, transforms="flips")


def by_colours(folder: Path) -> HSAKDModule:
    weights = saved(folder, teacher_of(COLOURS))
    return StudentModule("resnet8", "resnet8", teacher_weights=weights, num_classes=3, transforms="colours")


def of_loaded_object(folder: Path) -> HSAKDModule:
    teacher = load_weights(create_network("resnet8", 3), saved(folder, teacher_of()))
    return StudentModule("resnet8", teacher, num_classes=3)


def of_exported_student(folder: Path) -> HSAKDModule:
    teacher = Student(teacher_of(branches=False), NAMES, 8, 8, *LEARNED)
    return KDModule("resnet8", teacher, num_classes=3)


def of_exported_file(folder: Path) -> HSAKDModule:
    save(Student(teacher_of(branches=False), NAMES, 8, 8, *LEARNED), folder)
    return KDModule("resnet8", "resnet8", teacher_weights=str(folder / "model.safetensors"), num_classes=3)


def of_described_object(folder: Path) -> HSAKDModule:
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    teacher.description = Description(NAMES, 8, 8, *LEARNED)  # type: ignore[assignment]
    return KDModule("resnet8", teacher, num_classes=3)


def of_fitted_module(folder: Path) -> HSAKDModule:
    teacher = fitted(TeacherModule(teacher_of(), num_classes=3), Pictures(statistics=LEARNED))
    return StudentModule("resnet8", teacher, num_classes=3)


def of_regressor(folder: Path) -> HSAKDModule:
    weights = saved(folder, teacher_of(branches=False))
    return FitNetModule("resnet8", "resnet8", teacher_weights=weights, num_classes=3, image_size=8)


def of_contrast(folder: Path) -> HSAKDModule:
    weights = saved(folder, teacher_of(branches=False))
    return CRDModule("resnet8", "resnet8", teacher_weights=weights, num_classes=3, image_size=8, negatives=2)


def of_projection(folder: Path, names: list[str] = NAMES, statistics: Any = LEARNED) -> HSAKDModule:
    teacher = teacher_of(branches=False)
    projected = ProjectedTeacher(teacher, 64)
    return SSKDModule(
        "resnet8",
        "resnet8",
        teacher_weights=saved(folder, teacher),
        projection_weights=saved(folder, projected, names, statistics),
        num_classes=3,
        image_size=8,
    )


TAUGHT: list[Callable[[Path], HSAKDModule]] = [
    by_name,
    by_flips,
    by_colours,
    of_loaded_object,
    of_exported_student,
    of_exported_file,
    of_described_object,
    of_fitted_module,
    of_regressor,
    of_contrast,
    of_projection,
]


@pytest.mark.parametrize("make", TAUGHT)
def test_teacher_sees_images_normalised_as_it_has_learnt(
    make: Callable[[Path], HSAKDModule], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = make(tmp_path)
    with caplog.at_level("INFO"):
        fitted(module)
    assert isinstance(module, StudentModule)
    transforms = module.network.transforms if module.views > 1 else FLIPS.__class__(1, FLIPS.apply)
    outputs = module.teacher(transforms(normalised(DATA)))
    expected = module.teacher.network.outputs(transforms(normalised(LEARNED)))
    torch.testing.assert_close(outputs.logits, expected.logits)
    torch.testing.assert_close(outputs.joint_logits, expected.joint_logits)
    assert "The teacher's images are normalised with mean (0.1, 0.5, 0.2)" in caplog.text


def test_faster_fit_adapts_the_same_images(tmp_path: Path) -> None:
    torch.manual_seed(1)
    slow = by_name(tmp_path)
    torch.manual_seed(1)
    fast = by_name(tmp_path, fast=True)
    fast.load_state_dict(slow.state_dict())
    losses = []
    for module in (slow, fast):
        run = trainer(limit_train_batches=1, limit_val_batches=0)
        run.fit(module, datamodule=Pictures(augment=False, seed=0))
        losses.append(run.callback_metrics["train/loss_joint_kd"])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    different = StudentModule("resnet8", slow.teacher.network, num_classes=3, fast=False)  # type: ignore[union-attr]
    assert different.teacher.adapter is None


def test_teacher_of_another_image_size_sees_resized_images(tmp_path: Path) -> None:
    weights = saved(tmp_path, teacher_of(), statistics=DATA, image_size=16)
    module = fitted(StudentModule("resnet8", "resnet8", teacher_weights=weights, num_classes=3))
    sizes: list[int] = []
    assert isinstance(module, StudentModule)
    module.teacher.network.backbone.stem.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))  # type: ignore[union-attr,func-returns-value]
    module.teacher(normalised())
    assert sizes == [16]


def test_teacher_of_the_same_images_sees_the_students_bitwise(tmp_path: Path) -> None:
    weights = saved(tmp_path, teacher_of(), statistics=DATA)
    module = fitted(StudentModule("resnet8", "resnet8", teacher_weights=weights, num_classes=3))
    assert isinstance(module, StudentModule)
    images = normalised()
    assert torch.equal(module.teacher(images).logits, module.teacher.network.outputs(images).logits)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224", "lcnet_050"])
def test_timm_teacher_sees_the_normalisation_of_its_pretrained_cfg(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    if name != "lcnet_050":
        teacher = timm.create_model(name, num_classes=3)
        config = teacher.pretrained_cfg
        module = KDModule("resnet8", teacher, num_classes=3)
    else:
        network = create_network(f"timm:{name}", 3, branches=False)
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        config = network.pretrained_cfg
        module = KDModule(
            "resnet8", f"timm:{name}", num_classes=3, teacher_weights=str(tmp_path / "weights.pth"), image_size=64
        )
    fitted(module, Pictures(repeats=8))
    adapter = module.teacher.adapter
    assert adapter is not None
    size = 224 if config.get("fixed_input_size") else 8
    adapted = adapter(normalised())
    assert adapted.shape[-2:] == (size, size)
    own = normalised((config["mean"], config["std"]))
    expected = torch.nn.functional.interpolate(own, (size, size), mode="bilinear")
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-4)


def as_teacher(path: str) -> HSAKDModule:
    return StudentModule("resnet8", "resnet8", teacher_weights=path, num_classes=3)


def as_teacher_object(path: str) -> HSAKDModule:
    return StudentModule("resnet8", load_weights(create_network("resnet8", 3), path), num_classes=3)


def as_frozen_backbone(path: str) -> HSAKDModule:
    return TeacherModule("resnet8", freeze_backbone=True, weights=path, num_classes=3)


def as_initial_weights(path: str) -> HSAKDModule:
    return BaselineModule("resnet8", weights=path, num_classes=3)


def as_peers(path: str) -> HSAKDModule:
    return MutualModule(["resnet8", "resnet8"], weights=path, num_classes=3)


def as_projected(path: str) -> HSAKDModule:
    return SSKDProjectionModule("resnet8", weights=path, num_classes=3, image_size=8)


def as_initial_object(path: str) -> HSAKDModule:
    return BaselineModule(load_weights(create_network("resnet8", 3), path), num_classes=3)


def as_peer_objects(path: str) -> HSAKDModule:
    return MutualModule([create_network("resnet8", 3), load_weights(create_network("resnet8", 3), path)], num_classes=3)


USES = [
    as_initial_object,
    as_peer_objects,
    as_teacher,
    as_teacher_object,
    as_frozen_backbone,
    as_initial_weights,
    as_projected,
]


@pytest.mark.parametrize("names", [["bee", "ant", "cow"], ["ant", "bee", "dog"]], ids=["order", "content"])
@pytest.mark.parametrize("use", USES)
def test_network_of_other_classes_is_refused(
    use: Callable[[str], HSAKDModule], names: list[str], tmp_path: Path
) -> None:
    module = use(saved(tmp_path, teacher_of(), names))
    with pytest.raises(UsageError, match=f"{', '.join(names)}, the data have ant, bee, cow"):
        fitted(module)


def test_peers_of_other_classes_are_refused(tmp_path: Path) -> None:
    weights = {f"networks.{peer}.{key}": w for peer in range(2) for key, w in teacher_of().state_dict().items()}
    description = Description(NAMES[::-1], 8, 8, *DATA).saved()
    torch.save({"state_dict": weights, "data": description}, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="cow, bee, ant, the data have ant, bee, cow"):
        fitted(as_peers(str(tmp_path / "last.ckpt")))


@pytest.mark.parametrize(
    ("names", "statistics", "message"),
    [(NAMES[::-1], LEARNED, "cow, bee, ant, the data have"), (NAMES, DATA, "train the projection head again")],
)
def test_projection_head_of_other_images_is_refused(
    names: list[str], statistics: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fitted(of_projection(tmp_path, names, statistics))


def test_weights_of_other_classes_start_a_new_head(tmp_path: Path) -> None:
    path = saved(tmp_path, teacher_of(branches=False), ["car", "bus", "van"])
    fitted(BaselineModule("resnet8", weights=path, num_classes=3, new_head=True))
    fitted(LinearProbeModule("resnet8", weights=path, num_classes=3, source_classes=3))


def test_numbers_in_place_of_names_are_accepted(tmp_path: Path) -> None:
    fitted(as_teacher(saved(tmp_path, teacher_of(), ["0", "1", "2"])))
    fitted(as_teacher(saved(tmp_path, teacher_of())), Pictures(names=[]))


def test_loaded_object_with_new_head_learns_new_classes(tmp_path: Path) -> None:
    path = saved(tmp_path, teacher_of(), ["car", "bus", "van"])
    network = load_weights(create_network("resnet8", 3), path, new_head=True)
    fitted(BaselineModule(network, num_classes=3))


@pytest.mark.parametrize("kind", ["test", "validate"])
def test_evaluated_weights_are_given_the_images_they_have_learnt(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path, teacher_of())
    data = Pictures()
    getattr(trainer(), kind)(as_initial_weights(path), datamodule=data, verbose=False)
    assert (data.mean, data.std) == LEARNED
    with pytest.raises(UsageError, match="was trained on the classes ant, bee, cow, the data have cow, bee, ant"):
        getattr(trainer(), kind)(as_initial_weights(path), datamodule=Pictures(NAMES[::-1]), verbose=False)


def probe(path: str, **options: Any) -> HSAKDModule:
    return LinearProbeModule("resnet8", weights=path, num_classes=3, source_classes=3, **options)


@pytest.mark.parametrize("use", [as_frozen_backbone, probe, as_projected])
def test_data_are_normalised_as_a_frozen_network_has_learnt(use: Callable[[str], HSAKDModule], tmp_path: Path) -> None:
    data = Pictures()
    module = fitted(use(saved(tmp_path, teacher_of())), data)
    assert (data.mean, data.std) == LEARNED
    assert torch.equal(data.on_after_batch_transfer((PIXELS,), 0)[0], normalised(LEARNED))
    assert module.description is not None
    assert (module.description.mean, module.description.std) == LEARNED  # in checkpoints and exports


def test_features_and_published_probes_are_normalised_by_option(tmp_path: Path) -> None:
    path = saved(tmp_path, teacher_of())
    module = probe(path)
    data = FeatureDataModule(Pictures(augment=False), module.encode)  # type: ignore[attr-defined]
    fitted(module, data)
    assert (data.images.mean, data.images.std) == LEARNED
    published = Pictures()
    fitted(probe(path, network_normalisation=False), published)
    assert (published.mean, published.std) == DATA


def test_initial_weights_of_another_normalisation_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fitted(as_initial_weights(saved(tmp_path, teacher_of(branches=False))))
    assert caplog.text.count("were trained on images normalised with mean (0.1, 0.5, 0.2)") == 1


def test_weights_without_description_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(teacher_of().state_dict(), tmp_path / "weights.pth")
    with caplog.at_level("INFO"):
        fitted(as_teacher(str(tmp_path / "weights.pth")))
    assert caplog.text.count("does not say which classes and images it was trained on") == 1


@pytest.mark.parametrize("names", [["ant", "bee", "zebu"], ["aphid", "bee", "cow"], ["bee", "cow", "ox"]])
def test_run_resumed_with_renamed_classes_is_refused(names: list[str], tmp_path: Path) -> None:
    run = trainer(tmp_path, limit_val_batches=0)
    run.fit(BaselineModule("resnet8", num_classes=3), datamodule=Pictures())
    again = trainer(max_epochs=2)
    with pytest.raises(UsageError, match=f"ant, bee, cow, the data have {', '.join(names)}"):
        again.fit(
            BaselineModule("resnet8", num_classes=3), datamodule=Pictures(names), ckpt_path=tmp_path / "last.ckpt"
        )


def test_run_resumed_with_another_normalisation_logs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, limit_val_batches=0).fit(BaselineModule("resnet8", num_classes=3), datamodule=Pictures())
    again = trainer(max_epochs=2, limit_val_batches=0)
    data = Pictures(statistics=LEARNED)
    with caplog.at_level("INFO"):
        again.fit(BaselineModule("resnet8", num_classes=3), datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert "were normalised with mean (0.5, 0.4, 0.3) and std (0.2, 0.25, 0.3), from now on with" in caplog.text


def test_evaluation_normalises_as_the_network_has_learnt(tmp_path: Path) -> None:
    module = fitted(BaselineModule("resnet8", num_classes=3), Pictures(statistics=LEARNED))
    data = Pictures()
    trainer().test(module, datamodule=data, verbose=False)
    assert (data.mean, data.std) == LEARNED
    with pytest.raises(UsageError, match="ant, bee, cow, the data have cow, bee, ant"):
        trainer().test(module, datamodule=Pictures(NAMES[::-1]), verbose=False)


@pytest.mark.parametrize(("stored", "found"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_teacher_knows_its_classes_in_any_unicode_form(stored: str, found: str, tmp_path: Path) -> None:
    names = [[unicodedata.normalize(form, name) for name in ("Ångström", "café", "한국")] for form in (stored, found)]
    fitted(as_teacher(saved(tmp_path, teacher_of(), names[0])), Pictures(names[1]))
    swapped = saved(tmp_path, teacher_of(), names[0][::-1])
    with pytest.raises(UsageError, match="trained on the classes"):
        fitted(as_teacher(swapped), Pictures(names[1]))
