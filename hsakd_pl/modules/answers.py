"""Ask a teacher once: keep its class logits in a folder, from which all later runs on the same batches read them."""

import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.data import ImageDataModule
from hsakd_pl.data.loader import ResumableLoader
from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.fast.kernels.library import library
from hsakd_pl.files import local_path, naming, replacing
from hsakd_pl.files.answers import Answer, AnswerFile, Layout, allocated_bytes
from hsakd_pl.files.system import warn_once
from hsakd_pl.files.weights import weights_digest
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.largest import largest_logits, with_equal_rest
from hsakd_pl.version import __version__

AnswersType = Literal["float32", "float16"]
DTYPES = {"float32": torch.float32, "float16": torch.float16}
TYPES_OF_LOGITS = (torch.float32, torch.bfloat16, torch.float16)  # an answer's tag is a position in it
GIGABYTE = 1e9
FACTS_FILE = "facts.json"


class KeptOutput:
    """The output of a teacher of which the class logits (B, N) alone were kept.

    Any other output raises UsageError.
    """

    def __init__(self, logits: Tensor, reader: str) -> None:
        self.logits = logits
        self.reader = reader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError(
            f"teacher_answers keeps the teacher's class logits alone, but {self.reader} reads its {name}: leave "
            "teacher_answers out"
        )


class TeacherAnswers(pl.Callback):
    """Answer in place of a teacher with the class logits that it gave for the same batch before.

    The training batches of a data module are functions of (seed, epoch, index), so that runs that differ only in method
    or student ask their teacher the same questions. The first run asks it and keeps the logits in a file per epoch; the
    others read them. All that the bits of an answer depend on is part of the name of the files' folder: the teacher's
    weights, layers and inputs, the data with their transforms and seed, precision, device, threads and versions. A
    fingerprint of the batch's images is part of each answer's checksum.

    Args:
        teacher: the teacher.
        folder: folder of all answers.
        dtype: type in which they are kept.
        gigabytes: largest size of the folder, in 10^9 bytes; if it is infinite, free disk space is not checked either.
        top: number of the largest logits of an image that are kept; None keeps all. The first run, too, trains with
            equal logits of all other classes then (:func:`hsakd_pl.modules.largest.with_equal_rest`).
    """

    def __init__(
        self, teacher: Frozen, folder: str | Path, dtype: AnswersType, gigabytes: float, top: int | None = None
    ) -> None:
        self.teacher = teacher
        self.folder = local_path("teacher_answers", folder)
        self.dtype = DTYPES[dtype]
        self.gigabytes = gigabytes
        self.top = top
        self.key: bytes | None = None
        self.layout = Layout(0, 0, 0, np.dtype("<f4"))
        self.rank = 0
        self.world_size = 1
        self.epoch: int | None = None
        self.file: AnswerFile | None = None
        self.keeps = True

    @property
    def active(self) -> bool:
        """Return True inside of a fit."""
        return self.key is not None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Find the folder of this run's answers, and say how large it will be; raises UsageError beyond the limit."""
        self._end()
        loader = trainer.train_dataloader
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule) or not isinstance(loader, ResumableLoader):
            raise UsageError(
                "teacher_answers needs batches that are the same in every run: call fit(datamodule=...) with a data "
                "module of this package, or leave teacher_answers out"
            )
        if module.dtype == torch.float64:
            raise UsageError("teacher_answers keeps at most float32: choose another trainer.precision, or leave it out")
        num_classes = self.teacher.network.num_classes
        if self.top is not None and self.top >= num_classes:
            raise UsageError(
                f"teacher_answers_top is {self.top}, but the teacher has {counted(num_classes, 'class')}: choose "
                "fewer, or leave it out to keep all logits"
            )
        facts = facts_of(self.teacher, data, loader, trainer, self.dtype)
        if self.top is not None:
            facts["largest_logits"] = self.top
        text = json.dumps(facts, indent=1, sort_keys=True)
        key = hashlib.sha256(text.encode()).digest()
        sampler = loader.sampler
        self.rank = sampler.rank
        self.world_size = sampler.world_size
        self.layout = Layout(
            blocks=len(sampler) * sampler.world_size,
            rows=math.ceil(sampler.batch_size / sampler.world_size),
            columns=num_classes if self.top is None else 1,
            dtype=self._row_type(num_classes),
        )
        self.answers = self.folder / key.hex()[:16]
        self._check_space(trainer)
        self._store_facts(trainer, text)
        self.keeps = True
        self.key = key

    def ask(self, images: Tensor, epoch: int, batch_idx: int) -> Tensor:
        """Return the teacher's class logits (B, N) for the images (B, 3, S, S) of a training batch."""
        file = self._file_of(epoch)
        block = batch_idx * self.world_size + self.rank
        question = fingerprint(images)
        answer = file.read(block, question) if file is not None else None
        if answer is not None and answer.tag < len(TYPES_OF_LOGITS):
            return self._logits(answer.rows).to(images.device, TYPES_OF_LOGITS[answer.tag])
        logits = self.teacher(images).logits
        rows = self._rows(logits)
        if file is not None and logits.dtype in TYPES_OF_LOGITS:
            self._keep(file, block, question, Answer(rows, TYPES_OF_LOGITS.index(logits.dtype)))
        return self._logits(rows).to(logits.device, logits.dtype)

    def _row_type(self, num_classes: int) -> np.dtype:
        """Return the type of a value of all logits, or of a row of the largest ones and their classes."""
        number = "<f2" if self.dtype == torch.float16 else "<f4"
        if self.top is None:
            return np.dtype(number)
        index = "<u2" if num_classes <= 2**16 else "<u4"
        return np.dtype([("logits", number, (self.top + 1,)), ("classes", index, (self.top,))])

    def _rows(self, logits: Tensor) -> NDArray[Any]:
        """Return what is kept of logits (B, N); raises UsageError for finite logits that the type cannot hold."""
        values, classes = (logits, None) if self.top is None else largest_logits(logits, self.top)
        kept = values.to(self.dtype)
        if kept.isinf().any() and not logits.isinf().any():
            raise UsageError("teacher_answers_dtype: the teacher's logits exceed float16: choose float32")
        if classes is None:
            return kept.cpu().numpy()
        rows = np.empty((len(logits), 1), self.layout.dtype)
        rows["logits"][:, 0] = kept.cpu().numpy()
        rows["classes"][:, 0] = classes.cpu().numpy()
        return rows

    def _logits(self, rows: NDArray[Any]) -> Tensor:
        """Return logits (B, N) of the type in which they are kept, on the CPU."""
        if self.top is None:
            return torch.from_numpy(rows.copy())
        values = torch.from_numpy(rows["logits"][:, 0].copy())
        classes = torch.from_numpy(rows["classes"][:, 0].astype(np.int64))
        return with_equal_rest(values, classes, self.teacher.network.num_classes)

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        self._close()
        self.key = None

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = None
        self.epoch = None

    def _file_of(self, epoch: int) -> AnswerFile | None:
        """Return the file of an epoch; None where answers are no longer kept."""
        if self.epoch != epoch and self.key is not None:
            self._close()
            self.epoch = epoch
            try:
                self.file = AnswerFile(self.answers / f"epoch{epoch:04}.answers", self.key, self.layout)
            except UsageError as error:
                self._say_unkept(str(error))
        return self.file

    def _keep(self, file: AnswerFile, block: int, question: bytes, answer: Answer) -> None:
        if not self.keeps:
            return
        try:
            file.write(block, question, answer)
        except OSError as error:
            self.keeps = False
            self._say_unkept(f"{file.path}: {error.strerror or error}")

    def _say_unkept(self, reason: str) -> None:
        warn_once(f"{reason}: the teacher's answers are not kept from here on, the results are the same")

    def _check_space(self, trainer: pl.Trainer) -> None:
        """Log the disk space that the answers take; raises UsageError if it exceeds the limit or what is free."""
        epochs = range(trainer.current_epoch, self._last_epoch(trainer))
        batches = min(int(trainer.num_training_batches) * self.world_size, self.layout.blocks)
        needed = len(epochs) * batches * self.layout.block_bytes
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            present = allocated_bytes(self.answers)
            others = allocated_bytes(self.folder) - present
            free = shutil.disk_usage(self.folder).free
        # other processes may be writing there: all ranks decide by the numbers of the first
        present, others, free = trainer.strategy.broadcast((present, others, free))
        share = f"{_gigabytes(min(present, needed))} of them are there" if present else "none of them are there yet"
        part = "" if self.top is None else f", the {counted(self.top, 'largest logit')} of an image each,"
        rank_zero_info(
            f"The teacher's answers{part} take {_gigabytes(needed)} for {counted(len(epochs), 'epoch')} in "
            f"{self.answers}; {share}"
        )
        if math.isinf(self.gigabytes):
            return
        if max(needed, present) + others > self.gigabytes * GIGABYTE:
            raise UsageError(
                f"teacher_answers: {self.folder} would take {_gigabytes(max(needed, present) + others)}, more than "
                f"teacher_answers_gb, {self.gigabytes:g}: raise that, remove folders in it, or name another folder"
            )
        if needed - present > free:
            raise UsageError(
                f"teacher_answers: {self.folder} needs {_gigabytes(needed - present)} more, its disk has "
                f"{_gigabytes(free)} left: name a folder on another disk"
            )

    def _last_epoch(self, trainer: pl.Trainer) -> int:
        """Return the epoch before which the fit ends; raises UsageError if it has no end."""
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            return trainer.max_epochs
        steps = trainer.max_steps
        if steps < 0:
            raise UsageError("teacher_answers takes disk space in every epoch: set trainer.max_epochs")
        return math.ceil(steps * trainer.accumulate_grad_batches / max(1, int(trainer.num_training_batches)))

    def _store_facts(self, trainer: pl.Trainer, text: str) -> None:
        """Write what the answers belong to next to them, for people."""
        path = self.answers / FACTS_FILE
        if trainer.is_global_zero and not path.exists():
            try:
                with replacing(path) as file:
                    file.write(text)
            except UsageError as error:
                self._say_unkept(str(error))


def check_answers(folder: str | None, dtype: str, gigabytes: float, top: int | None) -> None:
    """Raise UsageError for values of the options of a module that are not valid or have no effect."""
    require(dtype in DTYPES, "teacher_answers_dtype", dtype, " or ".join(DTYPES))
    require(gigabytes > 0, "teacher_answers_gb", gigabytes, "above 0")
    require(top is None or top >= 1, "teacher_answers_top", top, "at least 1")
    for option, is_set in (("dtype", dtype != "float32"), ("top", top is not None)):
        if folder is None and is_set:
            raise UsageError(
                f"teacher_answers_{option} has no effect without teacher_answers: set both, or leave it out"
            )


def facts_of(
    teacher: Frozen, data: ImageDataModule, loader: ResumableLoader, trainer: pl.Trainer, dtype: torch.dtype
) -> dict[str, Any]:
    """Return all that the bits of a teacher's answers depend on, as plain data."""
    network = teacher.network
    device = trainer.strategy.root_device
    sampler = loader.sampler
    adapter = teacher.adapter
    inputs = None
    if adapter is not None:
        inputs = [adapter.scale.flatten().tolist(), adapter.shift.flatten().tolist(), adapter.image_size]
    return {
        "teacher": {
            "name": network.name,
            "weights_sha256": weights_digest(network.state_dict()),  # the same in any file
            "layers": hashlib.sha256(_without_addresses(network).encode()).hexdigest(),
            "inputs": inputs,
            "folded": teacher.stand_in is not None,
        },
        "data": {
            "images": data.fingerprints.get("train"),
            "image_size": data.image_size,
            "mean": [float(value) for value in data.mean],
            "std": [float(value) for value in data.std],
            "transform": _without_addresses(data.train_transform) if data.augment else None,
            "seed": sampler.seed,
            "shuffled": sampler.shuffle,
            "samples": sampler.num_samples,
            "batch_size": sampler.batch_size,
            "fractions": [data.train_fraction, data.val_fraction],
        },
        "dtype": str(dtype),
        "precision": str(trainer.precision),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "devices": sampler.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernels": library() is not None,
        "versions": {"hsakd_pl": __version__, "torch": str(torch.__version__)},
    }


def fingerprint(images: Tensor) -> bytes:
    """Return 16 bytes that identify a batch of images: two sums of their bits, of which one depends on the order.

    Computed on the images' device, from which only the sums are copied.
    """
    bits = images.detach().contiguous().flatten().view(torch.int16)
    positions = torch.arange(1, len(bits) + 1, dtype=torch.int64, device=bits.device)
    sums = torch.stack([bits.sum(dtype=torch.int64), positions.mul_(bits).sum()])
    return sums.cpu().numpy().astype("<i8").tobytes()


def _without_addresses(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _gigabytes(size: float) -> str:
    return f"{size / GIGABYTE:.3g} GB"
