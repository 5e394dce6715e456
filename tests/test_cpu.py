"""Test what the package does for PyTorch on a CPU: spinning threads, freed memory, cores, and the kind of the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small import loader, make, trainer

from hsakd_pl.cpu import memory
from hsakd_pl.cpu.cores import available_cores, cpu_quota
from hsakd_pl.cpu.kinds import KINDS, bf16_advice, bf16_warning, cpu_of, find_cpu
from hsakd_pl.cpu.threads import describe_threads, share_cores
from hsakd_pl.records.summary import Introduction
from hsakd_pl.runs.accelerator import check_precision

ROOT = Path(__file__).resolve().parents[1]
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_ARENA_MAX": "1"}
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", *ALLOCATOR)

on_glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="the C library is not glibc"
)

# Print the variables as a child process inherits them, and whether PyTorch was imported meanwhile.
SHOW = "import json, os, subprocess, sys; print(json.dumps([{}, 'torch' in sys.modules]))"
INHERITED = "dict(kept.split('=', 1) for kept in subprocess.check_output('env', text=True).splitlines() if '=' in kept)"


def run(program: str, **variables: str) -> Any:
    """Run a program without this process's variables; return what it prints as JSON."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout)


def program_environment(**variables: str) -> dict[str, str]:
    """Return the variables that a process inherits from the program, which has not imported PyTorch."""
    start = "import contextlib, io; from hsakd_pl.cli.main import main\n"
    start += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['--help'])\n"
    environment, imported = run(start + SHOW.format(INHERITED), **variables)
    assert not imported
    return {name: environment[name] for name in VARIABLES if name in environment}


@on_glibc
def test_program_sets_variables_before_pytorch_is_imported() -> None:
    assert program_environment() == {"GOMP_SPINCOUNT": "3000", **ALLOCATOR}


@on_glibc
@pytest.mark.parametrize(
    ("chosen", "added"),
    [
        ({"GOMP_SPINCOUNT": "7"}, set(ALLOCATOR)),
        ({"OMP_WAIT_POLICY": "passive"}, set(ALLOCATOR)),
        ({"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GOMP_SPINCOUNT", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"}),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}, {"GOMP_SPINCOUNT"}),
    ],
)
def test_program_keeps_variables_that_the_user_has_set(chosen: dict[str, str], added: set[str]) -> None:
    environment = program_environment(**chosen)
    assert environment.keys() == chosen.keys() | added
    assert environment.items() >= chosen.items()


def test_import_of_the_package_changes_no_variable() -> None:
    environment, imported = run("import hsakd_pl;" + SHOW.format("dict(os.environ)"))
    assert not imported
    assert not environment.keys() & set(VARIABLES)


# Allocate and fill 64 MiB five times, and print the page faults of the last four.
REUSE = """
import ctypes, resource
from hsakd_pl.cpu.start import map_tensors, prepare_process, reuse_memory
for function in {}:
    function()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
faults = []
for _ in range(5):
    memory = ctypes.c_void_p(library.malloc(ctypes.c_size_t(2**26)))
    ctypes.memset(memory, 1, 2**26)
    library.free(memory)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""


@on_glibc
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert run(REUSE.format("[prepare_process]")) < 100
    assert run(REUSE.format("[]")) > 1000
    assert run(REUSE.format("[prepare_process]"), MALLOC_MMAP_THRESHOLD_="65536") > 1000


@on_glibc
def test_tensors_are_mapped_until_memory_is_reused() -> None:
    assert run(REUSE.format("[prepare_process, map_tensors]")) > 1000
    assert run(REUSE.format("[prepare_process, map_tensors, reuse_memory]")) < 100
    assert run(REUSE.format("[map_tensors, reuse_memory]")) > 1000  # no variable asks for it


def test_late_preparation_warns_in_one_line() -> None:
    program = "import json, sys, types, warnings; sys.modules['torch'] = types.ModuleType('torch'); import hsakd_pl\n"
    program += "sys.modules['hsakd_pl.cpu.threads'] = types.SimpleNamespace(share_cores=lambda: None)\n"
    program += "with warnings.catch_warnings(record=True) as caught: hsakd_pl.prepare_cpu()\n"
    program += "print(json.dumps([str(warning.message) for warning in caught]))"
    (message,) = run(program)
    assert message.startswith("prepare_cpu: PyTorch was imported before") and "\n" not in message
    assert run(program, GOMP_SPINCOUNT="5") == []


def test_prepare_cpu_limits_threads_and_spinning() -> None:
    program = "import json, os, hsakd_pl; hsakd_pl.prepare_cpu(); import torch\n"
    program += "print(json.dumps([torch.get_num_threads(), os.environ['GOMP_SPINCOUNT']]))"
    assert run(program, OMP_NUM_THREADS="1") == [1, "3000"]


V1 = "4 3 0:4 {} /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2 = "4 3 0:4 {} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
OTHER = "9 3 0:9 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"
V1_FILES = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def tree(root: Path, cgroups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """Write what Linux shows of cgroups below ``root``: version 2 in one file, version 1 in two."""
    content = {"proc/self/cgroup": cgroups, "proc/self/mountinfo": "\n".join([OTHER, *mounts])}
    for folder, limit in files.items():
        place = f"sys/fs/cgroup/{folder}"
        if folder.startswith("cpu"):
            content |= {f"{place}/{name}": part for name, part in zip(V1_FILES, limit.split(), strict=True)}
        else:
            content[f"{place}/cpu.max"] = limit
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("cgroups", "mounts", "files", "quota"),
    [
        pytest.param("0::/", [V2.format("/")], {"": "150000 100000"}, 1.5, id="container"),
        pytest.param("0::/", [V2.format("/")], {"": "max 100000"}, None, id="no-limit"),
        pytest.param("0::/", [V2.format("/")], {}, None, id="top"),
        pytest.param(
            "0::/a/b/c",
            [V2.format("/")],
            {"a": "800000 100000", "a/b": "200000 100000", "a/b/c": "max 100000"},
            2,
            id="smallest-of-nested",
        ),
        pytest.param("0::/a/b", [V2.format("/")], {"a": "100000 50000", "a/c": "1000 50000"}, 2, id="not-of-a-sibling"),
        pytest.param("0::/pod/box", [V2.format("/pod/box")], {"": "300000 100000"}, 3, id="part-of-hierarchy"),
        pytest.param("0::/../..", [V2.format("/../..")], {"": "300000 100000"}, 3, id="path-from-outside"),
        pytest.param("3:cpuset:/\n2:cpu,cpuacct:/", [V1.format("/")], {"cpu": "50000 100000"}, 0.5, id="version-1"),
        pytest.param("2:cpu:/", [V1.format("/")], {"cpu": "-1 100000"}, None, id="version-1-no-limit"),
        pytest.param(
            "2:cpu:/a/b", [V1.format("/")], {"cpu": "-1 100000", "cpu/a": "400000 100000", "cpu/a/b": "-1 100000"}, 4,
            id="version-1-nested",
        ),
        pytest.param("2:cpu:/docker/1", [V1.format("/docker/1")], {"cpu": "700000 100000"}, 7, id="version-1-part"),
        pytest.param(
            "2:cpu:/a\n0::/b", [V1.format("/"), V2.format("/")], {"cpu/a": "300000 100000"}, 3, id="both-versions"
        ),
    ],
)  # fmt: skip
def test_quota_is_the_smallest_of_the_cgroups(
    cgroups: str, mounts: list[str], files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    root = tree(tmp_path, cgroups, mounts, files)
    assert cpu_quota(root) == quota
    assert available_cores(root) == available_cores(Path("/")) or quota is not None


def test_cores_follow_a_fraction_of_a_quota(tmp_path: Path) -> None:
    assert available_cores(tree(tmp_path, "0::/", [V2.format("/")], {"": "20000 100000"})) == 1


@pytest.mark.parametrize("damage", ["missing", "proc/self/cgroup", "sys/fs/cgroup/cpu.max"])
def test_unreadable_cgroups_are_no_limit(damage: str, tmp_path: Path) -> None:
    root = tmp_path / "missing"
    if damage != "missing":
        root = tree(tmp_path, "0::/", [V2.format("/")], {"": "20000 100000"})
        (root / damage).write_text("none\n")
    assert cpu_quota(root) is None


XEON = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8480\nflags\t\t: fpu avx2 avx512f {}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("cpuinfo", "capabilities", "name"),
    [
        (XEON.format("avx512_bf16 amx_bf16 amx_tile"), None, "AMX"),
        (XEON.format("avx512_bf16"), None, "AVX-512 with bf16"),
        (XEON.format(""), None, "AVX-512"),
        (XEON.format(""), {"avx2": True, "avx512_f": False}, "AVX2"),
        (ARM.format("sve svebf16 bf16"), None, "ARM SVE with bf16"),
        (ARM.format("bf16"), None, "ARM with bf16"),
        (ARM.format(""), None, "ARM"),
        ("", {"neon": True, "bf16": True, "cpu_name": "Apple M2"}, "ARM with bf16"),
    ],
)
def test_cpu_has_the_kind_of_its_best_instructions(
    cpuinfo: str, capabilities: dict[str, Any] | None, name: str
) -> None:
    cpu = cpu_of(cpuinfo, capabilities)
    assert cpu.kind.name == name
    assert cpu.kind.has_bf16 == ("bf16" in name or name == "AMX")
    if "Xeon" in cpuinfo:
        assert cpu.model == "Intel(R) Xeon(R) Platinum 8480"


def test_unknown_cpu_has_a_name_and_no_bf16() -> None:
    cpu = cpu_of("")
    assert cpu.model and not cpu.kind.has_bf16


@pytest.mark.parametrize("capability", KINDS)
def test_bf16_is_recommended_on_cpus_that_compute_it_and_warned_of_on_others(capability: str) -> None:
    kind = KINDS[capability]
    texts = [bf16_advice(kind), bf16_warning(kind, "bf16-mixed")]
    assert [text is None for text in texts] == [not kind.has_bf16, kind.has_bf16]
    assert all(len(text) < 120 and "bf16-mixed" in text for text in texts if text is not None)
    assert bf16_warning(kind, "32-true") is None


def test_advice_states_the_measured_gain() -> None:
    assert "is about 1.3 times as fast" in str(bf16_advice(KINDS["amx_bf16"]))
    assert "may be faster" in str(bf16_advice(KINDS["bf16"]))
    assert "takes about 6 times as long as 32-true" in str(bf16_warning(KINDS["avx2"], "bf16-true"))


def test_bf16_without_hardware_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    check_precision("bf16-mixed", "cpu")
    warning = bf16_warning(find_cpu().kind, "bf16-mixed")
    assert [record.getMessage() for record in caplog.records] == ([] if warning is None else [warning])


def test_introduction_names_cpu_threads_and_precision(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(callbacks=[Introduction()], limit_train_batches=1, limit_val_batches=0).fit(make("baseline"), loader())
    lines = capsys.readouterr().out.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith("device "))
    cpu = find_cpu()
    device = f"1 x {cpu.model} ({cpu.kind.name}), {describe_threads()}, precision 32-true"
    assert lines[number] == f"device    {device}"
    assert ("bf16-mixed" in lines[number + 2]) == cpu.kind.has_bf16


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let PyTorch use two threads, although the tests set OMP_NUM_THREADS, and undo what a test changes."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    yield monkeypatch
    torch.set_num_threads(before)


def test_processes_share_the_cores(two_threads: pytest.MonkeyPatch) -> None:
    two_threads.delenv("OMP_NUM_THREADS")
    share_cores(processes=1000)
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (1, "1")


def test_number_of_threads_that_the_user_has_set_is_kept(two_threads: pytest.MonkeyPatch) -> None:
    share_cores(processes=1000)
    assert (torch.get_num_threads(), describe_threads()) == (2, "2 threads (OMP_NUM_THREADS)")


def test_one_process_inherits_no_number_of_threads(two_threads: pytest.MonkeyPatch) -> None:
    two_threads.delenv("OMP_NUM_THREADS")
    share_cores()
    assert torch.get_num_threads() <= available_cores() and "OMP_NUM_THREADS" not in os.environ


class Steps(pl.Callback):
    """Record each step in a list of events."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def on_train_batch_start(self, *_: Any) -> None:
        self.events.append("step")


def test_fit_maps_tensors_until_its_first_step_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(memory, "map_tensors", lambda: events.append("map"))
    monkeypatch.setattr(memory, "reuse_memory", lambda: events.append("reuse"))
    module = make("baseline", fast=False)
    trainer(callbacks=[Steps(events)]).fit(module, loader())
    assert events == ["map", "step", "reuse", "step", "reuse"]
    events.clear()
    trainer().test(module, loader(), verbose=False)
    assert events == ["reuse", "reuse"]
