"""Memory for large buffers.

Law of the file: what is asked for is address space; the system gives pages as they are written. So an announced length
may be believed before its bytes have come, nothing is zeroed twice, and nothing is copied because it grew.
"""

from __future__ import annotations

import mmap
import sys

__all__ = ["LARGE_BYTES", "writable"]

# From here on a mapping of its own. Raised: more zeroing and page faults; lowered: more system calls.
LARGE_BYTES = 1024 * 1024

# Faults of 4 KiB pages cost more than copying what goes into them: filling 64 MB took 33 ms, with huge pages 11 ms.
_HUGE_FROM_BYTES = 4 * 1024 * 1024
_MADV_HUGEPAGE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def writable(n_bytes: int) -> memoryview:
    """Return `n_bytes` of writable memory, zeroed, that is given back when the last view of it goes.

    Raises
    ------
    OSError, MemoryError
        If the system has no address space left.
    """
    if n_bytes < LARGE_BYTES:
        return memoryview(bytearray(n_bytes))
    if sys.platform == "win32":
        return memoryview(mmap.mmap(-1, n_bytes))
    # Private: a shared mapping is a file to the kernel, without huge pages, and forked processes would share it.
    area = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _MADV_HUGEPAGE is not None and n_bytes >= _HUGE_FROM_BYTES:
        try:
            area.madvise(_MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without them; it is a matter of speed only
    return memoryview(area)
