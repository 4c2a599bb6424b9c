"""Asking job servers and nodes how they are, all at the same time.

Law of the file: everything has a deadline, and who does not answer is shown as silent. Nothing is started for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gearmap.backend import Backend
from gearmap.config import ServerAddress, ServerMode
from gearmap.core.names import Lane, node_ids
from gearmap.errors import TransportError
from gearmap.overview.listing import ServerAnswer
from gearmap.overview.values import ClusterStatus, cluster_status
from gearmap.runtime.nodeclient import Question, ask_nodes
from gearmap.runtime.sessions import Session
from gearmap.transport.admin import AdminSession

__all__ = ["ask_servers", "describe_nodes", "survey"]

# How long a job server may take for each question, and all nodes together (seconds). Raised: busy ones are not left
# out; lowered: one that hangs costs less time.
SERVER_SECONDS = 3.0
NODE_SECONDS = 3.0


def survey(backend: Backend) -> ClusterStatus:
    """Return how a backend's cluster is now. A local cluster that was not started yet has nothing but its name."""
    addresses = () if backend.mode is ServerMode.INLINE or backend.is_closed else backend.addresses
    if not addresses:
        return ClusterStatus(where=backend.where, taken=time.time())
    answers = ask_servers(addresses)
    session = backend.open_session("default")
    return cluster_status(
        where=backend.where,
        taken=time.time(),
        answers=answers,
        described=describe_nodes(addresses, answers, session),
        key_id=session.lane.key_id,
        python=".".join(map(str, session.lane.python)),
    )


def ask_servers(addresses: Sequence[ServerAddress]) -> list[ServerAnswer]:
    """Return what each job server says, in their order."""
    with ThreadPoolExecutor(len(addresses)) as pool:
        return list(pool.map(_ask_server, addresses))


def _ask_server(address: ServerAddress) -> ServerAnswer:
    """Return what a job server says, or why it does not."""
    try:
        with AdminSession(address.endpoint, timeout=SERVER_SECONDS) as session:
            return ServerAnswer(
                server=str(address),
                origin=address.origin,
                version=session.version(),
                functions=tuple(session.status()),
                connections=tuple(session.workers()),
            )
    except TransportError as error:
        return ServerAnswer(server=str(address), origin=address.origin, problem=str(error))


def describe_nodes(
    addresses: Sequence[ServerAddress], answers: Sequence[ServerAnswer], session: Session[Lane]
) -> dict[str, dict[str, Any]]:
    """Return what the nodes with our key tell of themselves, by their ids; each is asked over one server."""
    homes: dict[str, ServerAddress] = {}
    for address, answer in zip(addresses, answers, strict=True):
        for node in node_ids(_served(answer), session.lane.key_id):
            homes.setdefault(node, address)
    if not homes:
        return {}
    questions = [Question(address, node, {"op": "describe"}) for node, address in homes.items()]
    told = ask_nodes(questions, session, timeout=NODE_SECONDS)
    return {question.node: answer for question, answer in zip(questions, told, strict=True) if answer and answer["ok"]}


def _served(answer: ServerAnswer) -> Iterable[str]:
    return (row.function for row in answer.functions if row.workers)
