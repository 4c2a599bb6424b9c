"""The program: contestants in turn, each in a fresh process; tables on the terminal, figures in a file.

Rule 1: A B C A B C, never A A B B: what the machine does meanwhile meets all of them.
Rule 2: a contestant that fails or hangs loses its turn, not the run.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import gearmap
from benchmarks.peers import PACKAGES, is_installed
from benchmarks.report import Samples, table
from benchmarks.rows import ROWS, Row

__all__ = ["main"]

# The longest that one contestant may take for one turn (seconds).
_TURN_SECONDS = 120.0

_FOLDER = Path(__file__).resolve().parent.parent / "artifacts" / "benchmarks"


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks; return 1 if a contestant failed."""
    options = _parse(arguments)
    _compile()
    rows = [row for row in ROWS if not options.only or row.name in options.only]
    repeats = options.repeats or (1 if options.quick else 3)
    facts = _facts()
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    everything: dict[str, Samples] = {}
    failed = 0
    for row in rows:
        names = _contestants(row, options)
        samples = everything[row.name] = {name: [] for name in names}
        for turn in range(repeats):
            for name in names:
                figures = _take_turn(row, name, quick=options.quick)
                failed += figures is None
                if figures is not None:
                    samples[name].append(figures)
            print(f"{row.name}: turn {turn + 1} of {repeats}", file=sys.stderr, flush=True)
        print("\n" + table(row, samples), flush=True)
    path = _write(facts, everything, quick=options.quick)
    print(f"\nwritten to {_shown(path)}{_draw(path)}")
    return 1 if failed else 0


def _compile() -> None:
    """Compile our modules, as an installation does: where Python keeps no bytecode each start would do that again."""
    for package in (gearmap.__path__[0], str(Path(__file__).parent)):
        compileall.compile_dir(package, quiet=2)


def _contestants(row: Row, options: argparse.Namespace) -> list[str]:
    """Return who takes turns: those that were asked for, of the peers those that are installed."""
    names = [*row.contestants, *(() if options.no_peers else filter(is_installed, row.peers))]
    return [name for name in names if not options.contestants or name in options.contestants]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    names = [row.name for row in ROWS]
    parser.add_argument("--only", action="append", metavar="ROW", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument("--contestant", action="append", dest="contestants", metavar="NAME", help="only these")
    parser.add_argument("--no-peers", action="store_true", help="without other libraries, installed or not")
    parser.add_argument("--repeats", type=int, metavar="N", help="turns of each contestant (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work, and roughly how fast?")
    return parser.parse_args(arguments)


def _take_turn(row: Row, name: str, *, quick: bool) -> dict[str, float] | None:
    """Run one contestant once; return its figures, or None if it failed."""
    command = [sys.executable, "-m", "benchmarks.contestant", row.name, name, *(["--quick"] if quick else [])]
    top = Path(__file__).resolve().parent.parent
    # Compiled modules are written and kept, as on any machine that runs a program twice.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        command, cwd=top, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=_TURN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        print(f"{row.name} {name}: nothing after {_TURN_SECONDS:g} s", file=sys.stderr)
        return None
    if process.returncode != 0:
        print(f"{row.name} {name}: exit status {process.returncode}", file=sys.stderr)
        return None
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    figures["load"] = os.getloadavg()[0]
    return figures


def _facts() -> dict[str, str]:
    """Return what a reader of the figures must know about this machine."""
    facts = {"Python": platform.python_version(), "cores": str(os.cpu_count()), "load": f"{os.getloadavg()[0]:.1f}"}
    for name in ("gearmap", "gearman3", "cloudpickle", "cryptography", "numpy"):
        facts[name] = version(name)
    facts |= {name: version(name) for name in PACKAGES if is_installed(name)}
    from gearmap.jobserver.process import find_gearmand

    gearmand = find_gearmand()
    if gearmand is None:
        return facts
    shown = subprocess.run([gearmand, "--version"], capture_output=True, text=True, check=False).stdout.split()
    return facts | {"gearmand": next((word for word in shown if word[:1].isdigit()), "?")}


def _write(facts: dict[str, str], everything: dict[str, Samples], *, quick: bool) -> Path:
    """Save every figure of every turn."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    path = _FOLDER / time.strftime("%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps({"facts": facts, "quick": quick, "rows": everything}, indent=1) + "\n")
    return path


def _draw(path: Path) -> str:
    """Draw the figures beside their file; return what there is to say of it."""
    if find_spec("matplotlib") is None:
        return "; a picture of them needs matplotlib"
    from benchmarks.plots import main as draw

    picture = path.with_suffix(".svg")
    draw([str(path), str(picture)])
    return f", and drawn in {_shown(picture)}"


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
