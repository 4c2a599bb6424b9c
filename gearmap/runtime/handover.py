"""How a child hands the memory of large results to the client of its machine, before it says so in an outcome.

What must not live here: who takes it (`landing`), and what an outcome says of it (`wire.landed`).

Law of the file: a result is never lost for the memory's sake. Whatever goes wrong here (no memory, no descriptor, a
client that has gone or does not listen), the buffer travels in the outcome as any other.
"""

from __future__ import annotations

import array
import os
import socket
import struct

from gearmap.runtime.sealedmemory import SHARED_BYTES, make_sealed
from gearmap.wire.framing import Payload, flat_view
from gearmap.wire.landed import NAME_BYTES, Landed, with_landed

__all__ = ["MAX_HANDED_OVER", "Handover", "landing_address"]

# Buffers of one payload that are handed over; more of them travel. The client keeps a descriptor for each until it has
# read the outcome. Raised: more results of a chunk are fast; lowered: fewer descriptors.
MAX_HANDED_OVER = 16

# How long the client may take to make room (seconds). Raised: a busy client still gets its memory; lowered: the task's
# process waits less before it sends the result itself.
_PATIENCE_SECONDS = 0.25

_TIMEVAL = struct.Struct("@ll")


class Handover:
    """A child's way to the client of one job.

    Parameters
    ----------
    landing
        Where the client takes memory, if it is on this machine; nothing if it takes none.
    session_id
        The run that it is for.
    """

    def __init__(self, landing: str, session_id: bytes) -> None:
        self._landing = landing
        self._session_id = session_id
        self.count = 0

    def ship(self, payload: Payload) -> Payload:
        """Hand the large buffers of a payload over, as far as that works; return what is left to be sent."""
        # A client of another user would not take it; one on another machine is not found.
        if not self._landing or not self._landing.startswith(f"{os.geteuid()}-"):
            return payload
        views = [flat_view(buffer) for buffer in payload]
        large = [at for at, view in enumerate(views) if len(view) >= SHARED_BYTES][:MAX_HANDED_OVER]
        if not large:
            return payload
        landed: dict[int, Landed] = {}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(_PATIENCE_SECONDS))
                line.connect(landing_address(self._landing))  # before anything is copied
                for at in large:
                    landed[at] = self._hand_over(line, views[at])
        except OSError:
            pass  # the rest travels
        self.count += len(landed)
        return with_landed(payload, landed) if landed else payload

    def _hand_over(self, line: socket.socket, view: memoryview) -> Landed:
        name = os.urandom(NAME_BYTES)
        descriptor = make_sealed(view)
        try:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            line.sendmsg([self._session_id + name], [rights])
        finally:
            os.close(descriptor)
        return Landed(name, len(view))


def landing_address(landing: str) -> str:
    """Return the address of a landing's socket, which is in no folder."""
    return f"\0gearmap-{landing}"


def _timeval(seconds: float) -> bytes:
    return _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000))
