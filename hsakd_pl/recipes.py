"""Write the paper's experiments into a folder, a configuration of ``fit`` each, as ``configs/`` holds them.

Without a folder: list them, with the accuracy in the paper.
"""

import re
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from hsakd_pl.errors import UsageError

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
# The first recipes are those whose names begin with it; cifar100 and stl10 are the defaults of modules and of probes.
SETTINGS = """
    recipes      cifar100/teacher_frozen cifar100      imagenet      stl10      tinyimagenet      digits   images
    data         CIFAR100                CIFAR100      ImageNet      STL10      TinyImageNet      Digits   ImageFolder
    root         data                    data          data/imagenet data/stl10 data/tinyimagenet data     data/images
    epochs       100                     240           100           100        100               8        240
    lr           0.05                    0.05          0.1           0.1        0.1               0.05     0.05
    nesterov     true                    true          false         true       true              true     true
    weight_decay 0.0005                  0.0005        0.0001        0.0        0.0               0.0005   0.0005
    milestones   [30,60,90]              [150,180,210] [30,60,90]    [30,60,90] [30,60,90]        [6]      [150,180,210]
    batch_size   64                      64            256           64         64                64       64"""
# Row of a table; then, over its columns: file, module and title of a recipe, options of its model and of its data
JOINT = "network: {student}; teacher: {teacher}; teacher_weights: runs/{folder}/teacher_joint_{teacher}/last.ckpt"
HINTON = "; transform_images: false; joint_kd_weight: 0; kd_weight: 0.9; ce_weight: 0.1; temperature: 4.0"
FROZEN = "network: {teacher}; freeze_backbone: true; weights: "
PROBE = "network: {student}; weights: runs/cifar100/student_joint_{teacher}-{student}/last.ckpt; knn: 20"
# fmt: off
KINDS = (
    ("Student", "baseline_{student}", "Baseline", "{student} trained alone", "network: {student}"),
    ("Teacher", "baseline_{teacher}", "Baseline", "{teacher} trained alone", "network: {teacher}"),
    ("Teacher", "teacher_frozen_{teacher}", "Teacher", "Branches on the frozen, trained {teacher} (Teacher)",
     FROZEN + "runs/{folder}/baseline_{teacher}/last.ckpt"),
    ("torchvision", "teacher_frozen_{teacher}", "Teacher", "Branches on torchvision's frozen {teacher}",
     FROZEN + "weights/{file}"),
    ("Teacher*", "teacher_joint_{teacher}", "Teacher", "{teacher} and its branches trained jointly (Teacher*)",
     "network: {teacher}"),
    ("Digits", "teacher_joint_{teacher}", "Teacher", "Joint {teacher} teacher on scikit-learn's handwritten digits",
     "network: {teacher}"),
    ("HSAKD", "student_frozen_{teacher}-{student}", "Student", "{student} distilled from the frozen {teacher} (HSAKD)",
     JOINT.replace("_joint", "_frozen")),
    ("HSAKD*", "student_joint_{teacher}-{student}", "Student", "{student} distilled from the joint {teacher} (HSAKD*)",
     JOINT),
    *((f"{part}%", f"fewshot_{part}_{{teacher}}-{{student}}", "Student",
       f"{{student}} distilled with {part} % of the training images (HSAKD*)",
       JOINT, f"train_fraction: {part / 100}") for part in (25, 50, 75, 100)),
    ("KD", "kd_{teacher}-{student}", "Student",
     "{student} by plain knowledge distillation (Hinton et al. 2015; T = 4, 0.1 CE + 0.9 KD as in CRD)",
     JOINT.replace("teacher_joint", "baseline") + HINTON),
    ("class-kd", "ablation_class_kd_{teacher}-{student}", "Student",
     "Ablation: class logits alone are distilled, on all rotations", JOINT + "; joint_kd_weight: 0"),
    ("joint-kd", "ablation_joint_kd_{teacher}-{student}", "Student",
     "Ablation: joint logits alone are distilled", JOINT + "; kd_weight: 0"),
    ("Mutual", "mutual_{student}-{student}", "Mutual", "Two {student} that teach each other",
     "networks: [{student}, {student}]"),
    *((row, f"{folder}/probe_{{student}}", "LinearProbe",
       f"Linear probe on {row} of the {{student}} that was distilled from {{teacher}} (HSAKD*)", PROBE)
      for row, folder in (("STL-10", "stl10"), ("TinyImageNet", "tinyimagenet"))),
)
# fmt: on


SMALL_LR = ("mobilenetv2", "shufflenetv1", "shufflenetv2")  # lr 0.01 where one of these is trained on CIFAR-100


class Recipe(NamedTuple):
    """A configuration: what it is, the accuracy in the paper or "", its column of SETTINGS, and its text."""

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
                file, *rest = (template.format(folder=folder, **column) for template in templates)
                name = file if "/" in file else f"{folder}/{file}"
                yield name, _recipe(name, paper, *rest)


def _recipe(name: str, paper: str, module: str, title: str, model: str, data: str = "") -> Recipe:
    setting = next(column for column in columns(SETTINGS) if name.startswith(column["recipes"]))
    usual = {**columns(SETTINGS)[3 if module == "LinearProbe" else 1], "root": "data"}
    if setting["data"] == "CIFAR100" and name.endswith(SMALL_LR):
        setting["lr"] = "0.01"

    def part(path: str, given: str, *keys: str) -> str:
        numbers = [f"{key}: {setting[key]}".replace(",", ", ") for key in keys if setting[key] != usual[key]]
        lines = "".join(f"\n    {option}" for option in [*filter(None, given.split("; ")), *numbers])
        return f"\n  class_path: hsakd_pl.{path}\n  init_args:{lines}" if lines else f" {{class_path: hsakd_pl.{path}}}"

    title = title.replace("_imagenet", "")
    text = f"# {title}; paper: {paper}\n" if paper else f"# {title}\n"
    text += f"model:{part(module + 'Module', model, 'lr', 'nesterov', 'weight_decay', 'milestones')}\n"
    text += f"data:{part(setting['data'] + 'DataModule', data, 'root', 'batch_size')}\n"
    text += f"trainer: {{max_epochs: {setting['epochs']}, default_root_dir: runs/{name}}}\n"
    return Recipe(title, paper, setting, text)


RECIPES = dict(_recipes())
PAIRS = tuple((column["teacher"], column["student"]) for column in columns(TABLES["cifar100 pairs"]))
TEACHERS = tuple(dict.fromkeys(teacher for teacher, _ in PAIRS))
PEERS = tuple(column["student"] for column in columns(TABLES["cifar100 mutual"]))


def recipe_of(configs: Sequence[str]) -> str | None:
    """The recipe whose name one of these files bears, ``.../cifar100/baseline_resnet20.yaml`` for example."""
    names = ["/".join(Path(config).with_suffix("").parts[-2:]) for config in configs]
    return next((name for name in names if name in RECIPES), None)


def files() -> dict[str, str]:
    """What ``configs/`` holds: path -> text of each recipe, and of each overlay for a machine in ``trainer/``."""
    overlays = {f"trainer/{path.name}": path.read_text() for path in Path(__file__).parent.glob("runs/trainer/*.yaml")}
    return {f"{name}.yaml": recipe.text for name, recipe in RECIPES.items()} | overlays


def command(parser: ArgumentParser, args: list[str]) -> None:
    """List the recipes, or write them; UsageError before any file that differs is lost."""
    parser.add_argument("folder", type=Path, nargs="?", help="where to write, for example configs")
    parser.add_argument("--overwrite", action="store_true", help="replace files that differ")
    asked = parser.parse_args(args)
    if asked.folder is None:
        for name, recipe in RECIPES.items():
            print(f"{name:<66} {recipe.paper:<13} {recipe.title}")
        return
    texts = {asked.folder / path: text for path, text in files().items()}
    differing = [str(path) for path, text in texts.items() if path.exists() and path.read_text() != text]
    if differing and not asked.overwrite:
        raise UsageError(f"not overwritten, since it differs: {', '.join(differing)}; --overwrite replaces it")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(*(f"replaced {path}" for path in differing), f"{len(texts)} files are in {asked.folder}", sep="\n")
