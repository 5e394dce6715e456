"""Test that kept answers of a teacher replace it bit by bit, and never answer another question."""

import errno
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import pytorch_lightning as pl
import torch
from methods import make_method
from pytorch_lightning.callbacks import ModelCheckpoint
from small import Asked, Losses, make, needs_compile, trainer
from torch import Tensor

from hsakd_pl import DigitsDataModule, create_network, methods
from hsakd_pl.data.augment import PadCropFlip
from hsakd_pl.errors import UsageError
from hsakd_pl.files.answers import Answer, AnswerFile, Layout
from hsakd_pl.files.system import warn_once
from hsakd_pl.modules.largest import largest_logits, with_equal_rest
from hsakd_pl.records.protocol import kept_options

BATCHES = 4
SETTINGS = ("max_epochs", "max_steps", "precision", "devices", "strategy")  # of the trainer
EPOCHS = 2


@pytest.fixture(autouse=True)
def no_warning_yet() -> None:
    warn_once.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def fit(
    folder: Path | None,
    name: str = "kd",
    data: DigitsDataModule | None = None,
    save_at: tuple[Path, int] | None = None,
    resume: Path | None = None,
    **options: Any,
) -> tuple[list[float], dict[str, Tensor]]:
    """Train a method on the digits; return the losses of all steps and the weights."""
    losses = Losses()
    settings = {key: options.pop(key) for key in SETTINGS if key in options}
    settings = {"max_epochs": EPOCHS, "limit_train_batches": BATCHES, "limit_val_batches": 0} | settings
    if folder is not None:
        options["teacher_answers"] = str(folder)
    module = make_method(name, **options)
    callbacks: list[pl.Callback] = [losses]
    if save_at is not None:
        saving_folder, step = save_at
        callbacks.append(ModelCheckpoint(saving_folder, filename="{step}", every_n_train_steps=step, save_top_k=-1))
    fitted = trainer(callbacks=callbacks, **settings | {"enable_checkpointing": save_at is not None})
    fitted.fit(module, datamodule=data or DigitsDataModule(seed=0), ckpt_path=resume)
    return losses.values, module.state_dict()


def assert_equal(one: tuple[list[float], dict[str, Tensor]], other: tuple[list[float], dict[str, Tensor]]) -> None:
    assert one[0] == other[0] and len(one[0]) > 0
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.answers"))


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "standardized"])
def test_losses_and_weights_are_those_without_answers(name: str, tmp_path: Path, asked: Asked) -> None:
    alone = fit(None, name)
    assert asked.since_last() == EPOCHS * BATCHES
    for expected_questions in (EPOCHS * BATCHES, 0):
        assert_equal(fit(tmp_path, name), alone)
        assert asked.since_last() == expected_questions
    assert len(files(tmp_path)) == EPOCHS


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"fast": False}], ids=str)
def test_answers_replace_the_teacher_bitwise_in_other_computations(
    options: dict[str, Any], tmp_path: Path, asked: Asked
) -> None:
    alone = fit(None, **options)
    asked.since_last()
    assert_equal(fit(tmp_path, **options), alone)
    assert asked.since_last() == EPOCHS * BATCHES
    assert_equal(fit(tmp_path, **options), alone)
    assert asked.since_last() == 0


def saved_teacher(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    torch.save(create_network("resnet14", 10).state_dict(), path)
    return str(path)


def test_other_methods_and_students_read_the_same_answers(tmp_path: Path, asked: Asked) -> None:
    teacher = saved_teacher(tmp_path / "teacher.pt", seed=0)
    fit(tmp_path / "answers", "kd", teacher_weights=teacher)
    asked.since_last()
    other: dict[str, Any] = {"name": "dkd", "network": "resnet20", "teacher_weights": teacher}
    assert_equal(fit(tmp_path / "answers", **other), fit(None, **other))
    assert asked.since_last() == EPOCHS * BATCHES  # of the run without answers alone


def test_last_smaller_batch_of_an_epoch_is_kept(tmp_path: Path, asked: Asked) -> None:
    data = {"seed": 0, "batch_size": 1000}
    alone = fit(None, data=DigitsDataModule(**data))
    asked.since_last()
    assert_equal(fit(tmp_path, data=DigitsDataModule(**data)), alone)
    assert asked.since_last() == EPOCHS * 2
    assert_equal(fit(tmp_path, data=DigitsDataModule(**data)), alone)
    assert asked.since_last() == 0


def test_resumed_run_asks_only_what_is_missing(tmp_path: Path, asked: Asked) -> None:
    whole = fit(None)
    step = BATCHES + 1
    fit(tmp_path / "answers", save_at=(tmp_path, step), max_steps=step, max_epochs=-1)
    assert asked.since_last() == EPOCHS * BATCHES + step
    losses, weights = fit(tmp_path / "answers", resume=tmp_path / f"step={step}.ckpt")
    assert asked.since_last() == BATCHES - 1
    assert losses == whole[0][step:]
    assert_equal((whole[0], weights), whole)
    assert_equal(fit(tmp_path / "answers"), whole)
    assert asked.since_last() == 0


class ShiftedMore(DigitsDataModule):
    """The digits under another transform."""

    train_transform = PadCropFlip(padding=3, flip=False)


class Flipped(DigitsDataModule):
    """The digits under another transform of which nothing but the images tells."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Any, ...]:
        images, *others = super().on_after_batch_transfer(batch, dataloader_idx)
        return images.flip(-1), *others


@pytest.mark.parametrize(
    "make_data",
    [
        lambda: DigitsDataModule(seed=1),
        lambda: DigitsDataModule(seed=0, batch_size=32),
        lambda: DigitsDataModule(seed=0, augment=False),
        lambda: DigitsDataModule(seed=0, train_fraction=0.5),
        lambda: ShiftedMore(seed=0),
        lambda: Flipped(seed=0),
    ],
    ids=["seed", "batch size", "no augmentation", "fewer images", "transform", "unnamed transform"],
)
def test_other_batches_are_asked_anew(make_data: Any, tmp_path: Path, asked: Asked) -> None:
    fit(tmp_path)
    alone = fit(None, data=make_data())
    asked.since_last()
    assert_equal(fit(tmp_path, data=make_data()), alone)
    assert asked.since_last() == EPOCHS * BATCHES


def test_other_teachers_are_asked_anew(tmp_path: Path, asked: Asked) -> None:
    path = tmp_path / "teacher.pt"
    fit(tmp_path / "answers", teacher_weights=saved_teacher(path, seed=0))
    alone = fit(None, teacher_weights=saved_teacher(path, seed=1))  # another teacher under the same name
    asked.since_last()
    assert_equal(fit(tmp_path / "answers", teacher_weights=str(path)), alone)
    assert asked.since_last() == EPOCHS * BATCHES
    fit(tmp_path / "answers", teacher_weights=saved_teacher(tmp_path / "other.pt", seed=1))
    assert asked.since_last() == 0  # the same teacher under another name


def test_teacher_of_other_layers_with_the_same_weights_is_asked_anew(tmp_path: Path, asked: Asked) -> None:
    def teacher(slope: float) -> torch.nn.Module:
        torch.manual_seed(0)
        layers = [torch.nn.Flatten(), torch.nn.Linear(768, 10), torch.nn.LeakyReLU(slope)]
        return torch.nn.Sequential(*layers)

    module = {"teacher": teacher(0.1), "teacher_weights": None}
    fit(tmp_path, **module)
    alone = fit(None, teacher=teacher(0.2), teacher_weights=None)
    asked.since_last()
    assert_equal(fit(tmp_path, teacher=teacher(0.2), teacher_weights=None), alone)
    assert asked.since_last() == EPOCHS * BATCHES


def cut_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_all(path: Path) -> None:
    os.truncate(path, 0)


def replace_by_text(path: Path) -> None:
    path.write_text("precious\n" * 1000)


def replace_by_other_epoch(path: Path) -> None:
    path.write_bytes(path.with_name("epoch0001.answers").read_bytes())


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "questions", "said"),
    [
        (cut_half, None, "what is missing is asked anew"),
        (cut_all, BATCHES, "all are asked anew"),
        (replace_by_text, BATCHES, "all are asked anew"),
        (replace_by_other_epoch, BATCHES, "damaged or belong to other images"),
        (change_a_bit, 1, "damaged or belong to other images"),
    ],
)
def test_damaged_file_is_told_and_asked_anew(
    damage: Any, questions: int | None, said: str, tmp_path: Path, asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    alone = fit(tmp_path)
    asked.since_last()
    damage(files(tmp_path)[0])
    with caplog.at_level(logging.WARNING, "hsakd_pl"):
        assert_equal(fit(tmp_path), alone)
    assert said in caplog.text and str(files(tmp_path)[0]) in caplog.text
    assert questions is None or asked.batches == questions
    asked.since_last()
    assert_equal(fit(tmp_path), alone)
    assert asked.since_last() == 0


def test_answers_of_another_key_under_the_right_name_are_not_read(tmp_path: Path, asked: Asked) -> None:
    fit(tmp_path, data=DigitsDataModule(seed=1))
    [other] = {path.parent for path in files(tmp_path)}
    alone = fit(tmp_path)
    [own] = {path.parent for path in files(tmp_path)} - {other}
    for path in files(other):
        (own / path.name).write_bytes(path.read_bytes())
    asked.since_last()
    assert_equal(fit(tmp_path), alone)
    assert asked.since_last() == EPOCHS * BATCHES


def killed_run() -> None:
    """Train, and die in the middle of writing the answer of the given number."""
    folder, number = sys.argv[1:]
    write = os.pwrite
    positions: list[int] = []

    def pwrite(descriptor: int, content: bytes, position: int) -> int:
        positions.append(position)
        if len(positions) == int(number):
            write(descriptor, content[: len(content) // 2], position)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, content, position)

    os.pwrite = pwrite
    fit(Path(folder))


def printed_run() -> None:
    """Train and print the losses."""
    print(json.dumps(fit(Path(sys.argv[1]))[0]))


def run_of_two_processes() -> None:
    """Compare runs of two processes with and without answers, in both of them."""
    asked = Asked(pytest.MonkeyPatch())
    two = {"devices": 2, "strategy": "ddp"}
    alone = fit(None, **two)
    asked.since_last()
    for expected_questions in (EPOCHS * BATCHES, 0):
        assert_equal(fit(Path(sys.argv[1]), **two), alone)
        assert asked.since_last() == expected_questions


def test_run_killed_while_it_writes_leaves_nothing_wrong(tmp_path: Path, asked: Asked) -> None:
    killed = programs.run(killed_run, str(tmp_path), str(3 * BATCHES // 2))
    assert killed.returncode == -signal.SIGKILL
    alone = fit(None)
    asked.since_last()
    assert_equal(fit(tmp_path), alone)
    assert 0 < asked.since_last() <= EPOCHS * BATCHES
    assert_equal(fit(tmp_path), alone)
    assert asked.since_last() == 0


def test_two_runs_at_once_fill_one_folder(tmp_path: Path, asked: Asked) -> None:
    runs = [programs.Started(printed_run, str(tmp_path)) for _ in range(2)]
    printed = [process.end().stdout.splitlines()[-1] for process in runs]
    alone = fit(None)
    assert [json.loads(text) for text in printed] == [alone[0]] * 2
    asked.since_last()
    assert_equal(fit(tmp_path), alone)
    assert asked.since_last() == 0


@pytest.mark.slow
def test_two_ranks_keep_the_answers_of_their_own_images(tmp_path: Path) -> None:
    programs.run_on_two(run_of_two_processes, str(tmp_path))


@needs_compile
def test_compiled_step_reads_the_same_answers(tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile

    def without_code(function: Any, options: dict[str, Any], dynamic: bool) -> Any:
        return compiler(function, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", without_code)
    eager = fit(tmp_path)
    asked.since_last()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = fit(tmp_path, compile=True)
    assert asked.since_last() == 0
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_readers_and_writers_of_one_block_see_whole_answers(tmp_path: Path) -> None:
    layout = Layout(blocks=2, rows=64, columns=100, dtype=np.dtype("<f4"))
    rows = np.random.default_rng(0).standard_normal((64, 100), dtype=np.float32)
    failures: list[BaseException] = []

    def work(writes: bool) -> None:
        try:
            file = AnswerFile(tmp_path / "epoch0000.answers", b"k" * 32, layout)
            for _ in range(200):
                if writes:
                    file.write(1, b"question", Answer(rows, 0))
                answer = file.read(1, b"question")
                assert answer is None or np.array_equal(answer.rows, rows)
                assert file.read(1, b"another") is None
            file.close()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=[number < 2]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_in_a_run_is_told_and_changes_no_result(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked: Asked
) -> None:
    alone = fit(None)
    pwrite = os.pwrite
    written: list[int] = []

    def full(descriptor: int, content: bytes, position: int) -> int:
        is_answer = os.readlink(f"/proc/self/fd/{descriptor}").endswith(".answers")
        written.extend([position] if is_answer else [])
        if is_answer and len(written) == 3:
            return pwrite(descriptor, content[:100], position)
        if is_answer and len(written) > 3:
            raise OSError(kind, os.strerror(kind))
        return pwrite(descriptor, content, position)

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "hsakd_pl"):
        patched.setattr(os, "pwrite", full)
        assert_equal(fit(tmp_path), alone)
    assert os.strerror(kind) in caplog.text and "not kept from here on" in caplog.text
    asked.since_last()
    assert_equal(fit(tmp_path), alone)
    assert asked.since_last() == EPOCHS * BATCHES - 2


def test_file_that_cannot_be_made_is_told_and_changes_no_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = fit(None)
    with largest_file(150), caplog.at_level(logging.WARNING, "hsakd_pl"):
        assert_equal(fit(tmp_path), alone)
    assert "File too large" in caplog.text and not files(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_limit_is_checked_and_disk_use_said_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = pytest.raises(UsageError, match=r"would take .* GB, more than teacher_answers_gb, 0.0001")
    with caplog.at_level(logging.INFO), refused as error:
        fit(tmp_path, teacher_answers_gb=0.0001, max_epochs=100)
    assert str(tmp_path) in str(error.value) and not files(tmp_path)
    assert "The teacher's answers take 0.00103 GB for 100 epochs" in caplog.text  # 100 * 4 * (64 * 40 + 24) bytes
    fit(tmp_path, teacher_answers_gb=0.0001)
    with pytest.raises(UsageError, match="teacher_answers_gb"):  # the folder already holds those of another seed
        fit(tmp_path, teacher_answers_gb=0.00004, data=DigitsDataModule(seed=1))


def test_full_disk_before_the_first_step_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(tmp_path)
    blocks = [*status[:3], 0, 0, *status[5:]]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(blocks))
    with pytest.raises(UsageError, match="its disk has 0 GB left"):
        fit(tmp_path)


def test_double_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keeps at most float32"):
        fit(tmp_path, precision="64-true")


def test_run_without_end_raises(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"set trainer\.max_epochs"):
        fit(tmp_path, max_epochs=-1)


@pytest.mark.parametrize("name", ["fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "crd", "sskd", "reviewkd"])
def test_method_that_needs_more_than_logits_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{type(make_method(name)).__name__} needs more .*leave teacher_answers out"):
        fit(tmp_path, name)
    assert not files(tmp_path)


def test_hsakd_is_refused(tmp_path: Path) -> None:
    module = make("student", num_classes=10, teacher_answers=str(tmp_path))
    with pytest.raises(UsageError, match="StudentModule needs more"):
        trainer().fit(module, datamodule=DigitsDataModule(seed=0))


class Embedded(methods.KDModule):
    """A method that does not say that it needs more than its base."""

    def terms(self, student: Any, teacher: Any, labels: Tensor) -> dict[str, Tensor]:
        return super().terms(student, teacher, labels) | {"loss_embedded": teacher.embedding.square().mean()}


def test_method_that_reads_an_embedding_unannounced_raises(tmp_path: Path) -> None:
    module = Embedded("resnet8", "resnet14", teacher_weights="random", num_classes=10, teacher_answers=str(tmp_path))
    with pytest.raises(UsageError, match="Embedded reads its embedding: leave teacher_answers out"):
        trainer().fit(module, datamodule=DigitsDataModule(seed=0))


def test_other_loaders_are_refused(tmp_path: Path) -> None:
    images = torch.randn(8, 3, 16, 16), torch.arange(8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*images), batch_size=4)
    with pytest.raises(UsageError, match="teacher_answers needs batches that are the same in every run"):
        trainer().fit(make_method("kd", teacher_answers=str(tmp_path)), loader)


def test_float16_rounds_in_every_run_and_is_another_protocol(tmp_path: Path, asked: Asked) -> None:
    exact = fit(tmp_path)
    rounded = fit(tmp_path, teacher_answers_dtype="float16")
    assert asked.since_last() == 2 * EPOCHS * BATCHES
    assert rounded[0] != exact[0] and rounded[0] == pytest.approx(exact[0], rel=0.01)
    assert_equal(fit(tmp_path, teacher_answers_dtype="float16"), rounded)
    assert asked.since_last() == 0
    sizes = {path.stat().st_size // 1000 for path in files(tmp_path)}
    assert len(sizes) == 2 and max(sizes) < 2 * min(sizes) + 2


@pytest.mark.parametrize("count", [1, 3, 9])
def test_largest_logits_keep_the_softmax_but_for_the_rest(count: int) -> None:
    logits = 5 * torch.randn(6, 10, dtype=torch.float64)
    values, classes = largest_logits(logits, count)
    again = with_equal_rest(values, classes, 10)
    assert torch.equal(classes, logits.argsort(1, descending=True)[:, :count])
    assert torch.equal(again.gather(1, classes), logits.gather(1, classes))
    probabilities = logits.softmax(1)
    kept = probabilities.gather(1, classes)
    each_other = (1 - kept.sum(1, keepdim=True)) / (10 - count)
    expected = each_other.repeat(1, 10).scatter(1, classes, kept)  # what is left is shared equally
    torch.testing.assert_close(again.softmax(1), expected)
    assert torch.equal(again.topk(count).indices, classes)


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed"}, {"teacher_answers_dtype": "float16"}],
    ids=lambda options: str(*options.values()),
)
def test_largest_logits_are_kept_and_read_bitwise(options: dict[str, Any], tmp_path: Path, asked: Asked) -> None:
    whole = fit(tmp_path / "whole", **options)
    asked.since_last()
    first = fit(tmp_path / "largest", teacher_answers_top=3, **options)
    assert asked.since_last() == EPOCHS * BATCHES
    assert first[0] != whole[0] and first[0] == pytest.approx(whole[0], rel=0.2)
    assert_equal(fit(tmp_path / "largest", teacher_answers_top=3, **options), first)
    assert asked.since_last() == 0
    [whole_size] = {path.stat().st_size for path in files(tmp_path / "whole")}
    [size] = {path.stat().st_size for path in files(tmp_path / "largest")}
    assert size < whole_size


def test_largest_logits_are_never_read_in_place_of_others(tmp_path: Path, asked: Asked) -> None:
    alone = fit(None)
    three = fit(tmp_path, teacher_answers_top=3)
    asked.since_last()
    for options, expected in (({}, alone), ({"teacher_answers_top": 2}, None), ({"teacher_answers_top": 3}, three)):
        result = fit(tmp_path, **options)
        assert asked.since_last() == (0 if expected is three else EPOCHS * BATCHES)
        if expected is not None:
            assert_equal(result, expected)
        else:
            assert result[0] != three[0]


def test_damaged_largest_logits_are_asked_anew(tmp_path: Path, asked: Asked) -> None:
    first = fit(tmp_path, teacher_answers_top=3)
    change_a_bit(files(tmp_path)[0])
    asked.since_last()
    assert_equal(fit(tmp_path, teacher_answers_top=3), first)
    assert asked.since_last() == 1


def test_disk_use_of_largest_logits_is_said_before_the_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(tmp_path, teacher_answers_top=3)
    size = EPOCHS * BATCHES * (64 * (4 * 4 + 3 * 2) + 24) / 1e9  # 4 values and 3 classes an image
    assert f"The teacher's answers, the 3 largest logits of an image each, take {size:.3g} GB" in caplog.text


def test_more_largest_logits_than_classes_raise(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="teacher_answers_top is 10, but the teacher has 10 classes: choose fewer"):
        fit(tmp_path, teacher_answers_top=10)


def test_protocol_holds_the_type_and_number_of_answers_alone() -> None:
    prefix = "model.init_args.teacher_answers"
    plain = {f"{prefix}": None, f"{prefix}_dtype": "float32", f"{prefix}_gb": 20.0, f"{prefix}_top": None}
    assert kept_options(plain) == kept_options(plain | {prefix: "answers", f"{prefix}_gb": 1.0}) == {}
    assert kept_options(plain | {f"{prefix}_dtype": "float16"}) == {f"{prefix}_dtype": "float16"}
    assert kept_options(plain | {f"{prefix}_top": 3}) == {f"{prefix}_top": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_answers_dtype": "float16"}, "no effect without teacher_answers"),
        ({"teacher_answers_top": 3}, "teacher_answers_top has no effect without teacher_answers"),
        ({"teacher_answers": "answers", "teacher_answers_top": 0}, "teacher_answers_top must be at least 1"),
        ({"teacher_answers": "answers", "teacher_answers_dtype": "int8"}, "float32 or float16"),
        ({"teacher_answers": "answers", "teacher_answers_gb": 0.0}, "teacher_answers_gb must be above 0"),
        ({"teacher_answers": "s3://bucket/answers"}, "is a URL"),
    ],
)
def test_invalid_options_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_method("kd", **options)


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_other_things_in_place_of_a_file_are_told_and_change_no_result(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = fit(tmp_path)
    path = files(tmp_path)[0]
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with caplog.at_level(logging.WARNING, "hsakd_pl"):
        assert_equal(fit(tmp_path), alone)
    assert f"{path} is not a file" in caplog.text


def test_folder_that_is_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("precious")
    with pytest.raises(UsageError, match="answers"):
        fit(tmp_path / "answers")
    assert (tmp_path / "answers").read_text() == "precious"


def test_evaluation_neither_reads_nor_writes_answers(tmp_path: Path) -> None:
    module = make_method("kd", teacher_answers=str(tmp_path))
    quiet = trainer(limit_val_batches=1, limit_test_batches=1)
    quiet.validate(module, datamodule=DigitsDataModule(seed=0), verbose=False)
    quiet.test(module, datamodule=DigitsDataModule(seed=0), verbose=False)
    assert not list(tmp_path.iterdir())
