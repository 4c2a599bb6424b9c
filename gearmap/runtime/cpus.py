"""How many processors there are to use, how many threads each child should, and what a process has used."""

from __future__ import annotations

import os
import sys

__all__ = ["blas_defaults", "cpu_seconds", "usable_cpus"]


def blas_defaults(workers: int) -> dict[str, str]:
    """Return thread counts for numerical libraries, so that `workers` processes do not fight for the same cores."""
    cpus = usable_cpus()
    threads = str(max(1, cpus // max(1, workers)))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {name: threads for name in names if name not in os.environ}


def usable_cpus() -> int:
    """Return how many CPUs this process may use: by its affinity and, on Linux, by its control group (cgroup v2)."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    if sys.platform == "linux":
        try:
            with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
                quota, period = file.read().split()
            if quota != "max":
                cpus = min(cpus, max(1, round(int(quota) / int(period))))
        except (OSError, ValueError):
            pass
    return max(1, cpus)


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time of a process and of those that it has waited for; None where nobody can say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # What follows the name, which may hold anything, from the state on (proc(5), fields 14 to 17).
            ticks = sum(map(int, file.read().rpartition(")")[2].split()[11:15]))
    except (OSError, ValueError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")
