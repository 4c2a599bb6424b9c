"""Asking everything that `gearmap doctor` judges, all at the same time.

Law of the file: everything has a deadline, and nothing is started, made or changed for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gearmap.config import ServerAddress
from gearmap.core.names import WIRE_VERSION, Lane, key_ids_of_nodes
from gearmap.overview.checkup import Facts, KeyFacts, ServerFacts, ToldNode
from gearmap.overview.listing import ServerAnswer
from gearmap.overview.survey import NODE_SECONDS, ask_servers
from gearmap.runtime.hostfacts import host_facts
from gearmap.runtime.nodeclient import Question, ask_nodes
from gearmap.runtime.sessions import Session, new_session
from gearmap.secret import Secret
from gearmap.wire.seal import key_id

__all__ = ["examine"]

# Nodes that are asked at a time: each on a connection of its own, so that its round trip is known. Raised: many that do
# not answer cost less time; lowered: fewer threads and connections.
AT_A_TIME = 32


def examine(
    addresses: Sequence[ServerAddress], keys: Sequence[Secret], key: KeyFacts, *, queues: tuple[str, ...], version: str
) -> Facts:
    """Return what servers and nodes say.

    Parameters
    ----------
    keys
        Those in the key file, that of clients first; none if it is not fit.
    key
        What is to be said of that file.
    """
    answers = ask_servers(addresses)
    servers = tuple(
        ServerFacts(answer=answer, is_loopback=address.is_loopback, tls=address.tls is not None)
        for address, answer in zip(addresses, answers, strict=True)
    )
    return Facts(
        servers=servers,
        key=key,
        nodes=_ask_nodes(addresses, answers, keys),
        queues=queues,
        version=version,
        wire=WIRE_VERSION,
        python=(sys.version_info[0], sys.version_info[1]),
        host=host_facts(),
    )


def _ask_nodes(
    addresses: Sequence[ServerAddress], answers: Sequence[ServerAnswer], keys: Sequence[Secret]
) -> dict[str, ToldNode]:
    """Return what nodes tell that have one of the keys; each is asked once, over one server."""
    sessions = {key_id(secret): new_session(secret, "default") for secret in keys}
    asked: dict[str, tuple[Question, Session[Lane]]] = {}
    for address, answer in zip(addresses, answers, strict=True):
        there = key_ids_of_nodes(row.function for row in answer.functions if row.workers)
        for node, ids in there.items():
            session = next((session for each, session in sessions.items() if each in ids), None)
            if session is not None and node not in asked:
                asked[node] = Question(address, node, {"op": "describe"}), session
    if not asked:
        return {}
    with ThreadPoolExecutor(min(AT_A_TIME, len(asked))) as pool:
        told = pool.map(_ask_node, *zip(*asked.values(), strict=True))
        return {node: each for node, each in zip(asked, told, strict=True) if each is not None}


def _ask_node(question: Question, session: Session[Lane]) -> ToldNode | None:
    before = time.time()
    (answer,) = ask_nodes([question], session, timeout=NODE_SECONDS)
    if answer is None or answer.get("ok") is not True:
        return None
    return ToldNode(told=answer, asked=before, answered=time.time())
