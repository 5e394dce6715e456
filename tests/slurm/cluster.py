"""Run a SLURM cluster of one node on this machine, from Debian's slurm-wlm and munge, in its own folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=1
GresTypes=gpu
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


class ClusterError(Exception):
    """Raised if SLURM is not installed or does not start."""


class Cluster:
    """Run the daemons until :meth:`stop`; the GPUs that the node declares are only numbers.

    Raises:
        ClusterError: if SLURM is not installed or does not start.
    """

    def __init__(self, folder: Path) -> None:
        if missing := [command for command in COMMANDS if shutil.which(command) is None]:
            raise ClusterError(f"needs {', '.join(missing)}: as root, tests/install.sh")
        if os.geteuid() != 0:
            raise ClusterError("SLURM's daemons start jobs, which only root may do")
        folder.chmod(0o755)  # munged refuses a folder that others can write to
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        names = {"folder": folder, "host": socket.gethostname().split(".")[0]}
        ports = dict(zip(("controller_port", "node_port"), free_ports(2), strict=True))
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**names, **ports))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        files = [f"--{option}={self.folder}/munge.{name}" for option, name in names.items()]
        self._daemon("munged", "--foreground", "--force", *files)
        self._await("munged", (self.folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D", "-N", "localhost")
        self._await("slurmd", lambda: "State=IDLE" in self.run("scontrol", "show", "node", "localhost", check=False))

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            self.daemons += [subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)]

    def _await(self, daemon: str, ready: Callable[[], bool], seconds: int = 300) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end or any(process.poll() is not None for process in self.daemons):
                said = [path.read_text()[-500:] for path in self.folder.glob(f"{daemon}.[lo]*")]
                raise ClusterError(f"{daemon} does not start: {' '.join(said)}")
            time.sleep(0.2)

    def run(self, *command: str, cwd: Path | None = None, check: bool = True) -> str:
        """Return the output of a SLURM command."""
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        """Return the fields of ``scontrol show job``."""
        return dict(pair.partition("=")[::2] for pair in self.run("scontrol", "show", "job", job).split())

    def log(self) -> str:
        """Return the end of the daemons' logs, which tells why a job does not run."""
        return "".join((self.folder / f"{daemon}.log").read_text()[-1000:] for daemon in ("slurmctld", "slurmd"))

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        if len(self.daemons) == 3:
            self.run("scancel", "--user=root", check=False)
            end = time.monotonic() + 20
            while self.run("squeue", "--noheader", check=False).strip() and time.monotonic() < end:
                time.sleep(0.2)
        for process in reversed(self.daemons):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    """Return different free ports."""
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
