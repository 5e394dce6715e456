"""What the user asks for, and what of it goes to the module, the data and the trainer."""

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.data import SyntheticDataModule
from hsakd_pl import CIFAR100DataModule
from hsakd_pl.data import ImageDataModule


@dataclass(frozen=True)
class Settings:
    """One run's settings; what is measured of a loop is ``blocks`` times ``steps`` steps after ``warmup`` ones."""

    device: str
    batch_size: int = 64
    steps: int = 20
    warmup: int = 10
    blocks: int = 3
    precision: str | None = None
    compile: bool = False
    compile_options: dict[str, Any] | None = None
    data: str | None = None
    images: int = 50_000

    @property
    def torch_device(self) -> torch.device:
        """The device to train on."""
        return torch.device(self.device, 0) if self.device == "cuda" else torch.device(self.device)

    @property
    def module_options(self) -> dict[str, Any]:
        """Arguments of every module, only those that differ from its defaults."""
        options = {"compile": self.compile, "compile_options": self.compile_options}
        return {name: value for name, value in options.items() if value}

    @property
    def autocast(self) -> bool:
        """Whether a loop without a trainer has to switch mixed precision on by itself."""
        return self.precision == "bf16-mixed"

    @property
    def data_config(self) -> dict[str, Any]:
        """The data as a configuration of the command line has them under ``data``."""
        if self.data is None:
            args, data = {"images": self.images}, SyntheticDataModule
            return {
                "class_path": f"{data.__module__}.{data.__name__}",
                "init_args": {**args, "batch_size": self.batch_size},
            }
        return {
            "class_path": "hsakd_pl.CIFAR100DataModule",
            "init_args": {"root": self.data, "batch_size": self.batch_size},
        }

    def data_module(self) -> ImageDataModule:
        """The data, read."""
        options = self.data_config["init_args"]
        data = SyntheticDataModule(**options) if self.data is None else CIFAR100DataModule(**options)
        data.setup("fit")
        return data

    @property
    def trainer_config(self) -> dict[str, Any]:
        """The trainer's arguments that differ from the defaults of ``python main.py fit``."""
        accelerator = {"cuda": "gpu"}.get(self.device, self.device)
        options: dict[str, Any] = {"accelerator": accelerator, "devices": 1}
        return options if self.precision is None else {**options, "precision": self.precision}
