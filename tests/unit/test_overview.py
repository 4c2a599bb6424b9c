"""From the answers of job servers and nodes to the values that `gearmap.status()` returns."""

from __future__ import annotations

from typing import Any

import pytest

from gearmap.core.names import Lane, control_name
from gearmap.overview.listing import ServerAnswer
from gearmap.overview.values import ClusterStatus, cluster_status
from gearmap.transport.admin import WorkerRow
from gearmap.transport.events import StatusRow

KEY = "1f3a77c0"
MINE = Lane("default", (3, 11), KEY).name
OLDER = Lane("gpu", (3, 10), "deadbeef").name
PRIVATE = Lane("on-12345678-n1-0", (3, 11), KEY).name
TOLD: dict[str, Any] = {
    "name": "laptop",
    "pid": 17,
    "uptime": 3,
    "cpus": 4,
    "memory_total": 2**34,
    "limits": {"memory_limit": 100},
    "workers": [
        {"name": "laptop/0", "busy": True, "run": "r1", "position": 3, "tasks": 20, "jobs_done": 5, "memory": 7},
        {"name": "laptop/1", "level": 1, "busy": False, "run": "r0", "position": 1, "cpu": 0.5},
    ],
}


def answer() -> ServerAnswer:
    return ServerAnswer(
        server="head:4730",
        origin="GEARMAP_SERVERS",
        version="1.1.20",
        functions=(
            StatusRow(MINE, 5, 2, 2),
            StatusRow(OLDER, 0, 0, 1),
            StatusRow(PRIVATE, 1, 0, 1),
            StatusRow(control_name("n1", KEY), 0, 0, 1),
        ),
        connections=(
            WorkerRow(9, "10.0.0.1", "gearmap:n1:0", (MINE, PRIVATE)),
            WorkerRow(10, "10.0.0.1", "gearmap:n1:1", (MINE,)),
            WorkerRow(11, "10.0.0.2", "gearmap:n2:0", (OLDER,)),
        ),
    )


def status(described: dict[str, Any]) -> ClusterStatus:
    silent = ServerAnswer(server="spare:4730", origin="GEARMAP_SERVERS", problem="no answer")
    return cluster_status(
        where="head:4730", taken=5.0, answers=[answer(), silent], described=described, key_id=KEY, python="3.11"
    )


def test_servers_queues_and_nodes_are_what_was_told() -> None:
    seen = status({"n1": TOLD})
    assert [(each.address, each.kind, each.problem) for each in seen.servers] == [
        ("head:4730", "gearmand 1.1.20", ""),
        ("spare:4730", "", "no answer"),
    ]
    assert [(each.queue, each.is_mine, each.queued, each.running) for each in seen.queues] == [
        ("default", True, 3, 2),
        ("gpu", False, 0, 0),
    ]
    laptop, other = seen.nodes
    assert (laptop.name, laptop.seen, laptop.queues, laptop.memory_limit) == ("laptop", 5.0, ("default",), 100)
    assert (laptop.uptime, laptop.cpus, laptop.memory_total) == (3.0, 4, 2**34)
    assert (other.name, other.seen, other.key_id) == ("n2", None, "deadbeef")


def test_a_worker_is_busy_with_a_task_of_a_chunk_or_idle_or_unknown() -> None:
    busy, idle, unknown = status({"n1": TOLD}).workers
    assert (busy.state, busy.run_id, busy.position, busy.n_tasks, busy.memory_bytes) == ("busy", "r1", 3, 20, 7)
    assert (idle.state, idle.run_id, idle.position, idle.level, idle.cpu_seconds) == ("idle", None, None, 1, 0.5)
    assert (unknown.state, unknown.name) == ("unknown", "n2/0")


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"workers": None, "limits": 3, "name": 7},
        {"workers": [1, None, {"busy": "yes", "name": [], "cpu": "much", "memory": 1.5}]},
    ],
)
def test_odd_answers_of_nodes_are_left_out(told: dict[str, Any]) -> None:
    node = status({"n1": told}).nodes[0]
    assert node.name == "n1"
    assert all(worker.state == "idle" and worker.memory_bytes is None for worker in node.workers)


def test_a_status_prints_as_a_line_for_each_thing() -> None:
    assert str(status({"n1": TOLD})).splitlines() == [
        "head:4730",
        "  server head:4730: gearmand 1.1.20",
        "  server spare:4730: no answer",
        "  queue 'default': 2 workers, 3 queued, 2 running",
        "  queue 'gpu', Python 3.10, key deadbeef: 1 workers, 0 queued, 0 running",
        "  node laptop (10.0.0.1): 1 of 2 workers busy",
        "  node n2 (10.0.0.2): no answer",
    ]


def test_as_html_it_holds_what_is_known_in_words_and_nothing_that_notebooks_remove() -> None:
    page = status({"n1": TOLD})._repr_html_()
    for word in ("head:4730", "no answer", "laptop/0", "busy", "4 of 20 in its chunk", "16.0 GB", "has not answered"):
        assert word in page
    for removed in ("<style", "var(", "role=", "aria-", "<svg", "<script"):
        assert removed not in page


def test_what_came_from_elsewhere_is_escaped() -> None:
    evil = {**TOLD, "name": "<script>alert(1)</script>", "workers": [{"name": "<b>", "busy": False}]}
    page = status({"n1": evil})._repr_html_()
    assert "<script>" not in page
    assert "&lt;b&gt;" in page


def test_a_thousand_workers_are_counted_and_not_all_shown() -> None:
    many = {**TOLD, "workers": [{"name": f"w{number}", "busy": False} for number in range(1000)]}
    page = status({"n1": many})._repr_html_()
    assert "960 more workers" in page
    assert page.count("idle") == 40


def test_without_nodes_it_says_how_to_start_one() -> None:
    nobody = ServerAnswer(server="head:4730", origin="an argument", version="1.1.20")
    seen = cluster_status(where="x", taken=0.0, answers=[nobody], described={}, key_id=KEY, python="3.11")
    assert "gearmap worker" in seen._repr_html_()
