"""The runs, pictures and tables that are attacked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attacks.processes import completed

PICTURES = 60
TABLE = """method,recipe,class,options,data,resnet14-resnet8
teacher,digits/baseline_{teacher},hsakd_pl.BaselineModule,,,99.0
KD,digits/kd_{teacher}-{student},hsakd_pl.methods.KDModule,image_size: 16,,95.25
SP,digits/sp_{teacher}-{student},hsakd_pl.methods.SimilarityModule,image_size: 16,,-; sp_weight: 100.0
"""
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.accelerator=cpu"]


def config(seed: int = 0) -> dict[str, Any]:
    """Return the configuration of a run of one epoch on the digits."""
    return {
        "seed_everything": seed,
        "model": {"class_path": "hsakd_pl.TeacherModule", "init_args": {"network": "resnet8"}},
        "data": {"class_path": "hsakd_pl.DigitsDataModule", "init_args": {"num_workers": 0}},
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        },
    }


def trained(folder: Path, seed: int = 0) -> Path:
    """Train and test a run; return its folder."""
    folder.mkdir(parents=True)
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(config(seed)))
    placed = ["--config", str(path), "--trainer.default_root_dir", str(folder)]
    log = folder.with_suffix(".log")
    completed(["fit", *placed], folder.parent, log)
    completed(["test", *placed, "--ckpt_path", "last"], folder.parent, log)
    return folder


def pictures(folder: Path) -> Path:
    """Write pictures of several sizes; return their folder."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(PICTURES):
        side = 200 + 10 * number
        Image.fromarray(draw.integers(256, size=(side, side, 3), dtype=np.uint8)).save(folder / f"{number:02d}.jpg")
    return folder
