"""Large buffers that payloads name by their content: opened in the child that loads the payload.

What must not live here: how they come to its node (`blobdesk`), and who gives them (`blobsource`).

Law of the file: what is opened is the child's own. A task may write to it, and pays for the pages that it writes.
"""

from __future__ import annotations

import mmap
import os

from gearmap.errors import SerializationError
from gearmap.runtime import child
from gearmap.runtime.sealedmemory import can_share, map_sealed

__all__ = ["open_held"]


def open_held(digest: str, n_bytes: int) -> memoryview:
    """Return the bytes of a blob that the present job needs.

    Raises
    ------
    SerializationError
        If it is not here.
    """
    place = child.blobs.get(digest)
    if place is None:
        raise SerializationError(f"a large array of {n_bytes} bytes is not here: it came with another job")
    path, device, inode, _ = place
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino, status.st_size) != (device, inode, n_bytes):
                raise SerializationError("a large array was let go by its node before it was loaded")
            if can_share():
                return map_sealed(file.fileno(), n_bytes)
            return memoryview(mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise SerializationError(f"cannot open the memory of a large array: {error}") from error
