"""Large buffers that a client gives to the nodes of its job servers, so that each travels once for each node.

What must not live here: which payloads this is done for (`backend`), and what nodes do (`blobdesk`).

Rule 1: connections of its own, in a thread of its own, begun with the first blob: what is given never waits for a
submission, and no submission for it.
Rule 2: what is given cannot change: it is a copy, called by a keyed digest that nobody else can compute.
Rule 3: whoever asks shows that he has the key, and the answer is sealed for him. Pieces are answered in the order in
which they were asked for; as each node asks for few at a time, nodes take turns.

Data flow::

    caller: buffer -> place -> a copy, and a payload that calls `open_held` where it is loaded
    node:   {"op": "piece", ...} -> job server -> this thread -> sealed bytes
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import secrets
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from gearmap.config import Patience
from gearmap.core.names import blobs_name
from gearmap.errors import GearmapError, WireError
from gearmap.memory import writable
from gearmap.runtime.forking import watch_forks
from gearmap.runtime.heldblobs import open_held
from gearmap.runtime.placed import GivenBlob, GivenPayload
from gearmap.runtime.sealedmemory import SHARED_BYTES
from gearmap.secret import Secret
from gearmap.transport.admin import drop_function
from gearmap.transport.events import Address, AssignedJob, JobAssigned
from gearmap.transport.poller import Poller, Waker
from gearmap.transport.worker import WorkerLinks
from gearmap.wire import envelope, seal
from gearmap.wire.framing import Buffer, Payload, flat_view
from gearmap.wire.serializer import Elsewhere, copied, with_elsewhere
from gearmap.wire.shared import frozen_name, owner_of

__all__ = ["BlobSource", "GivenArguments"]

logger = logging.getLogger(__name__)

# What is copied and hashed at a time. Raised: it leaves the processor's cache in between; lowered: more calls.
_STEP_BYTES = 256 * 1024

# Large arguments of which is known that they were there. Raised: more of them may take turns; lowered: less to keep.
_SEEN_BUFFERS = 64
_LOOK_BYTES = 1024

# Most bytes of one answer, whatever is asked for: the job server holds all of it.
MAX_PIECE_BYTES = 8 * 1024 * 1024

_DIGEST_BYTES = 32

# How long an answer stays good. A node opens it at once.
_ANSWER_SECONDS = 600

# How a client that leaves takes the name of its function along: requests to each job server, and seconds for each.
_FORGET_TRIES = 5
_FORGET_SECONDS = 1.0


class BlobSource:
    """The buffers that one client gives, by content: an equal one is not kept twice.

    A buffer is read at each call of `place`, since nobody can tell whether an array has changed. It is kept as long as
    any payload that names it.
    """

    def __init__(self, addresses: Sequence[Address], secret: Secret, patience: Patience | None = None) -> None:
        self.function = blobs_name(secrets.token_hex(8), seal.key_id(secret))
        self._key = secrets.token_bytes(_DIGEST_BYTES)
        self._lock = threading.Lock()
        self._blobs: weakref.WeakValueDictionary[str, GivenBlob] = weakref.WeakValueDictionary()
        self._addresses = tuple(addresses)
        self._secret = secret
        self._patience = patience or Patience()
        self._serving: _Service | None = None
        watch_forks(self)

    def __len__(self) -> int:
        return len(self._blobs)

    def place(self, payload: Payload) -> Payload:
        """Return a payload that loads to the same on every node, and changes no more when the user's arrays do.

        Its large buffers are given, and a large stream; the others are copied.
        """
        return self.placed(payload, self, lambda view: True, copied)

    def placed(
        self,
        payload: Payload,
        store: object,
        may_give: Callable[[memoryview], bool],
        keep: Callable[[Buffer], Buffer],
    ) -> Payload:
        """Return a payload of which large buffers are given that may be, and the others what `keep` makes of them."""
        blobs: list[GivenBlob] = []
        here: list[Buffer] = []
        parts: list[Buffer | Elsewhere] = []
        for number, buffer in enumerate(payload):
            view = flat_view(buffer)
            if len(view) < SHARED_BYTES or not may_give(view):
                here.append(keep(buffer) if number else buffer)  # the stream is bytes
                parts.append(here[-1])
                continue
            blobs.append(self._give(view))
            here.append(blobs[-1].view)
            parts.append(Elsewhere(open_held, blobs[-1].name))
        return GivenPayload(with_elsewhere(parts[0], parts[1:]), blobs, store, here) if blobs else here

    def close(self) -> None:
        """Give nothing any more. May be repeated."""
        with self._lock:
            serving, self._serving = self._serving, None
        if serving is not None:
            serving.close()

    def _after_fork_in_child(self) -> None:
        """The thread is the parent's, and so is the name."""
        self._lock = threading.Lock()
        self._serving = None

    def _give(self, view: memoryview) -> GivenBlob:
        """Return the blob that holds what the view holds now.

        The copy is what is hashed, so that the digest is right even if another thread writes meanwhile. Memory that
        never changes is neither copied nor hashed.
        """
        name = frozen_name(view)
        if name is not None:
            return self._known_or_new(name, view)
        copy = writable(len(view))
        hasher = hashlib.blake2b(key=self._key, digest_size=_DIGEST_BYTES)
        for start in range(0, len(view), _STEP_BYTES):
            step = copy[start : start + _STEP_BYTES]
            step[:] = view[start : start + _STEP_BYTES]
            hasher.update(step)
        return self._known_or_new(hasher.hexdigest(), copy.toreadonly())

    def _known_or_new(self, digest: str, view: memoryview) -> GivenBlob:
        with self._lock:
            blob = self._blobs.get(digest)
            if blob is None:
                blob = self._blobs[digest] = GivenBlob(view, digest, self.function)
            if self._serving is None:
                self._serving = self._begin()
        return blob

    def _begin(self) -> _Service:
        serving = _Service(self._addresses, self._secret, self.function, self._blobs.get, self._patience)
        serving.start()
        return serving


class GivenArguments:
    """The large buffers of arguments that one client gives: those that come again.

    What comes once travels with its job, as it is needed once. Shared objects are given at once.
    """

    def __init__(self, source: BlobSource) -> None:
        self._source = source
        self._seen: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def place(self, payload: Payload, *, snapshot: bool = True) -> Payload:
        """Return a payload whose large buffers are given if an earlier one had them, too.

        The others are copied for a `snapshot`, else left as they are.
        """
        return self._source.placed(payload, self, self._comes_again, copied if snapshot else flat_view)

    def _comes_again(self, view: memoryview) -> bool:
        """Whether a buffer stands where one stood lately that looked like it: then it is worth reading whole."""
        if frozen_name(view) is not None:
            return True
        place = (id(owner_of(view)), len(view))
        middle = len(view) // 2
        look = b"".join(bytes(view[at : at + _LOOK_BYTES]) for at in (0, middle, len(view) - _LOOK_BYTES))
        known = self._seen.pop(place, None)
        self._seen[place] = look
        while len(self._seen) > _SEEN_BUFFERS:
            self._seen.popitem(last=False)
        return known == look


class _Service:
    """The thread that answers nodes."""

    def __init__(
        self,
        addresses: Sequence[Address],
        secret: Secret,
        function: str,
        find: Callable[[str], GivenBlob | None],
        patience: Patience,
    ) -> None:
        self._addresses = addresses
        self._secret = secret
        self._function = function
        self._find = find
        self._links = WorkerLinks(
            addresses, (function,), "gearmap:blobs", send_timeout=patience.send_timeout, jitter=random.random
        )
        self._poller = Poller()
        self._waker = Waker()
        self._closing = False
        self._keys: dict[bytes, seal.Deriver] = {}  # of sessions that ask
        self._thread = threading.Thread(target=self._main, name="gearmap-blobs", daemon=True)
        watch_forks(self)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        self._closing = True
        self._waker.wake()
        self._thread.join(timeout)

    def _after_fork_in_child(self) -> None:
        """Nobody runs this thread here. The sockets are closed already: each connection sees to its own."""
        self._closing = True
        self._waker.close()
        self._poller.close()

    def _main(self) -> None:
        try:
            self._poller.add(self._waker)
            self._links.start(time.monotonic())
            for link in self._links.links:
                self._poller.add(link)
            while not self._closing:
                self._step()
        except Exception:
            logger.exception("the thread that gives large arrays failed", extra={"action": "blobs_failed"})
        finally:
            self._links.close()
            self._forget_name()
            self._waker.close()
            self._poller.close()

    def _step(self) -> None:
        due = self._links.deadline
        self._poller.dispatch(None if due is None else max(0.0, due - time.monotonic()))
        for event in self._links.take_events():
            if type(event) is JobAssigned:
                self._answer(event.job)
        due = self._links.deadline
        if due is not None and time.monotonic() >= due:
            self._links.tick(time.monotonic())

    def _answer(self, job: AssignedJob) -> None:
        unique = job.unique.encode("utf-8", "surrogateescape")  # whoever submitted it chose its bytes
        context = envelope.make_context(job.function.encode(), unique)
        try:
            prefix = envelope.parse_prefix(job.data)
            session_key = self._session_key(prefix.session_id)
            key = seal.job_key(session_key, unique)
            request = json.loads(envelope.open_header(job.data, prefix, key, context))
            self._keys[prefix.session_id] = session_key  # not before: anybody can name sessions
            piece = self._piece(request)
        except (WireError, ValueError) as error:
            logger.warning("a request for a large array was refused: %s", error, extra={"action": "refuse_blob"})
            self._links.fail(job)
            return
        execution_id = os.urandom(16)
        message = envelope.seal_message(
            kind=envelope.Kind.NODE,
            key=seal.node_key(session_key, unique, execution_id),
            session_id=prefix.session_id,
            execution_id=execution_id,
            expiry=int(time.time()) + _ANSWER_SECONDS,
            context=context,
            header=json.dumps({"ok": piece is not None}).encode(),
            body=() if piece is None else (piece,),
        )
        self._links.complete(job, message)

    def _piece(self, request: Any) -> memoryview | None:
        """Return what is asked for, or None if it is not here any more."""
        match request:
            case {"op": "piece", "blob": str(digest), "offset": int(offset), "size": int(size)} if offset >= 0 < size:
                blob = self._find(digest)
                return None if blob is None else blob.view[offset : offset + min(size, MAX_PIECE_BYTES)]
        raise WireError("a malformed request")

    def _session_key(self, session_id: bytes) -> seal.Deriver:
        known = self._keys.get(session_id)
        if known is None:
            known = seal.Deriver(seal.session_key(self._secret, session_id))
        return known

    def _forget_name(self) -> None:
        """Take the name of our function off the job servers: gearmand never forgets one by itself."""
        for address in self._addresses:
            # One that is away has forgotten more than a name. One that still closes our connection is asked again.
            with contextlib.suppress(GearmapError):
                for _ in range(_FORGET_TRIES):
                    if drop_function(address, self._function, timeout=_FORGET_SECONDS):
                        break
