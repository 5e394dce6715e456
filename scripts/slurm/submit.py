"""Submit one run per seed to SLURM with submitit (pip install '.[slurm]'), from the repository:

python scripts/slurm/submit.py --seeds 3 --partition gpu -- --config configs/cifar100/teacher_joint_wrn_40_2.yaml

The arguments after -- are options of fit. A job that is preempted or reaches its time limit saves, is requeued by
submitit and resumes at the exact next batch. --cluster local runs the jobs on this machine, debug in this process.
"""

import argparse
from pathlib import Path

import submitit

from hsakd_pl.cli.main import main


class Fit:
    """Run ``fit`` in a job; a restarted job resumes from the checkpoint in its folder.

    Args:
        options: command line options of ``fit``.
    """

    def __init__(self, options: list[str]) -> None:
        self.options = options

    def __call__(self) -> str:
        """Train and return the folder of the run."""
        main(["fit", *self.options])
        return self.options[self.options.index("--trainer.default_root_dir") + 1]

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the job to submit when this one is requeued."""
        return submitit.helpers.DelayedSubmission(self)


def submit() -> None:
    """Submit the jobs; jobs on this machine are run to their end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", default="slurm", help="slurm, local or debug")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/submitted"),
        help="the run of seed k is written to its subfolder seed<k>",
    )
    parser.add_argument("--partition")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs on one node, one process each")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("options", nargs="*", help="options of fit")
    arguments = parser.parse_args()
    executor = submitit.AutoExecutor(arguments.folder / "submitit", cluster=arguments.cluster)
    executor.update_parameters(
        name="hsakd",
        gpus_per_node=arguments.gpus,
        tasks_per_node=max(1, arguments.gpus),
        timeout_min=round(60 * arguments.hours),
        cpus_per_task=8,
        slurm_signal_delay_s=90,
        slurm_additional_parameters={"requeue": True},
    )
    if arguments.partition:
        executor.update_parameters(slurm_partition=arguments.partition)
    devices = ["--trainer.devices", str(arguments.gpus)] if arguments.gpus else ["--trainer.accelerator", "cpu"]
    jobs = []
    with executor.batch():
        for seed in range(arguments.seeds):
            folder = str(arguments.folder / f"seed{seed}")
            place = ["--seed_everything", str(seed), "--trainer.default_root_dir", folder]
            jobs.append(executor.submit(Fit([*arguments.options, *devices, *place])))
    for job in jobs:
        print(job.job_id if arguments.cluster == "slurm" else job.result())


if __name__ == "__main__":
    submit()
