"""Large buffers that client and children of one machine share instead of sending them.

What must not live here: which payloads this is done for (`backend`), and how a pickle names what is elsewhere
(`wire.serializer`).

Rule 1: what is shared cannot change any more. It is a copy, in memory that the kernel has sealed against writing, and
who opens it makes sure of that before use.
Rule 2: nothing has to be cleaned up. The memory has no name in any folder: it goes with the last payload that needs it
and the last process that has mapped it, however those end.
Rule 3: where it cannot be done, the buffer travels as any other.

Data flow::

    client: buffer -> BlobStore.place -> sealed memory, and a payload that calls `open_blob` where it is loaded
    child:  loads -> open_blob -> a private mapping: pages are shared until a task writes to them
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import sys
import weakref
from collections.abc import Iterable
from typing import Any

from gearmap.errors import SerializationError
from gearmap.wire.framing import Buffer, Payload, flat_view
from gearmap.wire.serializer import Elsewhere, copied, with_elsewhere

if sys.platform != "win32":
    import fcntl

__all__ = ["BLOB_BYTES", "MAX_BLOBS", "BlobStore", "can_share", "open_blob"]

# Buffers from this size on are shared. Raised: more bytes in each job; lowered: more descriptors, in the client and in
# each child, for what costs less than opening and mapping it (about 50 us).
BLOB_BYTES = 1024 * 1024

# What is copied and hashed at a time. Raised: it leaves the processor's cache before it is hashed and written; lowered:
# more system calls.
_STEP_BYTES = 256 * 1024

# Each blob is an open file of the client, and of each child for as long as it keeps the function: 1024 is what most
# systems allow a process. Beyond this many, buffers travel as others do. Raised: more arrays at a time; lowered: fewer
# descriptors.
MAX_BLOBS = 32

_DIGEST_BYTES = 32


class BlobStore:
    """The buffers that one client shares, by content: an equal one is not kept twice.

    A buffer is read at each call, since nobody can tell whether an array has changed: about a second for each
    gigabyte if it is known already, and half as long again if not. It is kept as long as any payload that needs it.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._blobs: weakref.WeakValueDictionary[bytes, _Blob] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._blobs)

    def place(self, payload: Payload) -> Payload:
        """Return a payload that loads to the same on this machine, and changes no more when the user's arrays do.

        Its large buffers are shared, the others copied.
        """
        blobs: list[_Blob] = []
        buffers: list[Buffer | Elsewhere] = []
        for buffer in payload[1:]:
            blob = self._share(flat_view(buffer))
            if blob is None:
                buffers.append(copied(buffer))
            else:
                blobs.append(blob)
                buffers.append(Elsewhere(open_blob, blob.address))
        if not blobs:
            return [payload[0], *map(_inline, buffers)]
        return _BlobPayload(with_elsewhere(payload[0], buffers), blobs)

    def _share(self, view: memoryview) -> _Blob | None:
        """Return the blob that holds what the view holds now; None if it is small, or there is no room for more."""
        if len(view) < BLOB_BYTES:
            return None
        if any(blob.n_bytes == len(view) for blob in self._blobs.values()):
            digest = self._hasher()
            digest.update(view)
            known = self._blobs.get(digest.digest())
            if known is not None:
                return known
        if len(self._blobs) >= MAX_BLOBS:
            return None
        try:
            return self._copy(view)
        except OSError:
            return None

    def _copy(self, view: memoryview) -> _Blob:
        """Copy and hash in one go, so that the digest is that of the copy even if another thread writes meanwhile."""
        hasher = self._hasher()
        descriptor = os.memfd_create("gearmap-blob", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            for start in range(0, len(view), _STEP_BYTES):
                step = bytes(view[start : start + _STEP_BYTES])
                hasher.update(step)
                _write(descriptor, step)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _seals())
            blob = _Blob(descriptor, len(view))
        except BaseException:
            os.close(descriptor)
            raise
        self._blobs[hasher.digest()] = blob
        return blob

    def _hasher(self) -> hashlib.blake2b:
        return hashlib.blake2b(key=self._key, digest_size=_DIGEST_BYTES)


class _Blob:
    """Sealed memory; closed with the last reference to this."""

    def __init__(self, descriptor: int, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        status = os.fstat(descriptor)
        self.address = (os.getpid(), descriptor, status.st_dev, status.st_ino, n_bytes)
        weakref.finalize(self, os.close, descriptor).atexit = False


class _BlobPayload(list[Buffer]):
    """A payload, with the blobs that it needs."""

    def __init__(self, payload: Iterable[Buffer], blobs: list[_Blob]) -> None:
        super().__init__(payload)
        self.blobs = blobs


def can_share() -> bool:
    """Whether other processes of this user can open memory of this one."""
    if not hasattr(os, "memfd_create"):
        return False
    try:
        # They belong to root where the system guards this process from others of its user.
        return os.stat("/proc/self/fd").st_uid == os.geteuid()
    except OSError:
        return False


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
            if (status.st_dev, status.st_ino, status.st_size) != (device, inode, n_bytes) or not _is_sealed(file):
                raise SerializationError("a large array was let go by its client before it was loaded here")
            return memoryview(mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise SerializationError(f"cannot open the memory of a large array of process {pid}: {error}") from error


def _is_sealed(file: Any) -> bool:
    try:
        return bool(fcntl.fcntl(file, fcntl.F_GET_SEALS) & _seals() == _seals())
    except OSError:  # a file that knows no seals
        return False


def _seals() -> int:
    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _inline(buffer: Buffer | Elsewhere) -> Buffer:
    assert not isinstance(buffer, Elsewhere)
    return buffer
