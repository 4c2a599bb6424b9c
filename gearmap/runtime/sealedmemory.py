"""Memory without a name in any folder that processes of one machine share, and that nobody can change any more.

What must not live here: who shares what, and how the other side learns of it (`blobs`, `landing`).

Rule 1: memory is filled once, by its maker, and sealed by the kernel before anybody else is told of it. Who maps it
checks size and seals first.
Rule 2: a mapping is private: what is written to it is seen by its own process only. It needs no descriptor: a process
that keeps a thousand arrays keeps no thousand open files.
"""

from __future__ import annotations

import _thread
import mmap
import os
import sys
from typing import Any

if sys.platform != "win32":
    import fcntl

__all__ = [
    "SHARED_BYTES",
    "can_share",
    "close_memory",
    "is_sealed",
    "make_sealed",
    "map_sealed",
    "open_memory",
    "seal",
    "write_all",
]

# Buffers from this size on are shared. Raised: more bytes in each message; lowered: more descriptors and mappings, for
# what costs less than making and opening them (about 50 us).
SHARED_BYTES = 1024 * 1024

# Freeing pages takes 0.3 ms for each MB. Raised: fewer threads; lowered: who lets go of memory waits less.
_SLOW_BYTES = 16 * 1024 * 1024

_MAP_FIXED = 0x10  # the same on all of Linux's machines that Python runs on; not in `mmap`


def can_share() -> bool:
    """Whether other processes of this user can open memory of this one."""
    if not hasattr(os, "memfd_create"):
        return False
    try:
        # They belong to root where the system guards this process from others of its user.
        return os.stat("/proc/self/fd").st_uid == os.geteuid()
    except OSError:
        return False


def make_sealed(view: memoryview) -> int:
    """Return the descriptor of sealed memory that holds what the view held while it was copied.

    Raises
    ------
    OSError
        If the system has no room, or no descriptor.
    """
    descriptor = open_memory()
    try:
        write_all(descriptor, view)
        seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_memory() -> int:
    """Return the descriptor of fresh memory; OSError if there is none."""
    return os.memfd_create("gearmap-blob", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def close_memory(descriptor: int, n_bytes: int) -> None:
    """Close memory of so many bytes, which may be the end of it; the driver need not wait while its pages are freed.

    It may be called by the garbage collector, at any time: so no lock is taken.
    """
    if n_bytes >= _SLOW_BYTES:
        try:
            _thread.start_new_thread(os.close, (descriptor,))
            return
        except RuntimeError:
            pass  # the interpreter ends, or there are too many
    os.close(descriptor)


def write_all(descriptor: int, data: memoryview) -> None:
    """Append all of it."""
    while data:
        data = data[os.write(descriptor, data) :]


def seal(descriptor: int) -> None:
    """Let nobody change it, nor its size, from now on."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _seals())


def is_sealed(descriptor: int) -> bool:
    """Whether it is memory that nobody can change any more."""
    try:
        return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _seals() == _seals())
    except OSError:  # a file that knows no seals
        return False


def map_sealed(descriptor: int, n_bytes: int) -> memoryview:
    """Map sealed memory of so many bytes, 1 or more. The descriptor may be closed then.

    Raises
    ------
    OSError
        If it is not such memory, or cannot be mapped.
    """
    import ctypes  # only large buffers need it

    if os.fstat(descriptor).st_size != n_bytes or not is_sealed(descriptor):
        raise OSError("this is not the sealed memory that was announced")
    # `mmap` would keep a descriptor for each mapping. So it maps nothing in particular, and what is wanted takes the
    # place of that: the object unmaps it like its own.
    area = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if _libc_mmap()(address, n_bytes, access, mmap.MAP_PRIVATE | _MAP_FIXED, descriptor, 0) != address:
        raise OSError(ctypes.get_errno(), f"{n_bytes} bytes of shared memory cannot be mapped")
    return memoryview(area)


def _libc_mmap() -> Any:
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    return function


def _seals() -> int:
    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
