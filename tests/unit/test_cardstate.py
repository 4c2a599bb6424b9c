"""What the live card of a cluster is sent."""

from __future__ import annotations

import json
import time
from dataclasses import replace

from gearmap.overview.cardstate import cluster_card_state, cpu_shares
from gearmap.overview.values import ClusterStatus, NodeStatus, QueueStatus, ServerStatus, WorkerStatus

BUSY = WorkerStatus(name="a/0", state="busy", position=3, n_tasks=20, cpu_seconds=10.0, memory_bytes=2**20)
IDLE = WorkerStatus(name="a/1", state="idle", cpu_seconds=1.0)


def node(name: str, *workers: WorkerStatus, seen: float | None = 1.0) -> NodeStatus:
    return NodeStatus(
        node_id=name * 8,
        name=name,
        addresses=("10.0.0.1",),
        servers=("head:4730",),
        queues=("default",),
        python="3.11",
        key_id="k",
        workers=workers,
        seen=seen,
    )


def status(*nodes: NodeStatus, taken: float = 100.0) -> ClusterStatus:
    return ClusterStatus(
        where="head:4730",
        taken=taken,
        servers=(ServerStatus(address="head:4730", origin="an argument", kind="gearmand 1.1.20"),),
        queues=(
            QueueStatus(
                queue="default", level=1, python="3.11", key_id="k", is_mine=True, workers=2, queued=3, running=1
            ),
        ),
        nodes=nodes,
    )


def test_it_says_what_there_is_and_what_it_does() -> None:
    state = cluster_card_state(status(node("a", BUSY, IDLE)), {"a/0": 0.98})
    assert state["line"] == "1 node · 2 workers · 1 busy"
    assert state["servers"] == [["head:4730", "up", "gearmand 1.1.20", "an argument"]]
    assert state["queues"] == [["default (level 1)", "yours", 2, 3, 1]]
    ((_, name, facts, use, workers),) = state["nodes"]
    assert (name, facts, use) == ("a", "10.0.0.1 · Python 3.11", "1 of 2 workers busy · CPU 98% · 1 MB")
    assert workers == [["a/0", "busy", "4 of 20 in its chunk", "98%", "1 MB"], ["a/1", "idle", "", "", ""]]


def test_a_server_that_is_away_and_a_node_that_is_silent_are_named() -> None:
    away = replace(
        status(node("a", seen=None)), servers=(ServerStatus(address="x:1", origin="", kind="", problem="no"),)
    )
    state = cluster_card_state(away, {})
    assert state["servers"] == [["x:1", "down", "no", ""]]
    assert state["nodes"][0][3] == "has not answered"


def test_of_a_node_that_is_silent_now_it_is_known_when_it_was_seen() -> None:
    state = cluster_card_state(status(node("a", seen=None)), {}, seen={"a" * 8: 0.0, "b" * 8: 5.0})
    assert state["nodes"][0][3] == f"last seen at {time.strftime('%H:%M:%S', time.localtime(0.0))}"


def test_workers_that_are_wanted_and_not_there_are_told_of() -> None:
    assert cluster_card_state(status(node("a", IDLE)), {}, wanted=3)["note"] == "3 workers wanted, 1 here"
    assert cluster_card_state(status(node("a", IDLE)), {}, wanted=1)["note"] == ""
    assert cluster_card_state(status(node("a", IDLE)), {}, wanted=3, note="it broke")["note"] == "it broke"


def test_without_a_node_it_says_so() -> None:
    assert cluster_card_state(status(), {})["line"] == "no node is connected"
    assert cluster_card_state(ClusterStatus(where="here", taken=0.0), {})["line"] == "not started yet"


def test_nodes_keep_their_order() -> None:
    names = [row[1] for row in cluster_card_state(status(node("b"), node("c"), node("a")), {})["nodes"]]
    assert names == ["a", "b", "c"]


def test_a_hundred_hosts_make_a_small_message_that_says_what_it_leaves_out() -> None:
    many = status(
        *(node(f"host-{n:03}", *(replace(BUSY, name=f"host-{n:03}/{w}") for w in range(32))) for n in range(100))
    )
    state = cluster_card_state(many, {f"host-{n:03}/{w}": 1.0 for n in range(100) for w in range(32)})
    assert len(json.dumps(state)) < 5000
    assert state["line"] == "100 nodes · 3,200 workers · 3,200 busy"
    assert state["hidden"] == "84 more nodes, 488 more workers"
    assert state["nodes"][-1][3] == "32 of 32 workers busy · CPU 3200% · 32 MB"


def test_the_share_of_a_processor_is_what_was_used_between_two_looks() -> None:
    before = status(node("a", BUSY, IDLE), taken=100.0)
    after = status(node("a", replace(BUSY, cpu_seconds=11.0), replace(IDLE, cpu_seconds=0.5)), taken=102.0)
    assert cpu_shares(before, after) == {"a/0": 0.5}  # the other is a new process
    assert cpu_shares(None, after) == {}
    assert cpu_shares(after, after) == {}
