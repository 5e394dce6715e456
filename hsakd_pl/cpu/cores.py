"""Count the CPUs that this process may use: those of its affinity, within the quota of its cgroups.

PyTorch, OpenMP and Python follow the affinity. A quota, which containers have, they do not know: with 64 threads on a
quota of 4 CPUs, all threads are stopped for most of the time.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of CPUs that this process may use; ``root`` has ``proc`` and the cgroups' mount points."""
    quota = cpu_quota(root)
    cores = affinity()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def affinity() -> int:
    """Return the number of CPUs on which this process may run."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13; it follows PYTHON_CPU_COUNT as well
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU time per time that the cgroups of this process allow, such as 1.5; None without a limit.

    The smallest limit counts, of the process's own cgroup and of those around it. Version 2 is tried and version 1.
    """
    try:
        folders = [folder for folder in _folders(root) if folder.is_dir()]
        limits = [_limit(folder) for folder in folders]
    except (OSError, ValueError):  # no Linux, or a /proc that is not readable
        return None
    return min((limit for limit in limits if limit is not None), default=None)


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups that may limit the CPU, each from its own to the mount point.

    See cgroups(7) and proc_pid_mountinfo(5).
    """
    paths: dict[str, PurePosixPath] = {}  # type of the file system -> path of the cgroup in its hierarchy
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = PurePosixPath(path)
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind in paths and (kind == "cgroup2" or "cpu" in options.split(",")):
            mounted, mount_point = fields.split(" ")[3:5]
            top = root / mount_point.lstrip("/")
            # a container may see only a part of the hierarchy, or name its cgroup by a path from outside of it
            cgroup = paths[kind]
            inner = cgroup.relative_to(mounted) if cgroup.is_relative_to(mounted) else PurePosixPath()
            within = [] if ".." in inner.parts else [inner, *inner.parents]
            yield from (top / part for part in {*within, PurePosixPath()})


def _limit(folder: Path) -> float | None:
    """Return the limit of one cgroup, None without one."""
    if (folder / "cpu.max").exists():  # version 2
        quota, period = (folder / "cpu.max").read_text().split()
    elif (folder / "cpu.cfs_quota_us").exists():
        quota = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
    else:  # the top of version 2
        return None
    return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
