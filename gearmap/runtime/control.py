"""A node's control function: describe, stop an execution, drain.

Law of the file: JSON in sealed envelopes, never a pickle. A request that does not open gets WORK_FAIL and a log line.
The request is a JOB envelope whose header is `{"op": ..., ...}`; the answer is a NODE envelope with a JSON header.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from gearmap.errors import WireError
from gearmap.transport.events import AssignedJob, JobAssigned
from gearmap.transport.worker import WorkerLinks
from gearmap.wire import envelope, seal

__all__ = ["ControlDesk", "open_answer", "seal_request"]

logger = logging.getLogger(__name__)

# A control request is acted on now or not at all.
REQUEST_SECONDS = 60


class ControlDesk:
    """Answers control requests of one node."""

    def __init__(
        self,
        links: WorkerLinks,
        secret: bytes,
        describe: Callable[[], dict[str, Any]],
        stop: Callable[[bytes], bool],
        drain: Callable[[float], None],
    ) -> None:
        self.links = links
        self.deadline = float("inf")
        self._secret = secret
        self._describe = describe
        self._stop = stop
        self._drain = drain

    def work(self) -> None:
        """Answer the requests that have come."""
        for event in self.links.take_events():
            if isinstance(event, JobAssigned):
                self._answer(event.job)

    def close(self) -> None:
        """Leave the job servers."""
        self.links.close()

    def _answer(self, job: AssignedJob) -> None:
        context = envelope.make_context(job.function.encode(), job.unique.encode())
        try:
            prefix = envelope.parse_prefix(job.data)
            session_key = seal.session_key(self._secret, prefix.session_id)
            key = seal.job_key(session_key, job.unique.encode())
            request = json.loads(envelope.open_header(job.data, prefix, key, context))
            if time.time() > prefix.expiry or not isinstance(request, dict):
                raise WireError("an old or malformed control request")
        except (WireError, ValueError) as error:
            logger.warning("control request refused: %s", error, extra={"action": "refuse_control"})
            self.links.fail(job)
            return
        execution_id = os.urandom(16)
        message = envelope.seal_message(
            kind=envelope.Kind.NODE,
            key=seal.node_key(session_key, job.unique.encode(), execution_id),
            session_id=prefix.session_id,
            execution_id=execution_id,
            expiry=prefix.expiry,
            context=context,
            header=json.dumps(self._perform(request)).encode(),
        )
        self.links.complete(job, message.to_bytes())

    def _perform(self, request: dict[str, Any]) -> dict[str, Any]:
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
        return {"ok": False, "error": f"unknown operation {request.get('op')!r}"}


def seal_request(
    request: dict[str, Any], *, secret: bytes, session_id: bytes, function: str, unique: str, now: float
) -> bytes:
    """Return the sealed request; `now` is wall time in seconds."""
    key = seal.job_key(seal.session_key(secret, session_id), unique.encode())
    return envelope.seal_message(
        kind=envelope.Kind.JOB,
        key=key,
        session_id=session_id,
        expiry=int(now) + REQUEST_SECONDS,
        context=envelope.make_context(function.encode(), unique.encode()),
        header=json.dumps(request).encode(),
    ).to_bytes()


def open_answer(data: bytes | bytearray, *, secret: bytes, function: str, unique: str) -> dict[str, Any]:
    """Return a node's answer.

    Raises
    ------
    WireError
        If it does not open or is not an answer.
    """
    prefix = envelope.parse_prefix(data)
    session_key = seal.session_key(secret, prefix.session_id)
    key = seal.node_key(session_key, unique.encode(), prefix.execution_id)
    context = envelope.make_context(function.encode(), unique.encode())
    try:
        answer = json.loads(envelope.open_header(data, prefix, key, context))
    except ValueError as error:
        raise WireError(f"a control answer that is not JSON: {error}") from None
    if not isinstance(answer, dict):
        raise WireError("a control answer that is not an object")
    return answer
