"""Where a client takes the memory of large results that children of its machine hand over.

What must not live here: how children do that (`handover`), and how memory is checked and mapped (`sealedmemory`).

Rule 1: memory is mapped only once an outcome that was opened has named it. Until then it is a descriptor, and it is
closed when its run ends.
Rule 2: a child hands memory over before it says so. So what an outcome names has come, or was lost; then no more is
taken, and the tasks run again and send their results.
Rule 3: nothing here waits, and nothing is left behind: the socket has no name in any folder, and what is on its way
goes with it.

Rejected: children that keep the memory until the client has opened it, as they may die or be needed for another task;
the node as a keeper, which would have to be told when it may let go; memory of the client that children fill, one for
each job beforehand, though few have large results.
"""

from __future__ import annotations

import array
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from gearmap.errors import EnvelopeError
from gearmap.runtime.handover import landing_address
from gearmap.runtime.sealedmemory import map_sealed
from gearmap.wire.framing import Buffer, Payload
from gearmap.wire.landed import NAME_BYTES, Landed, read_landed
from gearmap.wire.seal import ID_BYTES

__all__ = ["MAX_KEPT", "Landing"]

logger = logging.getLogger(__name__)

# Memory that has come and is in no outcome yet; each is a descriptor. With more the client takes no further ones, and
# children send their results. Raised: more workers' results at a time; lowered: fewer descriptors.
MAX_KEPT = 64

# How long memory may wait for its outcome (seconds). A child that dies in between leaves it for so long. Raised: job
# servers may be slower; lowered: it is given back sooner.
MAX_WAIT_SECONDS = 60.0

_MESSAGE_BYTES = ID_BYTES + NAME_BYTES
_CREDENTIALS = struct.Struct("3i")  # process, user, group


class Landing:
    """The client's end. Driver thread only, except for `name`.

    Attributes
    ----------
    name
        What children are told, the user first; nothing once no more is taken.
    """

    wants_write = False

    def __init__(self) -> None:
        self.name = f"{os.geteuid()}-{secrets.token_hex(16)}"
        self._socket: socket.socket | None = None
        self._report: Callable[[Any], object] = lambda landing: None
        self._is_full = False
        # By session: what has come, by its name, with the time of its coming; oldest first.
        self._kept: dict[bytes, dict[bytes, tuple[int, float]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def start(self) -> None:
        """Begin to take memory, if the system allows it."""
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind(landing_address(self.name))
        except OSError as error:
            logger.debug("results are not shared: %s", error, extra={"action": "no_landing"})
            self.close()

    def close(self) -> None:
        """Take no more, and let go of what has come."""
        self.name = ""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for session in list(self._kept):
            self.end(session)

    def begin(self, session: bytes) -> None:
        """Take memory for a run from now on."""
        self._kept[session] = {}

    def end(self, session: bytes) -> None:
        """Take none for this run any more; what has come and is in no outcome goes."""
        for descriptor, _ in self._kept.pop(session, {}).values():
            os.close(descriptor)
        self._look_again()

    def take(self, session: bytes, payload: Payload) -> Payload:
        """Return a payload with all of its buffers.

        Raises
        ------
        EnvelopeError
            If one of them has not come, or is not what was announced.
        """
        landed = read_landed(payload)
        if landed is None:
            return payload
        whole: list[Buffer] = []
        rest = iter(payload[1:])
        for at in range(len(payload) - 1 + len(landed)):
            whole.append(self._mapped(session, landed[at]) if at in landed else next(rest))
        self._look_again()
        return whole

    def _mapped(self, session: bytes, landed: Landed) -> memoryview:
        kept = self._kept.get(session, {})
        if landed.name not in kept:
            self._receive(None)
        descriptor, _ = kept.pop(landed.name, (-1, 0.0))
        try:
            return map_sealed(descriptor, landed.n_bytes)
        except OSError as error:
            if self.name:
                logger.warning(
                    "the memory of a large result was lost; from now on results are sent: %s",
                    error,
                    extra={"action": "lose_memory"},
                )
            self.name = ""
            raise EnvelopeError("the memory of a large result has not come") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    # ----------------------------------------------------------------------------------------------- for the poller

    def watched_by(self, report: Callable[[Any], object]) -> None:
        """Call `report` when `fileno` has changed."""
        self._report = report

    def fileno(self) -> int:
        """Return the descriptor to wait for; none while there is no room."""
        return -1 if self._socket is None or self._is_full else self._socket.fileno()

    def on_readable(self) -> None:
        """Take in what has come."""
        self._receive(MAX_KEPT)
        self._look_again()

    def on_writable(self) -> None:
        """Nothing is written."""

    def _look_again(self) -> None:
        is_full = len(self) >= MAX_KEPT
        if is_full != self._is_full:
            self._is_full = is_full
            self._report(self)

    def tidy(self) -> None:
        """Let go of what has waited for too long; to be called now and then."""
        oldest = time.monotonic() - MAX_WAIT_SECONDS
        for kept in self._kept.values():
            for name in [name for name, (_, came) in kept.items() if came < oldest]:
                os.close(kept.pop(name)[0])
        self._look_again()

    def _receive(self, room: int | None) -> None:
        """Take in all that has come, or so much that this is all that is kept."""
        size = socket.CMSG_SPACE(array.array("i").itemsize) + socket.CMSG_SPACE(_CREDENTIALS.size)
        while self._socket is not None and (room is None or len(self) < room):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_MESSAGE_BYTES + 1, size, socket.MSG_CMSG_CLOEXEC)
            except OSError:  # there is no more
                return
            self._keep(data, ancillary)

    def _keep(self, data: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        descriptors = array.array("i")
        user = -1
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            elif level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(content) == _CREDENTIALS.size:
                _, user, _ = _CREDENTIALS.unpack(content)
        kept = self._kept.get(data[:ID_BYTES])
        if kept is None or len(data) != _MESSAGE_BYTES or user != os.geteuid() or len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            return
        name = data[ID_BYTES:]
        if name in kept:
            os.close(kept.pop(name)[0])
        kept[name] = (descriptors[0], time.monotonic())
