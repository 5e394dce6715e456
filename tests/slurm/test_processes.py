"""Test that a real SLURM job of two tasks, interrupted twice, equals two processes of torchrun bit by bit."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import history

from hsakd_pl import create_network
from hsakd_pl.report.rows import collect
from hsakd_pl.runs.checkpoints import STEPS_BETWEEN_AGREEMENTS
from slurm.cluster import Cluster, ClusterError, free_ports

REPOSITORY = Path(__file__).parents[2]
CPU = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true"]
STEPS, EPOCHS = 12, 3
PATIENCE = 900  # seconds; ten times the usual duration

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(cifar_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the configuration of a small student on real images."""
    folder = tmp_path_factory.mktemp("recipe")
    torch.manual_seed(0)
    torch.save(create_network("resnet14", 100).state_dict(), folder / "teacher.pth")
    networks = {"network": "resnet8", "teacher": "resnet14", "teacher_weights": str(folder / "teacher.pth")}
    data = {"root": str(cifar_mini), "batch_size": 8}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 1}
    limits = {"max_epochs": EPOCHS, "limit_train_batches": STEPS, "limit_val_batches": 2}
    config = {
        "model": {
            "class_path": "hsakd_pl.StudentModule",
            "init_args": {**networks, "milestones": [1], "branch_metrics_every": 0},
        },
        "data": {"class_path": "hsakd_pl.CIFAR100DataModule", "init_args": data},
        "trainer": {**quiet, **limits},
    }
    (folder / "recipe.yaml").write_text(json.dumps(config))
    return folder / "recipe.yaml"


def options(recipe: Path, folder: Path) -> list[str]:
    """Return the command line options of a run that writes everything to ``folder``."""
    noting = ["--trainer.callbacks+", "slurm.interruptions.Interruptions", "--trainer.callbacks.folder", str(folder)]
    return ["--config", str(recipe), *CPU, "--trainer.default_root_dir", str(folder), *noting]


def environment(**variables: str) -> dict[str, str]:
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": f"{REPOSITORY}/tests"}
    return {**os.environ, **paths, "OMP_NUM_THREADS": "1", **variables}


def noted(folder: Path, start: int) -> list[str]:
    """Return the record of a start, which is equal in both tasks."""
    first, second = ((folder / f"{start}.{rank}").read_text().split("\n")[:-1] for rank in range(2))
    assert first == second
    return first


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run with torchrun."""
    folder = tmp_path_factory.mktemp("whole")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "main.py", "fit", "--config", "configs/trainer/ddp.yaml", "--trainer.devices", "2"]
    done = subprocess.run(
        [*command, *options(recipe, folder)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def test_torchrun_runs_every_step_once(whole: Path) -> None:
    assert noted(whole, 0) == [str(step) for step in range(STEPS * EPOCHS)]
    assert saved(whole)["global_step"] == STEPS * EPOCHS


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    try:
        cluster = Cluster(tmp_path)
    except ClusterError as error:
        pytest.skip(str(error))
    yield cluster
    cluster.stop()


def finish(cluster: Cluster, job: str, log: Path) -> None:
    """Wait for the end of the job; SLURM by itself restarts a requeued job only after minutes."""
    end, requeued = time.monotonic() + PATIENCE, 0
    while (state := cluster.state(job))["JobState"] != "COMPLETED":
        # a job being requeued passes through many states, FAILED among them: only the last one counts
        assert time.monotonic() < end, log.read_text()[-3000:] + cluster.log()
        if (state["JobState"], state["Reason"]) == ("PENDING", "BeginTime"):
            requeued = requeued or int(time.time())
            if (
                int(time.time()) > requeued + 1
            ):  # a node's clock has whole seconds: a job never starts in the second of its end
                cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        else:
            requeued = 0
        time.sleep(0.2)


def test_interrupted_slurm_job_equals_uninterrupted_job(
    whole: Path, recipe: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("job")
    resources = ["--ntasks-per-node", "2", "--gpus-per-node", "2", "--cpus-per-task", "1"]
    log = folder / "slurm.out"
    port = str(free_ports(1)[0])
    cluster.environment.update(environment(SLURM_CONF=cluster.environment["SLURM_CONF"], MASTER_PORT=port))
    sbatch = ["sbatch", "--parsable", *resources, "--output", str(log), "scripts/slurm/fit.sbatch"]
    job = cluster.run(*sbatch, *options(recipe, folder), cwd=REPOSITORY).strip()
    finish(cluster, job, log)
    first, second, third = (noted(folder, start) for start in range(3))
    assert first == [str(step) for step in range(STEPS_BETWEEN_AGREEMENTS)]
    assert second == [f"from {STEPS_BETWEEN_AGREEMENTS}", *map(str, range(STEPS_BETWEEN_AGREEMENTS, 27))]
    assert third == [f"from {2 * STEPS}", *map(str, range(2 * STEPS, EPOCHS * STEPS))]
    assert "last.ckpt is written, the job is handed back" in log.read_text()
    one, other = saved(whole), saved(folder)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        torch.testing.assert_close(other[part], one[part], rtol=0, atol=0)
    assert history(folder) == history(whole)
    assert [row["step"] for row in history(whole)] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_slurm_array_runs_a_sweep(recipe: Path, cluster: Cluster, tmp_path: Path) -> None:
    folder, log = tmp_path / "sweep", tmp_path / "slurm.out"
    resources = ["--array", "0-1", "--ntasks-per-node", "1", "--gpus-per-node", "1", "--cpus-per-task", "1"]
    fewer = [
        "--trainer.max_epochs",
        "1",
        "--trainer.limit_train_batches",
        "2",
        "--trainer.default_root_dir",
        str(folder),
    ]
    cluster.environment.update(environment(SLURM_CONF=cluster.environment["SLURM_CONF"]))
    sbatch = ["sbatch", *resources, "--output", str(log), "scripts/slurm/fit.sbatch", "--config", str(recipe)]
    cluster.run(*sbatch, *CPU, *fewer, cwd=REPOSITORY)
    end = time.monotonic() + PATIENCE
    while cluster.run("squeue", "--noheader", "--states", "PENDING,RUNNING,COMPLETING").strip():
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.5)
    rows = collect(folder)
    assert [(row["seed"], Path(row["folder"]).name, row["devices"]) for row in rows] == [
        (0, "seed0", 1),
        (1, "seed1", 1),
    ]
    assert rows[0]["metrics"]["train/loss"] != rows[1]["metrics"]["train/loss"]
