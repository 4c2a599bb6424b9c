"""A node's control function: describe, stop an execution, drain, serve a client's private lanes.

Law of the file: JSON in sealed envelopes, never a pickle. A request that does not open gets WORK_FAIL and a log line.
One that comes again gets its old answer and is not carried out again.
The request is a JOB envelope whose header is `{"op": ..., ...}`; the answer is a NODE envelope with a JSON header.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from gearmap.core.names import control_name
from gearmap.errors import WireError
from gearmap.rarelog import RareLog
from gearmap.runtime.finished import FinishedJobs
from gearmap.runtime.keyring import key_id_of
from gearmap.runtime.nodesettings import NodeSettings
from gearmap.runtime.privatelanes import PrivateLanes
from gearmap.runtime.wording import clock_time
from gearmap.transport.events import AssignedJob, JobAssigned
from gearmap.transport.worker import WorkerLinks
from gearmap.wire import envelope, seal
from gearmap.wire.jsonvalues import decode_object, encode_object

__all__ = ["ControlDesk"]

log = RareLog(logging.getLogger(__name__))

# So many requests that change something are remembered, and not carried out again. Raised: memory; lowered: whoever has
# heard many requests may have an old one carried out again while it is good.
MOST_REQUESTS = 1024


class ControlDesk:
    """Answers control requests of one node."""

    def __init__(
        self,
        settings: NodeSettings,
        describe: Callable[[], dict[str, Any]],
        stop: Callable[[bytes], bool],
        drain: Callable[[float], None],
        lanes: PrivateLanes,
    ) -> None:
        self.links = WorkerLinks(
            settings.servers,
            settings.control_functions,
            f"gearmap:{settings.node_id}:control",
            send_timeout=settings.patience.send_timeout,
            jitter=random.random,
        )
        self.deadline = float("inf")
        self._settings = settings
        self._describe = describe
        self._stop = stop
        self._drain = drain
        self._lanes = lanes
        self._finished = FinishedJobs(most_jobs=MOST_REQUESTS)

    def work(self) -> None:
        """Answer the requests that have come."""
        for event in self.links.take_events():
            if isinstance(event, JobAssigned):
                self._answer(event.job)

    def change_keys(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Be reached by those who have other keys."""
        for key_id in added:
            self.links.add_function(control_name(self._settings.node_id, key_id))
        for key_id in removed:
            self.links.remove_function(control_name(self._settings.node_id, key_id))

    def close(self) -> None:
        """Leave the job servers."""
        self.links.close()

    def _answer(self, job: AssignedJob) -> None:
        unique = job.unique.encode("utf-8", "surrogateescape")  # whoever submitted it chose its bytes
        context = envelope.make_context(job.function.encode(), unique)
        key_id = key_id_of(job.function)
        try:
            prefix = envelope.parse_prefix(job.data)
            session_key = self._settings.keys.session(key_id, prefix.session_id)
            key = seal.job_key(session_key, unique)
            request = decode_object(envelope.open_header(job.data, prefix, key, context))
        except WireError as error:
            log.warning("control request refused: %s", error)
            self.links.fail(job)
            return
        if context in self._finished:
            self.links.complete(job, self._finished.answer(context))
            return
        execution_id = os.urandom(16)
        message = envelope.seal_message(
            kind=envelope.Kind.NODE,
            key=seal.node_key(session_key, unique, execution_id),
            session_id=prefix.session_id,
            execution_id=execution_id,
            expiry=prefix.expiry,
            context=context,
            header=encode_object(self._perform(request, key_id, prefix.expiry)),
        ).to_bytes()
        if request.get("op") != "describe":  # which changes nothing, and is asked every second
            self._finished.note(context, [message])
        self.links.complete(job, message)

    def _perform(self, request: dict[str, Any], key_id: str, expiry: int) -> dict[str, Any]:
        if time.time() > expiry:
            return {"ok": False, "error": f"the request is too old: it is {clock_time(time.time())} here"}
        match request:
            case {"op": "describe"}:
                return {"ok": True, **self._describe()}
            case {"op": "stop", "execution": str(execution)}:
                try:
                    return {"ok": self._stop(bytes.fromhex(execution))}
                except ValueError:
                    return {"ok": False, "error": "execution must be hexadecimal"}
            case {"op": "drain", "grace": int() | float() as grace}:
                self._drain(max(0.0, float(grace)))
                return {"ok": True}
            case {"op": "serve", "lanes": lanes, "seconds": int() | float() as seconds}:
                problem = self._lanes.serve(lanes, float(seconds), time.monotonic(), key_id)
                return {"ok": False, "error": problem} if problem else {"ok": True}
            case {"op": "leave", "lanes": lanes}:
                self._lanes.leave(lanes, key_id)
                return {"ok": True}
        return {"ok": False, "error": f"unknown operation {request.get('op')!r}"}
