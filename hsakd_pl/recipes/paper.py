"""The paper's experiments and numbers, and the configuration of ``fit`` that each of them is."""

import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

# Tables of the paper: top-1 in percent, +- its standard deviation over runs or / top-5, and - where it has no number.
# The first word of a table's name is the folder of its recipes.
TABLES = {
    # Table 1; the teacher resnet50 as in the published code (79.34 in the paper)
    "cifar100 pairs": """
        teacher  wrn_40_2    wrn_40_2    resnet56    resnet32x4  vgg13       resnet50    wrn_40_2     resnet32x4
        student  wrn_16_2    wrn_40_1    resnet20    resnet8x4   mobilenetv2 mobilenetv2 shufflenetv1 shufflenetv2
        Teacher  76.45       76.45       73.44       79.63       74.64       76.34       76.45        79.63
        Teacher* 80.70       80.70       77.20       83.73       78.48       83.85       80.70        83.73
        Student  73.57+-0.23 71.95+-0.59 69.62+-0.26 72.95+-0.24 73.51+-0.26 73.51+-0.26 71.74+-0.35  72.96+-0.33
        KD       75.23       73.90       70.91       73.54       75.21       75.80       75.83        75.43
        HSAKD    77.20+-0.17 77.00+-0.21 72.58+-0.33 77.26+-0.14 77.45+-0.21 78.79+-0.11 78.51+-0.20  79.93+-0.11
        HSAKD*   78.67+-0.20 78.12+-0.25 73.73+-0.10 77.69+-0.05 79.27+-0.12 79.43+-0.24 80.11+-0.32  80.86+-0.15""",
    "cifar100 mutual": """
        student  wrn_40_2    wrn_40_1    resnet56    resnet32x4  vgg13       mobilenetv2 shufflenetv1 shufflenetv2
        Mutual   82.58+-0.21 76.67+-0.41 78.16+-0.56 84.91+-0.19 80.44+-0.05 78.85+-0.13 78.34+-0.03  79.98+-0.12""",
    "cifar100 few-shot": """
        teacher resnet56; student resnet20; 25% 68.50+-0.24; 50% 72.18+-0.41; 75% 73.26+-0.11; 100% 73.73+-0.10""",
    "cifar100 ablation": "teacher wrn_40_2; student wrn_16_2; joint-kd 77.11; class-kd -",  # Fig. 3
    "cifar100 transfer": """
        teacher      wrn_40_2 wrn_40_2   resnet56    resnet32x4  vgg13       wrn_40_2     resnet32x4
        student      wrn_16_2 wrn_40_1   resnet20    resnet8x4   mobilenetv2 shufflenetv1 shufflenetv2
        STL-10       -        -          -           -           74.66       -            -
        TinyImageNet -        -          -           -           42.57       -            -""",
    "imagenet pairs": """
        teacher resnet34_imagenet; student resnet18_imagenet; file resnet34-b627a593.pth; torchvision 73.31/91.42
        Teacher* 75.48/92.67; Student 69.75/89.07; HSAKD 72.16/90.85; HSAKD* 72.39/91.00; Mutual 71.49""",
    "imagenet teachers": "teacher resnet50_imagenet; file resnet50-0676ba61.pth; torchvision -; Teacher* -",
    "digits": "teacher resnet20; Digits -",
    "images": "teacher resnet32x4; student resnet8x4; Teacher* -; HSAKD* -",  # of one's own, by CIFAR-100's recipe
}
# SGD with momentum 0.9; the rate falls to a tenth at each milestone; the batch is of all devices together.
# The first line with which a recipe's name begins counts; cifar100 and stl10 are the defaults of modules and of probes.
SETTINGS = """
    recipes                  data         root              epochs lr   nesterov weight_decay milestones    batch_size
    cifar100/teacher_frozen  CIFAR100     data              100    0.05 true     0.0005       [30,60,90]    64
    cifar100/sskd_projection CIFAR100     data              60     0.05 true     0.0005       [30,45]       64
    cifar100                 CIFAR100     data              240    0.05 true     0.0005       [150,180,210] 64
    classic/teacher_frozen   CIFAR100     data              100    0.05 false    0.0005       [30,60,90]    64
    classic/sskd_projection  CIFAR100     data              60     0.05 false    0.0005       [30,45]       64
    classic                  CIFAR100     data              240    0.05 false    0.0005       [150,180,210] 64
    imagenet                 ImageNet     data/imagenet     100    0.1  false    0.0001       [30,60,90]    256
    stl10                    STL10        data/stl10        100    0.1  true     0.0          [30,60,90]    64
    tinyimagenet             TinyImageNet data/tinyimagenet 100    0.1  true     0.0          [30,60,90]    64
    digits                   Digits       data              8      0.05 true     0.0005       [6]           64
    images                   ImageFolder  data/images       240    0.05 true     0.0005       [150,180,210] 64"""
# Row of a table; then, over its columns: file, module and title of a recipe, options of its model and of its data
JOINT = "network: {student}; teacher: {teacher}; teacher_weights: runs/{folder}/teacher_joint_{teacher}/last.ckpt"
HINTON = "; transform_images: false; joint_kd_weight: 0; kd_weight: 0.9; ce_weight: 0.1; temperature: 4.0"
FROZEN = "network: {teacher}; freeze_backbone: true; weights: "
PROBE = "network: {student}; weights: runs/cifar100/student_joint_{teacher}-{student}/last.ckpt; knn: 20"

KINDS = (
    ("Student", "baseline_{student}", "Baseline", "{student} trained alone", "network: {student}"),
    ("Teacher", "baseline_{teacher}", "Baseline", "{teacher} trained alone", "network: {teacher}"),
    (
        "Teacher",
        "teacher_frozen_{teacher}",
        "Teacher",
        "Branches on the frozen, trained {teacher} (Teacher)",
        FROZEN + "runs/{folder}/baseline_{teacher}/last.ckpt",
    ),
    (
        "torchvision",
        "teacher_frozen_{teacher}",
        "Teacher",
        "Branches on torchvision's frozen {teacher}",
        FROZEN + "weights/{file}",
    ),
    (
        "Teacher*",
        "teacher_joint_{teacher}",
        "Teacher",
        "{teacher} and its branches trained jointly (Teacher*)",
        "network: {teacher}",
    ),
    (
        "Digits",
        "teacher_joint_{teacher}",
        "Teacher",
        "Joint {teacher} teacher on scikit-learn's handwritten digits",
        "network: {teacher}",
    ),
    (
        "HSAKD",
        "student_frozen_{teacher}-{student}",
        "Student",
        "{student} distilled from the frozen {teacher} (HSAKD)",
        JOINT.replace("_joint", "_frozen"),
    ),
    (
        "HSAKD*",
        "student_joint_{teacher}-{student}",
        "Student",
        "{student} distilled from the joint {teacher} (HSAKD*)",
        JOINT,
    ),
    *(
        (
            f"{part}%",
            f"fewshot_{part}_{{teacher}}-{{student}}",
            "Student",
            f"{{student}} distilled with {part} % of the training images (HSAKD*)",
            JOINT,
            f"train_fraction: {part / 100}",
        )
        for part in (25, 50, 75, 100)
    ),
    (
        "KD",
        "kd_{teacher}-{student}",
        "Student",
        "{student} by plain knowledge distillation (Hinton et al. 2015; T = 4, 0.1 CE + 0.9 KD as in CRD)",
        JOINT.replace("teacher_joint", "baseline") + HINTON,
    ),
    (
        "class-kd",
        "ablation_class_kd_{teacher}-{student}",
        "Student",
        "Ablation: class logits alone are distilled, on all rotations",
        JOINT + "; joint_kd_weight: 0",
    ),
    (
        "joint-kd",
        "ablation_joint_kd_{teacher}-{student}",
        "Student",
        "Ablation: joint logits alone are distilled",
        JOINT + "; kd_weight: 0",
    ),
    (
        "Mutual",
        "mutual_{student}-{student}",
        "Mutual",
        "Two {student} that teach each other",
        "networks: [{student}, {student}]",
    ),
    *(
        (
            row,
            f"{folder}/probe_{{student}}",
            "LinearProbe",
            f"Linear probe on {row} of the {{student}} that was distilled from {{teacher}} (HSAKD*)",
            PROBE,
        )
        for row, folder in (("STL-10", "stl10"), ("TinyImageNet", "tinyimagenet"))
    ),
)


# lr 0.01 where one of these is trained on CIFAR-100
SMALL_LR = ("mobilenetv2", "mobilenetv2_stride2", "shufflenetv1", "shufflenetv2")


class Recipe(NamedTuple):
    """A configuration: what it is, the published accuracy or "", its line of SETTINGS, and its text."""

    title: str
    paper: str
    setting: dict[str, str]
    text: str


def columns(table: str) -> list[dict[str, str]]:
    """The columns of a table, each by the names of the rows."""
    rows = [row.split() for row in re.split(r"[;\n]", table.strip())]
    return [dict(zip((row[0] for row in rows), cells, strict=True)) for cells in list(zip(*rows, strict=True))[1:]]


def _recipes() -> Iterator[tuple[str, Recipe]]:
    for table, (row, *templates) in product(TABLES, KINDS):
        for column in columns(TABLES[table]):
            if row in column:
                folder = table.split()[0]
                paper = column[row].strip("-").replace("+-", " +- ").replace("/", " / ")
                file, module, *rest = (template.format(folder=folder, **column) for template in templates)
                name = file if "/" in file else f"{folder}/{file}"
                yield name, make_recipe(name, paper, f"hsakd_pl.{module}Module", *rest)


def setting_of(name: str) -> dict[str, str]:
    """The line of SETTINGS for a recipe, by what its name begins with; that of CIFAR-100 for any other name."""
    head, *lines = (line.split() for line in SETTINGS.strip().splitlines())
    settings = [dict(zip(head, line, strict=True)) for line in lines]
    return next((each for each in settings if name.startswith(each["recipes"])), settings[2])


def make_recipe(name: str, paper: str, module: str, title: str, model: str, data: str = "") -> Recipe:
    """Make the recipe ``name``: the module's class path, then its options and those of its data, as ``a: 1; b: 2``."""
    setting, usual = setting_of(name), {**setting_of("stl10" if "LinearProbe" in module else ""), "root": "data"}
    if setting["data"] == "CIFAR100" and name.endswith(SMALL_LR):
        setting["lr"] = "0.01"

    def part(path: str, given: str, *keys: str) -> str:
        numbers = [f"{key}: {setting[key]}".replace(",", ", ") for key in keys if setting[key] != usual[key]]
        lines = "".join(f"\n    {option}" for option in [*filter(None, given.split("; ")), *numbers])
        return f"\n  class_path: {path}\n  init_args:{lines}" if lines else f" {{class_path: {path}}}"

    title = title.replace("_imagenet", "")
    text = f"# {title}; paper: {paper}\n" if paper else f"# {title}\n"
    text += f"model:{part(module, model, 'lr', 'nesterov', 'weight_decay', 'milestones')}\n"
    text += f"data:{part('hsakd_pl.' + setting['data'] + 'DataModule', data, 'root', 'batch_size')}\n"
    text += f"trainer: {{max_epochs: {setting['epochs']}, default_root_dir: runs/{name}}}\n"
    return Recipe(title, paper, setting, text)


RECIPES = dict(_recipes())
PAIRS = tuple((column["teacher"], column["student"]) for column in columns(TABLES["cifar100 pairs"]))
TEACHERS = tuple(dict.fromkeys(teacher for teacher, _ in PAIRS))
PEERS = tuple(column["student"] for column in columns(TABLES["cifar100 mutual"]))
