"""Memory of processes: this one will do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gearmap.runtime import memory_use
from gearmap.runtime.memory_use import MemoryMeter, can_measure, high_water_bytes, total_bytes

MB = 2**20
NOBODY = 2**30  # no process has this id

pytestmark = pytest.mark.skipif(not can_measure(), reason="memory cannot be measured here")


def _in_a_new_process(*lines: str) -> list[int]:
    """Run lines of code in a process that leads a session, as children do; return the numbers that it prints."""
    imports = (
        "import os",
        "from gearmap.runtime import memory_use",
        "from gearmap.runtime.memory_use import MemoryMeter, high_water_bytes",
    )
    command = [sys.executable, "-c", "\n".join((*imports, *lines))]
    done = subprocess.run(command, start_new_session=True, capture_output=True, text=True, timeout=60, check=True)
    return [int(word) for word in done.stdout.split()]


def test_there_is_more_memory_than_this_process_ever_used_and_that_is_more_than_nothing() -> None:
    total = total_bytes()
    assert total is not None
    assert MB < high_water_bytes(os.getpid()) < total


def test_memory_that_is_used_is_seen() -> None:
    # A process of its own: what a test process has used and freed before may be used again without being asked for.
    used = _in_a_new_process(
        "meter = MemoryMeter()",
        "before = meter.measure([os.getpid()], 0.0)[os.getpid()]",
        "block = bytearray(b'x') * (64 * 2**20)",
        "print(meter.measure([os.getpid()], 0.1)[os.getpid()] - before, high_water_bytes(os.getpid()) - len(block))",
    )
    assert 60 * MB < used[0] < 80 * MB
    assert used[1] >= 0


def test_a_process_that_has_gone_uses_nothing() -> None:
    assert high_water_bytes(NOBODY) == 0
    assert MemoryMeter().measure([NOBODY], 0.0) == {NOBODY: 0}


def test_nobody_measured_costs_nothing() -> None:
    assert MemoryMeter().measure([], 0.0) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="files of Linux")
def test_a_control_group_that_allows_less_than_there_is_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    less, unlimited = tmp_path / "less", tmp_path / "max"
    less.write_text(f"{MB}\n")
    unlimited.write_text("max\n")
    monkeypatch.setattr(memory_use, "_CGROUP_LIMITS", (str(unlimited), str(tmp_path / "missing")))
    machine = total_bytes()
    monkeypatch.setattr(memory_use, "_CGROUP_LIMITS", (str(unlimited), str(less)))
    assert total_bytes() == MB
    assert machine is not None
    assert machine > MB


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is the only way")
def test_without_linux_psutil_says_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    here, there = _in_a_new_process(
        "print(MemoryMeter().measure([os.getpid()], 0.0)[os.getpid()])",
        "memory_use._IS_LINUX = False",
        "print(MemoryMeter().measure([os.getpid()], 0.0)[os.getpid()])",
    )
    assert there == pytest.approx(here, rel=0.2)
    total = total_bytes()
    monkeypatch.setattr(memory_use, "_IS_LINUX", False)
    assert total_bytes() == pytest.approx(total, rel=0.2)
    assert high_water_bytes(NOBODY) == 0
    assert high_water_bytes(os.getpid()) > MB
