"""Asking job servers and nodes something, and waiting for the answers: for the thread of a caller.

Law of the file: everything has a deadline, and whoever does not answer within it is left out. Nothing here belongs to a
run; the driver goes on meanwhile.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gearmap.config import ServerAddress
from gearmap.core.names import Lane, control_name
from gearmap.errors import TransportError, WireError
from gearmap.rarelog import RareLog
from gearmap.runtime.controlrequest import open_answer, seal_request
from gearmap.runtime.sessions import Session
from gearmap.runtime.unreached import no_server
from gearmap.transport.admin import server_status
from gearmap.transport.client import ServerSession
from gearmap.transport.events import (
    Connected,
    ConnectFailed,
    JobRequest,
    Lost,
    Rejected,
    WorkComplete,
    WorkException,
    WorkFailed,
)
from gearmap.transport.poller import Poller

__all__ = ["Question", "ask_nodes", "listed_workers"]

log = RareLog(logging.getLogger(__name__))

# How long a job server may take to list what it knows.
LISTING_SECONDS = 5.0


def listed_workers(addresses: Sequence[ServerAddress]) -> dict[ServerAddress, dict[str, int]]:
    """Return the workers of each function, as the job servers that answer list them.

    Raises
    ------
    ServerUnavailable
        If none answers.
    """
    listed: dict[ServerAddress, dict[str, int]] = {}
    problems = []
    for address in addresses:
        try:
            rows = server_status(address.endpoint, LISTING_SECONDS)
        except TransportError as error:
            problems.append(error)
            continue
        listed[address] = {row.function: row.workers for row in rows}
    if not listed:
        raise no_server(problems)
    return listed


@dataclass(frozen=True, slots=True)
class Question:
    """Something to ask a node's control function, over a job server that it stands on."""

    address: ServerAddress
    node: str
    request: dict[str, Any]


def ask_nodes(questions: Sequence[Question], session: Session[Lane], *, timeout: float) -> list[dict[str, Any] | None]:
    """Return the nodes' answers, None for those that did not come within `timeout` seconds."""
    asked = _Asked(questions, session)
    try:
        asked.wait(time.monotonic() + timeout)
    finally:
        asked.close()
    return asked.answers


class _Asked:
    """Questions that are under way."""

    def __init__(self, questions: Sequence[Question], session: Session[Lane]) -> None:
        self.answers: list[dict[str, Any] | None] = [None] * len(questions)
        self._questions = questions
        self._session = session
        self._names = [(control_name(each.node, session.lane.key_id), os.urandom(16).hex()) for each in questions]
        self._open = set(range(len(questions)))
        self._poller = Poller()
        self._servers = {each.address: ServerSession(each.address.endpoint) for each in questions}
        for server in self._servers.values():
            server.start(time.monotonic())
            self._poller.add(server)

    def wait(self, deadline: float) -> None:
        while self._open:
            now = time.monotonic()
            if now >= deadline:
                return
            due = min((server.deadline or deadline for server in self._servers.values()), default=deadline)
            self._poller.dispatch(max(0.0, min(due, deadline) - now))
            now = time.monotonic()
            for address, server in self._servers.items():
                if now >= (server.deadline or deadline):
                    server.tick(now)
                for event in server.take_events():
                    self._hear(address, server, event)
                self._poller.update(server)

    def close(self) -> None:
        for server in self._servers.values():
            self._poller.remove(server)
            server.close()
        self._poller.close()

    def _hear(self, address: ServerAddress, server: ServerSession, event: Any) -> None:
        match event:
            case Connected():
                server.submit([self._request(n) for n in self._numbers(address)])
            case WorkComplete():
                self._take(event)
            case WorkFailed() | WorkException() | Rejected():
                number: Any = event.token
                self._open.discard(number)
            case Lost() | ConnectFailed():
                self._open.difference_update(self._numbers(address))

    def _numbers(self, address: ServerAddress) -> list[int]:
        return [n for n, each in enumerate(self._questions) if each.address == address]

    def _request(self, number: int) -> JobRequest:
        function, unique = self._names[number]
        sealed = seal_request(
            self._questions[number].request,
            session_key=self._session.key,
            session_id=self._session.id,
            function=function,
            unique=unique,
            now=time.time(),
        )
        return JobRequest(number, function, unique, sealed)

    def _take(self, event: WorkComplete) -> None:
        number: Any = event.token
        function, unique = self._names[number]
        self._open.discard(number)
        try:
            data: Any = event.data
            self.answers[number] = open_answer(data, session_key=self._session.key, function=function, unique=unique)
        except WireError as error:
            log.warning("a node's answer was refused: %s", error)
