"""Memory for large buffers.

Law of the file: what is asked for is address space; the system gives pages as they are written. So an announced length
may be believed before its bytes have come, nothing is zeroed twice, and nothing is copied because it grew.

Fresh pages are dear: the kernel clears each of them, and under a hypervisor the host may have to find it first. So what
is given back is kept for the next buffer, up to a limit, and marked as free to be taken by the system meanwhile.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from typing import Any

__all__ = ["LARGE_BYTES", "Areas", "keep_what_is_freed", "writable"]

# From here on a mapping of its own. Raised: more zeroing and page faults; lowered: more system calls.
LARGE_BYTES = 1024 * 1024

# Most that a process keeps for the next buffers. Raised: larger buffers, or more at a time, find pages that are there;
# lowered: an idle process looks smaller. It is not lost to others: the system may take it back at any time.
KEPT_BYTES = 160 * 1024 * 1024

# Mappings have multiples of this size, a huge page on most machines: buffers of nearly the same length share them.
_STEP_BYTES = 2 * 1024 * 1024

# Faults of 4 KiB pages cost more than copying what goes into them: filling 64 MB took 33 ms, with huge pages 11 ms.
_HUGE_FROM_BYTES = 4 * 1024 * 1024
_MADV_HUGEPAGE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
# "Take it when you need it; until then it is mine to write again."
_MADV_FREE: int | None = getattr(mmap, "MADV_FREE", None)


class Areas:
    """Memory areas that are used again.

    Any thread may take one, and an area comes back in whatever thread the last view of it dies in, at any moment. So
    there is no lock, only operations on lists and dicts that are single steps.

    Parameters
    ----------
    kept_bytes
        Most that is kept while nobody uses it.
    """

    def __init__(self, kept_bytes: int) -> None:
        self._kept_bytes = kept_bytes
        self._idle: list[mmap.mmap] = []
        # By the identity of the reference, which must itself be kept to be called; last, how many refer to the owner.
        self._lent: dict[int, tuple[weakref.ref[Any], mmap.mmap, Any]] = {}

    @property
    def idle_bytes(self) -> int:
        """What is kept now."""
        return sum(map(len, self._idle))

    def lend(self, n_bytes: int) -> memoryview:
        """Return `n_bytes` of writable memory with any content; it comes back when the last view of it goes."""
        import ctypes  # only large buffers need it

        area = self._take(n_bytes)
        if area is None:
            area = _map(-(-n_bytes // _STEP_BYTES) * _STEP_BYTES)
        # Views of a mapping keep the mapping itself alive; what dies with the last of them has to stand in between.
        owner = (ctypes.c_char * len(area)).from_buffer(area)
        reference = weakref.ref(owner, self._give_back)
        self._lent[id(reference)] = reference, area, ctypes.c_ssize_t.from_address(id(owner))
        return memoryview(owner).cast("B")[:n_bytes]

    def _take(self, n_bytes: int) -> mmap.mmap | None:
        """Return an idle area that fits well."""
        for area in self._idle[::-1]:  # the one used last is the likeliest to be in a cache
            if n_bytes <= len(area) <= n_bytes + n_bytes // 4 + _STEP_BYTES:
                try:
                    self._idle.remove(area)
                except ValueError:
                    continue  # another thread was faster
                return area
        return None

    def _give_back(self, reference: weakref.ref[Any]) -> None:
        _, area, count = self._lent.pop(id(reference))
        # The garbage collector calls this before the finalizers of what it has found, which may still read the memory
        # or keep it. Then somebody refers to the owner (an interpreter that counts in another way shows no zero either)
        # and the area is left to go with it.
        if count.value or len(area) > self._kept_bytes:
            return
        if _MADV_FREE is not None:
            _advise(area, _MADV_FREE)
        self._idle.append(area)
        while self.idle_bytes > self._kept_bytes:
            del self._idle[:1]  # not `pop`: another thread may have emptied it


# Process-wide, because memory is.
_areas = Areas(KEPT_BYTES)


def writable(n_bytes: int) -> memoryview:
    """Return `n_bytes` of writable memory with any content; it is given back when the last view of it goes.

    Raises
    ------
    OSError, MemoryError
        If the system has no address space left.
    """
    if n_bytes < LARGE_BYTES:
        return memoryview(bytearray(n_bytes))
    return _areas.lend(n_bytes)


def keep_what_is_freed() -> None:
    """Have the C library keep about 4 MB of what this process frees, for the next buffers.

    As it starts, glibc gives memory back at every 128 KiB: then each message of 100 kB finds fresh pages, which cost
    more than all that is done with them. It learns from what is freed: once that was more than we allocate below
    `LARGE_BYTES`, it no longer does so. Other libraries do as they like.

    For processes of our own; a user's process is not ours to tune.
    """
    bytes(2 * LARGE_BYTES)  # nothing is written to it, so that is address space only


def _map(n_bytes: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, n_bytes)
    # Private: a shared mapping is a file to the kernel, without huge pages, and forked processes would share it.
    area = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _MADV_HUGEPAGE is not None and n_bytes >= _HUGE_FROM_BYTES:
        _advise(area, _MADV_HUGEPAGE)
    return area


def _advise(area: mmap.mmap, advice: int) -> None:
    try:
        area.madvise(advice)
    except OSError:
        pass  # a kernel that does not know it; it is a matter of speed only
