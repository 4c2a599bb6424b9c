"""Memory of processes: this one will do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gearmap.runtime import memory_use
from gearmap.runtime.memory_use import MemoryMeter, can_measure, high_water_bytes, total_bytes

MB = 2**20
NOBODY = 2**30  # no process has this id

pytestmark = pytest.mark.skipif(not can_measure(), reason="memory cannot be measured here")


def test_there_is_more_memory_than_this_process_ever_used_and_that_is_more_than_nothing() -> None:
    total = total_bytes()
    assert total is not None
    assert MB < high_water_bytes(os.getpid()) < total


def test_memory_that_is_used_is_seen() -> None:
    meter = MemoryMeter()
    before = meter.measure([os.getpid()], 0.0)[os.getpid()]
    block = bytearray(b"x") * (64 * MB)
    after = meter.measure([os.getpid()], 0.1)[os.getpid()]
    assert 60 * MB < after - before < 80 * MB
    assert high_water_bytes(os.getpid()) >= len(block)


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
    here = MemoryMeter().measure([os.getpid()], 0.0)[os.getpid()]
    total = total_bytes()
    monkeypatch.setattr(memory_use, "_IS_LINUX", False)
    there = MemoryMeter().measure([os.getpid()], 0.0)[os.getpid()]
    assert there == pytest.approx(here, rel=0.2)
    assert total_bytes() == pytest.approx(total, rel=0.2)
    assert high_water_bytes(NOBODY) == 0
    assert high_water_bytes(os.getpid()) > MB
