"""Large buffers that client and children of one machine share instead of sending them.

What must not live here: which payloads this is done for (`backend`), how a pickle names what is elsewhere
(`wire.serializer`), and how memory is sealed and mapped (`sealedmemory`).

Rule 1: what is shared cannot change any more. It is a copy, in memory that the kernel has sealed against writing, and
who opens it makes sure of that before use.
Rule 2: nothing has to be cleaned up. The memory has no name in any folder: it goes with the last payload that needs it
and the last process that has mapped it, however those end.
Rule 3: where it cannot be done, the buffer travels as any other.

Data flow::

    client: buffer -> place -> sealed memory, and a payload that calls `open_blob` where it is loaded
    child:  loads -> open_blob -> a private mapping: pages are shared until a task writes to them
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Union

from gearmap.errors import SerializationError
from gearmap.runtime.placed import PlacedPayload
from gearmap.runtime.sealedmemory import (
    SHARED_BYTES,
    can_share,
    close_memory,
    is_sealed,
    make_sealed,
    map_sealed,
)
from gearmap.wire.framing import Buffer, Payload, flat_view
from gearmap.wire.serializer import Elsewhere, copied, with_elsewhere
from gearmap.wire.shared import frozen_name

__all__ = [
    "BLOB_BYTES",
    "MAX_ARGUMENTS",
    "MAX_BLOBS",
    "ArgumentStore",
    "BlobPayload",
    "BlobStore",
    "can_share",
    "open_blob",
]

BLOB_BYTES = SHARED_BYTES

# What is compared at a time. Raised: from 128 KiB on the C library takes fresh pages for each, which takes three times
# as long; lowered: more system calls.
_STEP_BYTES = 64 * 1024

# Each blob is an open file of the client: 1024 is what most systems allow a process. Beyond this many, buffers travel
# as others do. Raised: more arrays at a time; lowered: fewer descriptors. Those of functions, then those of arguments.
MAX_BLOBS = 32
MAX_ARGUMENTS = 128

# The part of the machine's memory that arguments may take beside the user's own arrays. Raised: more large calls can
# wait as cheaply; lowered: more room for everything else.
_MEMORY_SHARE = 0.25

# Blobs of the same size with which an argument is compared. Raised: equal arrays among many of one size are found;
# lowered: fewer looks (about 3 us each, as nearly all differ at once).
_MOST_COMPARED = 8
_FIRST_LOOK_BYTES = 4096


class _Blob:
    """Sealed memory; closed with the last reference to this."""

    def __init__(self, descriptor: int, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.descriptor = descriptor
        status = os.fstat(descriptor)
        self.address = (os.getpid(), descriptor, status.st_dev, status.st_ino, n_bytes)
        weakref.finalize(self, close_memory, descriptor, n_bytes).atexit = False


_Parts = Sequence[Union[Buffer, _Blob]]  # noqa: UP007 - evaluated at run time


class BlobPayload(PlacedPayload):
    """A payload, with the blobs that it needs.

    Attributes
    ----------
    store
        Whose they are.
    """

    def __init__(self, payload: Iterable[Buffer], store: object, parts: _Parts) -> None:
        super().__init__(payload)
        self.store = store
        self._parts = parts

    @property
    def shared_bytes(self) -> int:
        """How much does not travel."""
        return sum(part.n_bytes for part in self._parts if isinstance(part, _Blob))

    def inline(self) -> list[Buffer]:
        """Return a payload that loads to the same on any machine."""
        return [map_sealed(part.descriptor, part.n_bytes) if isinstance(part, _Blob) else part for part in self._parts]


class BlobStore:
    """The buffers that one client shares, by content: an equal one is not kept twice.

    A buffer is compared with those of its size at each call, since nobody can tell whether an array has changed: about
    a quarter second for each gigabyte if it is known already, and half a second if it has to be copied. It is kept as
    long as any payload that needs it. One thread at a time places.
    """

    def __init__(self) -> None:
        self._blobs: weakref.WeakValueDictionary[int | str, _Blob] = weakref.WeakValueDictionary()
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._blobs)

    def place(self, payload: Payload) -> Payload:
        """Return a payload that loads to the same on this machine, and changes no more when the user's arrays do.

        Its large buffers are shared, and a large stream; the others are copied.
        """
        parts: list[Buffer | _Blob] = [self._share(flat_view(payload[0])) or payload[0]]
        for buffer in payload[1:]:
            blob = self._share(flat_view(buffer))
            parts.append(copied(buffer) if blob is None else blob)
        return _with_blobs(self, parts)

    def _share(self, view: memoryview) -> _Blob | None:
        """Return the blob that holds what the view holds now; None if it is small, or there is no room for more."""
        if len(view) < BLOB_BYTES:
            return None
        name = frozen_name(view)
        if name is not None:  # it never changes, so its name stands for its content
            known = self._blobs.get(name)
            if known is not None:
                return known
        else:
            for blob in [blob for blob in self._blobs.values() if blob.n_bytes == len(view)]:
                if _holds(blob, view):
                    return blob
        if len(self._blobs) >= MAX_BLOBS:
            return None
        try:
            blob = _Blob(make_sealed(view), len(view))
        except OSError:
            return None
        self._blobs[next(self._numbers) if name is None else name] = blob
        return blob


class ArgumentStore:
    """The large buffers of arguments that one client shares, each as long as its task may need it.

    Nothing is hashed: that takes longer than copying. A buffer that holds what one of the same size does is not kept
    twice; most that differ do so in the first page. Any thread may place.
    """

    def __init__(self) -> None:
        self._blobs: weakref.WeakValueDictionary[int | str, _Blob] = weakref.WeakValueDictionary()
        self._numbers = count()
        # What the garbage collector or a signal handler calls under it, in the same thread, may take it again.
        self._lock = threading.RLock()
        self._most_bytes = int(_MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    def __len__(self) -> int:
        return len(self._blobs)

    def place(self, payload: Payload, *, snapshot: bool = True) -> Payload:
        """Return a payload that loads to the same on this machine, its large buffers shared, a large stream too.

        The others are copied for a `snapshot`, else left as they are.
        """
        if len(payload) == 1 and len(payload[0]) < BLOB_BYTES:
            return payload
        parts: list[Buffer | _Blob] = [self._share(flat_view(payload[0])) or payload[0]]
        for buffer in payload[1:]:
            blob = self._share(flat_view(buffer))
            parts.append(blob or (copied(buffer) if snapshot else buffer))
        return _with_blobs(self, parts)

    def _share(self, view: memoryview) -> _Blob | None:
        """Return a blob that holds what the view holds now; None if it is small, or there is no room for more."""
        n_bytes = len(view)
        if n_bytes < BLOB_BYTES:
            return None
        name = frozen_name(view)
        with self._lock:
            kept = list(self._blobs.values())
            known = None if name is None else self._blobs.get(name)
        if known is not None:
            return known
        of_size = [blob for blob in kept if blob.n_bytes == n_bytes]
        for blob in of_size[-_MOST_COMPARED:]:
            if _holds(blob, view):
                return blob
        if len(kept) >= MAX_ARGUMENTS or n_bytes + sum(blob.n_bytes for blob in kept) > self._most_bytes:
            return None
        try:
            blob = _Blob(make_sealed(view), n_bytes)
        except OSError:
            return None
        with self._lock:
            self._blobs[name or next(self._numbers)] = blob
        return blob


def _with_blobs(store: object, parts: _Parts) -> list[Buffer]:
    if not any(isinstance(part, _Blob) for part in parts):
        return [*map(_inline, parts)]
    named = [Elsewhere(open_blob, part.address) if isinstance(part, _Blob) else part for part in parts]
    return BlobPayload(with_elsewhere(named[0], named[1:]), store, parts)


def _inline(part: Buffer | _Blob) -> Buffer:
    assert not isinstance(part, _Blob)
    return part


def _holds(blob: _Blob, view: memoryview) -> bool:
    """Whether a blob holds what the view does."""
    start, step = 0, _FIRST_LOOK_BYTES
    while start < len(view):
        # Copies that stay in the processor's cache: views are compared byte by byte.
        if os.pread(blob.descriptor, step, start) != bytes(view[start : start + step]):
            return False
        start += step
        step = _STEP_BYTES
    return True


def open_blob(pid: int, descriptor: int, device: int, inode: int, n_bytes: int) -> memoryview:
    """Map a blob. What is written to it is seen by this process only, and costs memory then.

    Raises
    ------
    SerializationError
        If it is not there any more, or cannot be opened.
    """
    try:
        with open(f"/proc/{pid}/fd/{descriptor}", "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != (device, inode) or not is_sealed(file.fileno()):
                raise SerializationError("a large array was let go by its client before it was loaded here")
            return map_sealed(file.fileno(), n_bytes)
    except OSError as error:
        raise SerializationError(f"cannot open the memory of a large array of process {pid}: {error}") from error
