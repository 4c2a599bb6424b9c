"""From a fresh interpreter to the first result and a clean exit: the whole process by the wall clock."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["importing", "startup"]

# What is importable is the same for all: workers of some libraries are told where functions are by name only.
_TASK = "from benchmarks.tasks import increment as f\n"

_PROGRAMS = {
    "executor": """
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2) as executor:
    assert executor.submit(f, 1).result() == 2
""",
    "gearmand": """
import gearmap
with gearmap.LocalCluster(2, server="gearmand") as cluster:
    assert cluster.submit(f, 1).result() == 2
""",
    "embedded": """
import gearmap
with gearmap.LocalCluster(2, server="embedded") as cluster:
    assert cluster.submit(f, 1).result() == 2
""",
}

# Peers are started as for every other row: by a program that opens the contender.
_PEER = """
from benchmarks.peers import open_peer
if __name__ == "__main__":
    with open_peer({name!r}, 2) as peer:
        assert peer.submit(f, 1).result() == 2
"""


def startup(name: str, quick: bool) -> dict[str, float]:
    """Run a small program a few times, after one run that compiles the modules and warms the disk's cache."""
    program = _TASK + (_PROGRAMS.get(name) or _PEER.format(name=name))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(program)
        seconds = [_run([str(path)]) for _ in range(2 if quick else 4)]
    return {"wall": statistics.median(seconds[1:])}


def importing(name: str, quick: bool) -> dict[str, float]:
    """Import a package ("bare": nothing) in a fresh interpreter; the median of many processes' wall clock."""
    statement = "pass" if name == "bare" else f"import {name}"
    seconds = [_run(["-c", statement]) for _ in range(3 if quick else 15)]
    return {"wall": statistics.median(seconds)}


def _run(arguments: list[str]) -> float:
    top = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([top, os.environ.get("PYTHONPATH", "")])}
    began = time.perf_counter()
    # Without a time limit: with one, `subprocess` looks every 50 ms at most whether the process has ended.
    subprocess.run([sys.executable, *arguments], check=True, env=environment)
    return time.perf_counter() - began
