"""From a fresh interpreter to the first result and a clean exit: the whole process by the wall clock."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

__all__ = ["startup"]

_EXECUTOR = """
from concurrent.futures import ProcessPoolExecutor
def f(x):
    return x + 1
with ProcessPoolExecutor(2) as executor:
    assert executor.submit(f, 1).result() == 2
"""

_GEARMAP = """
import gearmap
def f(x):
    return x + 1
with gearmap.LocalCluster(2, server={server!r}) as cluster:
    assert cluster.submit(f, 1).result() == 2
"""


def startup(name: str, quick: bool) -> dict[str, float]:
    """Run a small program a few times, after one run that compiles the modules and warms the disk's cache."""
    program = _EXECUTOR if name == "executor" else _GEARMAP.format(server=name)
    seconds = [_run(program) for _ in range(2 if quick else 4)]
    return {"wall": statistics.median(seconds[1:])}


def _run(program: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    return time.perf_counter() - began
