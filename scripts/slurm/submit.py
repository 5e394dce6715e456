"""Send runs to SLURM with submitit (pip install '.[slurm]'), a seed each, from the repository's folder:

python scripts/slurm/submit.py --seeds 3 --partition gpu -- --config configs/cifar100/teacher_joint_wrn_40_2.yaml

What stands behind -- are options of fit. A job whose time is over, or that is pre-empted, saves, is requeued by
submitit and continues at the exact next batch. --cluster local runs them on this machine, debug in this process.
"""

import argparse
from pathlib import Path

import submitit

from hsakd_pl.cli.main import main


class Fit:
    """A run that submitit starts, and starts again: it then finds its own checkpoint in its folder.

    Args:
        options: of ``fit``.
    """

    def __init__(self, options: list[str]) -> None:
        self.options = options

    def __call__(self) -> str:
        """Train; give the folder."""
        main(["fit", *self.options])
        return self.options[self.options.index("--trainer.default_root_dir") + 1]

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Say what is to be started again."""
        return submitit.helpers.DelayedSubmission(self)


def submit() -> None:
    """Submit the jobs, and where they run on this machine wait for their ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", default="slurm", help="slurm, local or debug")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--folder", type=Path, default=Path("runs/submitted"), help="a run's folder is seed<k> in it")
    parser.add_argument("--partition")
    parser.add_argument("--gpus", type=int, default=1, help="of one node, a process each")
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("options", nargs="*", help="of fit")
    asked = parser.parse_args()
    executor = submitit.AutoExecutor(asked.folder / "submitit", cluster=asked.cluster)
    executor.update_parameters(
        name="hsakd",
        gpus_per_node=asked.gpus,
        tasks_per_node=max(1, asked.gpus),
        timeout_min=round(60 * asked.hours),
        cpus_per_task=8,
        slurm_signal_delay_s=90,
        slurm_additional_parameters={"requeue": True},
        **({"slurm_partition": asked.partition} if asked.partition else {}),
    )
    devices = ["--trainer.devices", str(asked.gpus)] if asked.gpus else ["--trainer.accelerator", "cpu"]
    with executor.batch():
        jobs = [
            executor.submit(
                Fit(
                    [
                        *asked.options,
                        *devices,
                        "--seed_everything",
                        str(seed),
                        "--trainer.default_root_dir",
                        str(asked.folder / f"seed{seed}"),
                    ]
                )
            )
            for seed in range(asked.seeds)
        ]
    for job in jobs:
        print(job.job_id if asked.cluster == "slurm" else job.result())


if __name__ == "__main__":
    submit()
