"""Large buffers, and when their memory is used again."""

from __future__ import annotations

import gc
import mmap
import platform
import subprocess
import sys
from typing import Any

import pytest

from gearmap.memory import LARGE_BYTES, Areas, writable

MIB = 1024 * 1024


@pytest.mark.parametrize("size", [0, 1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 5 * MIB + 3])
def test_a_buffer_has_the_size_asked_for_and_can_be_written(size: int) -> None:
    buffer = writable(size)

    buffer[:] = b"x" * size

    assert (len(buffer), buffer.format, buffer.readonly) == (size, "B", False)
    assert bytes(buffer) == b"x" * size


def test_memory_is_lent_again_after_the_last_view_of_it() -> None:
    areas = Areas(kept_bytes=8 * MIB)
    buffer = areas.lend(3 * MIB)
    buffer[:5] = b"first"
    part = buffer[10:20]

    del buffer
    assert areas.idle_bytes == 0
    del part
    assert areas.idle_bytes == 4 * MIB
    again = areas.lend(3 * MIB + 17)

    assert areas.idle_bytes == 0
    assert len(again) == 3 * MIB + 17


def test_memory_in_a_circle_of_references_is_not_lent_while_a_finalizer_may_read_it() -> None:
    areas = Areas(kept_bytes=8 * MIB)
    kept: list[memoryview] = []

    class Holder:
        def __init__(self, view: memoryview) -> None:
            self.view, self.itself = view, self

        def __del__(self) -> None:
            kept.append(self.view)
            other = areas.lend(MIB)
            other[:4] = b"evil"

    view: Any = areas.lend(MIB)
    view[:4] = b"good"
    holder = Holder(view)
    del view, holder
    gc.collect()

    assert bytes(kept[0][:4]) == b"good"


def test_two_buffers_in_use_are_two_memories() -> None:
    areas = Areas(kept_bytes=8 * MIB)
    one, other = areas.lend(2 * MIB), areas.lend(2 * MIB)

    one[:] = b"1" * len(one)
    other[:] = b"2" * len(other)

    assert bytes(one) == b"1" * len(one)


@pytest.mark.parametrize("size", [2 * MIB, 20 * MIB])
def test_an_area_of_a_very_different_size_is_not_taken(size: int) -> None:
    areas = Areas(kept_bytes=64 * MIB)
    areas.lend(8 * MIB).release()
    assert areas.idle_bytes == 8 * MIB

    buffer = areas.lend(size)

    assert (len(buffer), areas.idle_bytes) == (size, 8 * MIB)


def test_no_more_is_kept_than_was_allowed() -> None:
    areas = Areas(kept_bytes=5 * MIB)
    buffers = [areas.lend(2 * MIB) for _ in range(4)]

    while buffers:
        buffers.pop().release()

    assert areas.idle_bytes == 4 * MIB


def test_an_area_above_the_limit_is_given_back_and_leaves_the_others() -> None:
    areas = Areas(kept_bytes=4 * MIB)
    areas.lend(2 * MIB).release()

    areas.lend(6 * MIB).release()

    assert areas.idle_bytes == 2 * MIB


def test_an_announced_length_costs_no_memory() -> None:
    pages = mmap.PAGESIZE
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    buffer = Areas(kept_bytes=0).lend(1024 * MIB)
    buffer[0] = 1

    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults * pages < 16 * MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they like")
def test_memory_of_messages_that_is_freed_is_there_for_the_next() -> None:
    """Counted in an interpreter of its own: page faults of buffers that come and go."""
    code = (
        "import resource\n"
        "from gearmap.memory import keep_what_is_freed\n"
        "keep_what_is_freed()\n"
        "def once(): return [bytearray(200_000) for _ in range(5)]\n"
        "for _ in range(20): once()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(100): once()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 2000  # without, 16,000
