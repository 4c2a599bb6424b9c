"""Looking for bytes in the memory of a process, as the kernel shows it to whoever may trace that process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest

_STEP = 16 * 1024 * 1024


def _readable(pid: int) -> Iterator[tuple[int, int]]:
    """The ranges of a process's memory that hold something of its own."""
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            place, rights, *_ = line.split()
            if rights.startswith("r") and not line.rstrip().endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                start, _, end = place.partition("-")
                yield int(start, 16), int(end, 16)


def found_in(pid: int, wanted: Mapping[str, bytes]) -> set[str]:
    """Return the names of those bytes that are anywhere in a process's memory; skip the test if it may not be read."""
    found: set[str] = set()
    longest = max(map(len, wanted.values()))
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except PermissionError:
        pytest.skip("the system does not let this user read the memory of processes")
    try:
        for start, end in _readable(pid):
            for at in range(start, end, _STEP):
                try:
                    data = os.pread(memory, min(_STEP + longest, end - at), at)
                except OSError:  # it was unmapped meanwhile, or is a device's
                    break
                found |= {name for name, each in wanted.items() if each in data}
    finally:
        os.close(memory)
    return found
