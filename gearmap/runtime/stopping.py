"""Asking nodes to stop executions that nobody waits for any more, in a session that goes on.

Law of the file: fire and forget. A request that does not arrive costs work, not results: of two executions of a task
the first outcome counts. That is why nothing here looks for jobs that no node has told of. One that waits in a job
server's queue again could be dropped there (`cancel job`), but only over the admin protocol, which is one more
connection for each server and names a job by its place: by then another worker may have it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from gearmap.core.names import control_name
from gearmap.runtime.controlrequest import seal_request
from gearmap.transport.events import JobRequest

__all__ = ["STOP_TOKEN", "stop_requests"]

# In place of an attempt's number, which it never is.
STOP_TOKEN = -1


def stop_requests(
    nodes: Mapping[bytes, str], *, key_id: str, session_key: bytes, session_id: bytes, now: float
) -> list[JobRequest]:
    """Return the requests that stop executions; `nodes` has the node of each, `now` is wall time in seconds."""
    requests = []
    for execution, node in nodes.items():
        function, unique = control_name(node, key_id), os.urandom(16).hex()
        sealed = seal_request(
            {"op": "stop", "execution": execution.hex()},
            session_key=session_key,
            session_id=session_id,
            function=function,
            unique=unique,
            now=now,
        )
        requests.append(JobRequest(STOP_TOKEN, function, unique, sealed))
    return requests
