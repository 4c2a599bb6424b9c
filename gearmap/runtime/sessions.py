"""What a run seals with, and which lane it goes to: a fresh session for each.

Law of the file: whoever has the secret draws sessions himself; a task has not, and asks its node for one.
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass, field

from gearmap.core.names import Lane
from gearmap.runtime.nodeline import ask_node
from gearmap.secret import Secret
from gearmap.wire import seal

__all__ = ["Session", "new_session", "session_from_node"]

_PYTHON = (sys.version_info[0], sys.version_info[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session.

    Attributes
    ----------
    depth
        How deep the tasks of its run are nested. The lane's level is the same where the node that gave the session
        serves the queue, else 0.
    """

    id: bytes
    key: bytes = field(repr=False)
    lane: Lane
    depth: int = 0


def new_session(secret: Secret, queue: str) -> Session:
    """Return a fresh session of whoever has the secret."""
    session_id = secrets.token_bytes(16)
    lane = Lane(queue, _PYTHON, seal.key_id(secret))
    return Session(id=session_id, key=seal.session_key(secret, session_id), lane=lane)


def session_from_node(queue: str) -> Session:
    """Return a fresh session for the task that runs here.

    Raises
    ------
    ConfigurationError
        If no task runs here, or it is nested too deep.
    ClusterBroken
        If the node does not answer.
    """
    answer = ask_node("session", queue)
    lane = Lane.parse(answer["lane"])
    assert lane is not None
    return Session(id=bytes.fromhex(answer["id"]), key=bytes.fromhex(answer["key"]), lane=lane, depth=answer["depth"])
