"""Requests to a node's control function, as a client makes them, and their answers.

What must not live here: what a node does about them (`control`).

Law of the file: JSON in sealed envelopes, never a pickle. Whoever has a session may ask under its key.
"""

from __future__ import annotations

from typing import Any

from gearmap.wire import envelope, seal
from gearmap.wire.jsonvalues import decode_object, encode_object

__all__ = ["REQUEST_SECONDS", "open_answer", "seal_request"]

# As long as a job is good: clocks that jobs put up with must do here, too. Who repeats a request gains nothing: it
# means something to one process only, whose random id is in the function's name.
REQUEST_SECONDS = 24 * 3600


def seal_request(
    request: dict[str, Any], *, session_key: bytes, session_id: bytes, function: str, unique: str, now: float
) -> bytes:
    """Return the sealed request; `now` is wall time in seconds."""
    return envelope.seal_message(
        kind=envelope.Kind.JOB,
        key=seal.job_key(session_key, unique.encode()),
        session_id=session_id,
        expiry=int(now) + REQUEST_SECONDS,
        context=envelope.make_context(function.encode(), unique.encode()),
        header=encode_object(request),
    ).to_bytes()


def open_answer(data: bytes | bytearray, *, session_key: bytes, function: str, unique: str) -> dict[str, Any]:
    """Return a node's answer.

    Raises
    ------
    WireError
        If it does not open or is not an answer.
    """
    prefix = envelope.parse_prefix(data)
    key = seal.node_key(session_key, unique.encode(), prefix.execution_id)
    context = envelope.make_context(function.encode(), unique.encode())
    return decode_object(envelope.open_header(data, prefix, key, context))
