"""Test runs started by torchrun, SLURM's scripts or submitit."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import programs
import pytest
from slurm.cluster import free_ports
from small import error_of, run
from test_writers import held_by_another_process

from hsakd_pl.errors import UsageError
from hsakd_pl.records.formats import read_row
from hsakd_pl.runs.processes import match_torchrun

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "--model": "BaselineModule",
    "--model.network": "resnet8",
    "--data": "DigitsDataModule",
    "--data.num_workers": "0",
    "--trainer.max_epochs": "1",
    "--trainer.limit_train_batches": "2",
    "--trainer.limit_val_batches": "1",
    "--trainer.num_sanity_val_steps": "0",
    "--trainer.enable_progress_bar": "false",
}
FIT = [word for pair in SMALL.items() for word in pair]


def torchrun(monkeypatch: pytest.MonkeyPatch, nodes: int, here: int) -> None:
    """Set the environment in which torchrun starts a process."""
    for name, value in {"RUN_ID": "1", "WORLD_SIZE": nodes * here, "LOCAL_WORLD_SIZE": here}.items():
        monkeypatch.setenv(name.replace("RUN_ID", "TORCHELASTIC_RUN_ID"), str(value))


@pytest.mark.parametrize("devices", ["auto", -1, "-1", 2, "2", [0, 1], "0,1"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_torchrun_sets_number_of_devices_and_nodes(devices: Any, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Namespace(devices=devices, num_nodes=1)
    match_torchrun(trainer)
    assert trainer == Namespace(devices=devices, num_nodes=1)
    torchrun(monkeypatch, nodes, 2)
    match_torchrun(trainer)
    assert trainer.num_nodes == nodes
    assert trainer.devices == (2 if str(devices) in ("auto", "-1") else devices)


@pytest.mark.parametrize("given", [{"devices": 1}, {"devices": [0]}, {"devices": "0,1,2"}, {"num_nodes": 4}])
def test_device_count_contradicting_torchrun_raises(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun(monkeypatch, 2, 2)
    with pytest.raises(
        UsageError, match=r"torchrun started 4 processes: leave both out, or set --trainer\.devices auto"
    ):
        match_torchrun(Namespace(**{"devices": "auto", "num_nodes": 1, **given}))


@pytest.fixture
def single(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of the only process that torchrun starts, and starts again up to three times."""
    monkeypatch.chdir(tmp_path)
    torchrun(monkeypatch, 1, 1)
    places = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")


@pytest.mark.usefixtures("single")
def test_one_command_line_begins_and_resumes_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"trainer": {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1}}
    stops = {"trainer": small["trainer"] | {"callbacks": "test_stopping.Late"}}  # after the last step
    with pytest.raises(SystemExit):
        run("fit", "--ckpt_path", "last", **{**stops, "trainer": stops["trainer"] | {"max_epochs": 1}})
    folder = run("fit", "--ckpt_path", "last", **small)
    assert json.loads((folder / "result.json").read_text())["resumes"] == 1
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    message = error_of(capsys, lambda: run("fit", "--ckpt_path", "last", trainer={"default_root_dir": "other"}))
    assert message.startswith("ckpt_path last: other has no last.ckpt")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    message = error_of(capsys, lambda: run("test", "--ckpt_path", "last", trainer={"default_root_dir": "other"}))
    assert message.startswith("ckpt_path last: other has no last.ckpt")


@pytest.mark.nightly
def test_all_processes_end_if_the_first_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = [*FIT, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "run")]
    with held_by_another_process(str(tmp_path / "run/.writer")):
        words = [*command, str(ROOT / "main.py"), "fit", *options]
        ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode and ended.stderr.count("error: ") == 2 and "is in use by process" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_two_cpu_processes_train(nodes: int, tmp_path: Path) -> None:
    """Start on one machine with the overlay for several devices, or as if on two machines without a device count."""
    port = free_ports(1)[0]
    place = ["--standalone"] if nodes == 1 else ["--nnodes", "2", "--master_addr", "127.0.0.1", f"--master_port={port}"]
    overlay = (
        ["--config", str(ROOT / "configs/trainer/ddp.yaml"), "--trainer.precision", "32-true"] if nodes == 1 else []
    )
    options = [*overlay, *FIT, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(tmp_path / "run")]
    started = []
    for rank in range(nodes):
        number = [] if nodes == 1 else ["--node_rank", str(rank)]
        command = [sys.executable, "-m", "torch.distributed.run", *place, *number, "--nproc_per_node", str(2 // nodes)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"{rank}.txt").open("w") as log:
            words = [*command, str(ROOT / "main.py"), "fit", *options]
            started.append(subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log))
    said = [process.wait(500) or (tmp_path / f"{rank}.txt").read_text()[-3000:] for rank, process in enumerate(started)]
    assert [process.returncode for process in started] == [0] * nodes, said
    row = read_row(tmp_path / "run" / "result.json")
    assert row["devices"] == 2


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").rglob("*.s[bh]*")), ids=lambda path: path.name)
def test_slurm_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    # commented-out lines are bash or options of sbatch as well
    lines = [line.removeprefix("# ") for line in script.read_text().splitlines() if line.startswith("# ")]
    commands = "\n".join(line for line in lines if line.split()[0] in ("source", "module", "export", "srun", "set"))
    subprocess.run(["bash", "-n"], input=commands, text=True, check=True)


def test_submitit_example_runs_two_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use submitit's local executor with two seeds."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    submit = [str(ROOT / "scripts/slurm/submit.py"), "--cluster", "debug", "--gpus", "0", "--seeds", "2"]
    done = programs.run(programs.script, *submit, "--", *FIT)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = [Path("runs/submitted", f"seed{seed}") for seed in range(2)]
    assert [line for line in done.stdout.splitlines() if line.startswith("runs")][-2:] == [
        str(each) for each in folders
    ]
    assert [read_row(tmp_path / each / "result.json")["seed"] for each in folders] == [0, 1]
