"""Test that writers neither disturb each other nor delete what others made, wherever they write."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small import error_of

from hsakd_pl.cli.main import main
from hsakd_pl.commands.report import report
from hsakd_pl.errors import UsageError
from hsakd_pl.export.folder import whole_folder
from hsakd_pl.files import cache_folder, replacing
from hsakd_pl.files.lock import in_turn, sole_writer
from hsakd_pl.files.system import warn_once

TOKEN = "0123456789abcdef"
ROW = {"config": ["a.yaml"], "last_val_acc": 0.5, "best_val_acc": None, "images_per_second": 1.0, "seconds": 2}
EXPORT = {"config.json": '{"versions": {"hsakd_pl": "1"}}', "model.safetensors": "weights"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(folder: Path | str = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def write_one(number: int) -> None:
    with replacing("result.json") as file:
        file.writelines(f"{number}\n" * 1000)


def report_one(number: int) -> None:
    report(Path("runs"))


def recipes_one(number: int) -> None:
    main(["recipes", "configs", "--overwrite"])


@pytest.mark.parametrize("write", [write_one, report_one, pytest.param(recipes_one, marks=pytest.mark.nightly)])
def test_writers_of_one_file_started_together_all_succeed(write: Callable[[int], None]) -> None:
    Path("runs").mkdir()
    Path("runs/result.json").write_text(json.dumps(ROW))
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def write_repeatedly(number: int) -> None:
        try:
            for _ in range(5):
                start.wait()
                write(number)
        except BaseException as failure:
            failures.append(failure)
            start.abort()

    threads = [threading.Thread(target=write_repeatedly, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not list(Path().rglob("*.partial"))
    if Path("result.json").exists():
        assert len(set(Path("result.json").read_text().split())) == 1


@contextmanager
def held_by_another_process(file: str) -> Iterator[int]:
    """Let another process lock a file, which names it."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    hold = (
        f"import fcntl, os; file = open({file!r}, 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('process', os.getpid(), file=file, flush=True); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        yield other.pid
        other.kill()


def test_files_of_killed_writers_are_removed_and_all_others_kept() -> None:
    kept = ["result.json.partial", "result.json.mine.partial", "best.ckpt.1-0123456789abcdef.partial", "other"]
    for name in kept:
        Path(name).write_text("precious")
    Path(f"result.json.1-{TOKEN}.partial").write_text("half")
    living = f"result.json.2-{TOKEN}.partial"
    with held_by_another_process(living):
        write_one(1)
        assert names() == sorted([*kept, living, "result.json"])
    write_one(2)
    assert names() == sorted([*kept, "result.json"])


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002], ids=oct)
def test_new_files_have_ordinary_permissions(umask: int) -> None:
    before = os.umask(umask)
    try:
        write_one(1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("result.json").stat().st_mode) == 0o666 & ~umask


def make(folder: str, content: dict[str, str]) -> Path:
    Path(folder).mkdir(parents=True)
    for name, text in content.items():
        Path(folder, name).write_text(text)
    return Path(folder)


def export(folder: str, fails: bool = False) -> None:
    """Replace an export by one of two files."""
    with whole_folder(Path(folder)) as partial:
        (partial / "config.json").write_text(EXPORT["config.json"])
        (partial / "model.onnx").write_text("graph")
        if fails:
            raise RuntimeError


NEW = ["config.json", "model.onnx"]


@pytest.mark.parametrize("neighbour", ["s.earlier", "s.partial", "s.0.earlier", f"s.{TOKEN}.partial", ".s"])
@pytest.mark.parametrize("is_new", [True, False])
def test_export_keeps_neighbours(neighbour: str, is_new: bool) -> None:
    make(neighbour, {"thesis.tex": "precious"})
    if not is_new:
        make("s", EXPORT)
    export("s")
    assert names(neighbour) == ["thesis.tex"] and names("s") == NEW
    assert names() == sorted([neighbour, "s"])


@pytest.mark.parametrize("earlier", ["s.earlier", f"s.1-{TOKEN}.earlier"])
def test_earlier_export_left_by_a_killed_process_is_put_back(earlier: str) -> None:
    make(earlier, EXPORT)
    make(f"s.1-{TOKEN}.partial", {"config.json": "half"})
    with pytest.raises(RuntimeError):
        export("s", fails=True)
    assert names() == ["s"] and names("s") == sorted(EXPORT)


def test_second_export_into_a_folder_is_refused() -> None:
    make("s", EXPORT)
    with (
        held_by_another_process(".s.writer") as process,
        pytest.raises(UsageError, match=f"s is in use by .*{process}"),
    ):
        export("s")
    assert names("s") == sorted(EXPORT)
    export("s")
    assert names() == ["s"] and names("s") == NEW


def working_folder(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir("s")
    return "."


def above_working_folder(monkeypatch: pytest.MonkeyPatch) -> str:
    Path("s/../elsewhere").mkdir()
    Path("elsewhere/link").symlink_to(Path("s").resolve())
    monkeypatch.chdir("elsewhere/link")
    return "../elsewhere/link"


def link(monkeypatch: pytest.MonkeyPatch) -> str:
    Path("latest").symlink_to("s")
    return "latest"


def mount(monkeypatch: pytest.MonkeyPatch) -> str:
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "s":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    return "s"


def read_only_surroundings(monkeypatch: pytest.MonkeyPatch) -> str:
    access = os.access
    parent = Path.cwd()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != parent and access(path, mode))
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.parent == parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    return "s"


PLACES = [working_folder, above_working_folder, link, mount, read_only_surroundings]


@pytest.mark.parametrize("place", PLACES)
def test_export_replaces_files_where_the_folder_cannot_be_renamed(
    place: Callable[[pytest.MonkeyPatch], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("s", EXPORT).resolve()
    before = sorted(path.name for path in folder.parent.iterdir())
    identity = folder.stat().st_ino
    target = place(monkeypatch)
    with pytest.raises(RuntimeError):
        export(target, fails=True)
    assert names(folder) == sorted(EXPORT)
    export(target)
    assert names(folder) == NEW
    if place is not link:
        assert folder.stat().st_ino == identity
    assert {*names(folder.parent)} - {*before} <= {"elsewhere", "latest"}
    assert Path(target).resolve() == folder


FOLDER_ERRORS = [errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES]
LOCK_ERRORS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES]


def refuse_to_flush_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)


def refuse_to_lock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)


@pytest.mark.parametrize(
    ("refuse", "number"),
    [
        *((refuse_to_flush_folders, number) for number in FOLDER_ERRORS),
        *((refuse_to_lock, number) for number in LOCK_ERRORS),
    ],
)
def test_file_systems_without_flushing_or_locks_warn_once(
    refuse: Callable[[pytest.MonkeyPatch, int], None],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_once.cache_clear()
    refuse(monkeypatch, number)
    with sole_writer("run"), in_turn(Path("run/.test.writer")):
        for _ in range(3):
            with replacing("run/result.json") as file:
                file.write("{}")
    export("s")
    export("s")
    assert names("run") == ["result.json"] and names("s") == NEW
    [warning] = caplog.records
    assert os.strerror(number) in warning.message and "in use" not in warning.message


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_files_that_are_not_on_the_disk_raise(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_flush_folders(monkeypatch, number)
    with pytest.raises(UsageError, match=os.strerror(number)):
        write_one(1)


def test_report_of_a_folder_that_may_only_be_read_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/rows.jsonl").mkdir(parents=True)  # cannot be replaced, even by root
    Path("runs/result.json").write_text(json.dumps(ROW))
    main(["report", "runs"])
    printed = capsys.readouterr()
    assert "50.00" in printed.out
    assert printed.err.startswith("rows.jsonl was not written: runs/rows.jsonl") and printed.err.count("\n") == 1


def test_user_without_home_folder_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwd.getpwuid", dict[int, Any]().__getitem__)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "~nobody_here/x"],
        ["export", "~nobody_here/x"],
        ["export", "run", "~nobody_here/x"],
        ["predict", "~nobody_here/x", "photos"],
        ["recipes", "~nobody_here/x"],
        ["report", "runs", "--html", "~nobody_here/x.html"],
        ["report", "runs", "--plot", "~nobody_here/x.png"],
        ["fit", "--config", "~nobody_here/x.yaml"],
        ["bench", "classic", "--task", "0", "--folder", "~nobody_here/x"],
        ["bench", "~nobody_here/x.csv", "--list"],
    ],
    ids=" ".join,
)
def test_home_of_an_unknown_user_raises(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    Path("runs/result.json").write_text(json.dumps(ROW))
    Path("runs/metrics.csv").write_text("epoch,val/acc\n0,0.5\n")
    assert "~nobody_here/x" in error_of(capsys, lambda: main(arguments))
    assert not Path("~nobody_here").exists()
