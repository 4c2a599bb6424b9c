"""`gearmap demo`: the main job on real input, checked against doing it serially.

Law of the file: the figures are told as they are. Equal results decide the exit status, speed does not.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from gearmap.cli.common import count

if TYPE_CHECKING:
    from gearmap.cli.metrics import FileMetrics

__all__ = ["demo_command", "find_sources", "make_measure"]

# Not part of the standard library's own source, or not source at all.
_SKIPPED = ("site-packages", "dist-packages", "__pycache__", "lib-dynload")
TOP_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """How the parallel part went; durations in seconds."""

    results: list[FileMetrics]
    elapsed: float
    ready: float
    workers: int
    server: str


@click.command("demo")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Default: one for each usable CPU.")
@click.option(
    "--server",
    type=click.Choice(["auto", "embedded", "gearmand"]),
    default="auto",
    show_default=True,
    help="Which job server to start.",
)
@click.option("--files", type=click.IntRange(min=1), metavar="N", help="Only the first N files.")
def demo_command(workers: int | None, server: str, files: int | None) -> int:
    """Measure the source of Python's standard library, in parallel and then serially.

    The exit status is 0 only if both give the same.
    """
    from gearmap.runtime.cpus import usable_cpus

    root = sysconfig.get_path("stdlib")
    names = find_sources(root)[:files]
    if not names:
        click.echo(f"gearmap: no .py file in {root}", err=True)
        return 1
    total_bytes = read_all(root, names)
    click.echo(f"{count(len(names), 'file')} of Python's standard library, {total_bytes / 1e6:.1f} MB of source")
    measure = make_measure(root)
    parallel = run_parallel(measure, names, workers or usable_cpus(), server)
    serial, serial_elapsed = run_serially(measure, names)
    show(names, parallel, serial_elapsed)
    return report_differences(names, parallel.results, serial)


def find_sources(root: str) -> list[str]:
    """Return the `.py` files below a folder, relative to it, in order."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files if name.endswith(".py")]
    return sorted(found)


def make_measure(root: str) -> Callable[[str], FileMetrics]:
    """Return the function that the tasks run: a closure over `root`, which no import could find."""
    from gearmap.cli.metrics import measure_source

    def measure(name: str) -> FileMetrics:
        with open(os.path.join(root, name), "rb") as file:
            return measure_source(file.read(), name)

    return measure


def read_all(root: str, names: Sequence[str]) -> int:
    """Read every file once, so that both sides find them in memory; return their size in bytes."""
    total = 0
    for name in names:
        with open(os.path.join(root, name), "rb") as file:
            total += len(file.read())
    return total


def run_parallel(measure: Callable[[str], FileMetrics], names: Sequence[str], workers: int, server: str) -> Parallel:
    """Run the tasks on a local cluster."""
    import gearmap

    started = time.perf_counter()
    with gearmap.LocalCluster(workers, server=server) as cluster:
        # One task to each worker, so that what is measured afterwards is the work and not the start.
        gearmap.map(abs, range(workers), chunksize=1, progress=False)
        began = time.perf_counter()
        results = gearmap.map(measure, names, desc="in parallel", progress=_is_watched())
        elapsed = time.perf_counter() - began
        kind = cluster.server
    return Parallel(results=results, elapsed=elapsed, ready=began - started, workers=workers, server=kind)


def run_serially(measure: Callable[[str], FileMetrics], names: Sequence[str]) -> tuple[list[FileMetrics], float]:
    """Do the same in this process alone; return the results and the seconds."""
    from tqdm import tqdm

    began = time.perf_counter()
    bar = tqdm(names, desc="the same, serially", unit="task", disable=not _is_watched(), dynamic_ncols=True)
    results = [measure(name) for name in bar]
    return results, time.perf_counter() - began


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def show(names: Sequence[str], parallel: Parallel, serial_elapsed: float) -> None:
    """Print what was found and how fast."""
    from rich import box
    from rich.table import Table

    from gearmap.cli.metrics import add_up
    from gearmap.cli.status import make_console

    total = add_up(parallel.results)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    top = ", ".join(f"{name} {times:,}" for name, times in total.calls.most_common(TOP_NAMES))
    speed_up = serial_elapsed / parallel.elapsed
    for row in (
        ("files", f"{total.files:,}, {total.unparsed:,} of them not valid for this Python"),
        ("functions, classes", f"{total.functions:,} and {total.classes:,}"),
        ("called most", top),
        ("longest function", f"{total.longest.value:,} lines: {total.longest.place}"),
        ("deepest nesting", f"{total.deepest.value} levels: {total.deepest.place}"),
        ("job server", f"{parallel.server}, {count(parallel.workers, 'worker')}, ready in {parallel.ready:.2f} s"),
        ("parallel", f"{parallel.elapsed:.2f} s, {len(names) / parallel.elapsed:,.0f} tasks/s"),
        ("serial", f"{serial_elapsed:.2f} s, {len(names) / serial_elapsed:,.0f} tasks/s"),
        ("speed-up", f"{speed_up:.2f} times" + explain_speed(speed_up, parallel.workers)),
    ):
        table.add_row(*row)
    make_console().print(table)


def explain_speed(speed_up: float, workers: int) -> str:
    """Return what to think of a speed-up that nobody hoped for."""
    if speed_up >= 1:
        return ""
    if workers == 1:
        return " (one worker cannot be faster than doing it here)"
    return " (slower than serial: too little work for the overhead, or the machine is busy)"


def report_differences(names: Sequence[str], parallel: Sequence[FileMetrics], serial: Sequence[FileMetrics]) -> int:
    """Say whether both sides agree, and where they do not; return the exit status."""
    differing = [name for name, left, right in zip(names, parallel, serial, strict=False) if left != right]
    if len(parallel) == len(serial) and not differing:
        click.echo("The parallel results equal the serial ones.")
        return 0
    click.echo(
        f"gearmap: the results differ: {len(parallel)} parallel, {len(serial)} serial, "
        f"{count(len(differing), 'file')} with other metrics",
        err=True,
    )
    for name in differing[:TOP_NAMES]:
        click.echo(f"  {name}", err=True)
    return 1
