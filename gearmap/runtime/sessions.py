"""What a run seals with, and which lane it goes to: a fresh session for each.

Law of the file: whoever has the secret draws sessions himself; a task has not, and asks its node for one.
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gearmap.core.names import Lane, TaskLane
from gearmap.runtime.nodeline import ask_node
from gearmap.secret import Secret
from gearmap.wire import seal

__all__ = ["Session", "new_session", "new_task_session", "session_from_node", "task_session_from_node"]

_PYTHON = (sys.version_info[0], sys.version_info[1])


L = TypeVar("L", Lane, TaskLane)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(Generic[L]):
    """A session.

    Attributes
    ----------
    depth
        How deep the tasks of its run are nested. The lane's level is the same where the node that gave the session
        serves the queue, else 0.
    """

    id: bytes
    key: bytes = field(repr=False)
    lane: L
    depth: int = 0


def new_session(secret: Secret, queue: str) -> Session[Lane]:
    """Return a fresh session of whoever has the secret."""
    return _new(secret, Lane(queue, _PYTHON, seal.key_id(secret)))


def new_task_session(secret: Secret, name: str) -> Session[TaskLane]:
    """Return a fresh session for calls of a named task."""
    return _new(secret, TaskLane(name, seal.key_id(secret)))


def _new(secret: Secret, lane: L) -> Session[L]:
    session_id = secrets.token_bytes(16)
    return Session(id=session_id, key=seal.session_key(secret, session_id), lane=lane)


def session_from_node(queue: str) -> Session[Lane]:
    """Return a fresh session for the task that runs here.

    Raises
    ------
    ConfigurationError
        If no task runs here, or it is nested too deep.
    ClusterBroken
        If the node does not answer.
    """
    answer = ask_node("session", queue)
    return _told(answer, Lane.parse(answer["lane"]))


def task_session_from_node(name: str) -> Session[TaskLane]:
    """Return a fresh session for calls of a named task by the task that runs here; raises like `session_from_node`."""
    answer = ask_node("task session", name)
    return _told(answer, TaskLane.parse(answer["lane"]))


def _told(answer: dict[str, Any], lane: L | None) -> Session[L]:
    assert lane is not None
    return Session(id=bytes.fromhex(answer["id"]), key=bytes.fromhex(answer["key"]), lane=lane, depth=answer["depth"])
