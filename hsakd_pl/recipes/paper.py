"""The experiments of the paper, with its numbers: top-1 in percent, mean +- standard deviation over runs."""

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from hsakd_pl.recipes.recipe import Recipe, make_recipe

# Table 1: a pair of networks per line; the teacher resnet50 as in the published code (79.34 in the paper)
TABLE_1 = list(csv.DictReader(StringIO(Path(__file__).with_name("table_1.csv").read_text())))
# Two equal networks that teach each other: network -> accuracy
MUTUAL = {
    "wrn_40_2": "82.58 +- 0.21",
    "wrn_40_1": "76.67 +- 0.41",
    "resnet56": "78.16 +- 0.56",
    "resnet32x4": "84.91 +- 0.19",
    "vgg13": "80.44 +- 0.05",
    "mobilenetv2": "78.85 +- 0.13",
    "shufflenetv1": "78.34 +- 0.03",
    "shufflenetv2": "79.98 +- 0.12",
}
# HSAKD* of resnet56 to resnet20: percentage of the training images -> accuracy
FEW_SHOT = {25: "68.50 +- 0.24", 50: "72.18 +- 0.41", 75: "73.26 +- 0.11", 100: "73.73 +- 0.10"}
# Joint logits alone, wrn_40_2 to wrn_16_2: Fig. 3
JOINT_KD = "77.11"
# Linear probes of the mobilenetv2 that vgg13 taught: folder, data set, accuracy
TRANSFER = (("stl10", "STL-10", "74.66"), ("tinyimagenet", "TinyImageNet", "42.57"))

PAIRS = tuple((pair["teacher"], pair["student"]) for pair in TABLE_1)
TEACHERS = tuple(dict.fromkeys(teacher for teacher, _ in PAIRS))
PEERS = tuple(MUTUAL)
# Torchvision's weight files
RESNET34_FILE = "resnet34-b627a593.pth"
RESNET50_FILE = "resnet50-0676ba61.pth"


def _recipes() -> Iterator[Recipe]:
    """Yield the recipes, in the order in which ``hsakd recipes`` lists them."""
    yield from _cifar100_pairs()
    for network, accuracy in MUTUAL.items():
        yield _mutual("cifar100", network, accuracy)
    for percentage, accuracy in FEW_SHOT.items():
        yield _few_shot(percentage, accuracy)
    yield from _ablations()
    yield from _probes()
    yield from _imagenet()
    yield make_recipe(
        "digits/teacher_joint_resnet20",
        title="Joint resnet20 teacher on scikit-learn's handwritten digits",
        module="hsakd_pl.TeacherModule",
        options={"network": "resnet20"},
    )
    yield from _own_images()


def _cifar100_pairs() -> Iterator[Recipe]:
    folder = "cifar100"
    for pair in TABLE_1:
        yield _baseline(folder, pair["student"], pair["Student"])
    for pair in TABLE_1:
        yield _baseline(folder, pair["teacher"], pair["Teacher"])
    for pair in TABLE_1:
        teacher = pair["teacher"]
        yield make_recipe(
            f"{folder}/teacher_frozen_{teacher}",
            title=f"Branches on the frozen, trained {teacher} (Teacher)",
            module="hsakd_pl.TeacherModule",
            options={"network": teacher, "freeze_backbone": True},
            needs={"weights": f"{folder}/baseline_{teacher}"},
            published=pair["Teacher"],
        )
    for pair in TABLE_1:
        yield _joint_teacher(folder, pair["teacher"], pair["Teacher*"])
    for pair in TABLE_1:
        yield _student(folder, "frozen", pair["teacher"], pair["student"], pair["HSAKD"])
    for pair in TABLE_1:
        yield _student(folder, "joint", pair["teacher"], pair["student"], pair["HSAKD*"])
    for pair in TABLE_1:
        yield _hinton(folder, pair["teacher"], pair["student"], pair["KD"])


def _own_images() -> Iterator[Recipe]:
    """Yield the path from the user's own photographs to a student: weights of ImageNet, 224 pixels."""
    teacher = "timm:tf_efficientnet_lite0"
    student = "timm:lcnet_050"
    pretrained = {"weights": "pretrained", "new_head": True}
    data = {"image_size": 224, "mean": "imagenet"}
    yield make_recipe(
        "images/teacher",
        title="A teacher for your own images: EfficientNet-Lite0 with its published weights, and branches",
        module="hsakd_pl.TeacherModule",
        options={"network": teacher, **pretrained, "backbone_lr": 0.005},
        # with which these weights were trained: timm's pretrained_cfg
        data_options=data | {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    )
    yield make_recipe(
        "images/student",
        title="A small student, LCNet 0.5 with its published weights, distilled from images/teacher",
        module="hsakd_pl.StudentModule",
        options={"network": student, **pretrained, "teacher": teacher},
        needs={"teacher_weights": "images/teacher"},
        data_options=data,
    )
    yield make_recipe(
        "images/alone",
        title="The student of images/student trained alone, to compare with",
        module="hsakd_pl.BaselineModule",
        options={"network": student, **pretrained},
        data_options=data,
    )


def _few_shot(percentage: int, published: str) -> Recipe:
    return make_recipe(
        f"cifar100/fewshot_{percentage}_resnet56-resnet20",
        title=f"resnet20 distilled with {percentage} % of the training images (HSAKD*)",
        module="hsakd_pl.StudentModule",
        options={"network": "resnet20", "teacher": "resnet56"},
        needs={"teacher_weights": "cifar100/teacher_joint_resnet56"},
        data_options={"train_fraction": percentage / 100},
        published=published,
    )


def _ablations() -> Iterator[Recipe]:
    """Yield students that learn from one kind of logits only, wrn_40_2 to wrn_16_2."""
    needs = {"teacher_weights": "cifar100/teacher_joint_wrn_40_2"}
    yield make_recipe(
        "cifar100/ablation_class_kd_wrn_40_2-wrn_16_2",
        title="Ablation: class logits alone are distilled, on all rotations",
        module="hsakd_pl.StudentModule",
        options={"network": "wrn_16_2", "teacher": "wrn_40_2", "joint_kd_weight": 0},
        needs=needs,
    )
    yield make_recipe(
        "cifar100/ablation_joint_kd_wrn_40_2-wrn_16_2",
        title="Ablation: joint logits alone are distilled",
        module="hsakd_pl.StudentModule",
        options={"network": "wrn_16_2", "teacher": "wrn_40_2", "kd_weight": 0},
        needs=needs,
        published=JOINT_KD,
    )


def _probes() -> Iterator[Recipe]:
    """Yield a linear probe of each student; the published ones are those of vgg13's mobilenetv2."""
    students = [pair for pair in PAIRS if pair != ("resnet50", "mobilenetv2")]
    for folder, data_set, accuracy in TRANSFER:
        for teacher, student in students:
            yield make_recipe(
                f"{folder}/probe_{student}",
                title=f"Linear probe on {data_set} of the {student} that was distilled from {teacher} (HSAKD*)",
                module="hsakd_pl.LinearProbeModule",
                options={"network": student, "knn": 20, "network_normalisation": False},  # as published
                needs={"weights": f"cifar100/student_joint_{teacher}-{student}"},
                published=accuracy if student == "mobilenetv2" else "",
            )


def _imagenet() -> Iterator[Recipe]:
    """Yield the experiments on ImageNet: top-1 / top-5 in percent."""
    folder = "imagenet"
    teacher = "resnet34_imagenet"
    student = "resnet18_imagenet"
    yield _baseline(folder, student, "69.75 / 89.07")
    yield _torchvision_teacher(teacher, RESNET34_FILE, "73.31 / 91.42")
    yield _joint_teacher(folder, teacher, "75.48 / 92.67")
    yield _student(folder, "frozen", teacher, student, "72.16 / 90.85")
    yield _student(folder, "joint", teacher, student, "72.39 / 91.00")
    yield _mutual(folder, student, "71.49")
    yield _torchvision_teacher("resnet50_imagenet", RESNET50_FILE, "")
    yield _joint_teacher(folder, "resnet50_imagenet", "")


def _baseline(folder: str, network: str, published: str) -> Recipe:
    return make_recipe(
        f"{folder}/baseline_{network}",
        title=f"{network} trained alone",
        module="hsakd_pl.BaselineModule",
        options={"network": network},
        published=published,
    )


def _torchvision_teacher(network: str, file: str, published: str) -> Recipe:
    return make_recipe(
        f"imagenet/teacher_frozen_{network}",
        title=f"Branches on torchvision's frozen {network}",
        module="hsakd_pl.TeacherModule",
        options={"network": network, "freeze_backbone": True, "weights": f"weights/{file}"},
        published=published,
    )


def _joint_teacher(folder: str, network: str, published: str) -> Recipe:
    return make_recipe(
        f"{folder}/teacher_joint_{network}",
        title=f"{network} and its branches trained jointly (Teacher*)",
        module="hsakd_pl.TeacherModule",
        options={"network": network},
        published=published,
    )


def _student(folder: str, kind: str, teacher: str, student: str, published: str) -> Recipe:
    """Make the recipe of a student whose teacher is of a ``kind``: frozen (HSAKD) or joint (HSAKD*)."""
    method = {"frozen": "HSAKD", "joint": "HSAKD*"}[kind]
    return make_recipe(
        f"{folder}/student_{kind}_{teacher}-{student}",
        title=f"{student} distilled from the {kind} {teacher} ({method})",
        module="hsakd_pl.StudentModule",
        options={"network": student, "teacher": teacher},
        needs={"teacher_weights": f"{folder}/teacher_{kind}_{teacher}"},
        published=published,
    )


def _hinton(folder: str, teacher: str, student: str, published: str) -> Recipe:
    method = "plain knowledge distillation (Hinton et al. 2015; T = 4, 0.1 CE + 0.9 KD as in CRD)"
    return make_recipe(
        f"{folder}/kd_{teacher}-{student}",
        title=f"{student} by {method}",
        module="hsakd_pl.StudentModule",
        options={
            "network": student,
            "teacher": teacher,
            "transform_images": False,
            "joint_kd_weight": 0,
            "kd_weight": 0.9,
            "ce_weight": 0.1,
            "temperature": 4.0,
        },
        needs={"teacher_weights": f"{folder}/baseline_{teacher}"},
        published=published,
    )


def _mutual(folder: str, network: str, published: str) -> Recipe:
    return make_recipe(
        f"{folder}/mutual_{network}-{network}",
        title=f"Two {network} that teach each other",
        module="hsakd_pl.MutualModule",
        options={"networks": [network, network]},
        published=published,
    )


RECIPES = {recipe.name: recipe for recipe in _recipes()}
