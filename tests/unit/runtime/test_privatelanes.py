"""Lanes that workers serve for a while: leases, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gearmap.core.names import Lane
from gearmap.runtime.crew import Worker
from gearmap.runtime.keyring import Keyring
from gearmap.runtime.nodesettings import NodeSettings
from gearmap.runtime.privatelanes import LONGEST_LEASE, PrivateLanes
from gearmap.secret import Secret

SETTINGS = NodeSettings(
    servers=(("127.0.0.1", 4730),),
    keys=Keyring([Secret(bytes(32))]),
    workers=2,
    queues=("default",),
    name="host",
    node_id="1-2",
    python=(3, 11),
    grace=30.0,
)

KEY_ID = SETTINGS.keys.ids[0]


class Links:
    """Connections that remember what was registered on them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def add_function(self, name: str) -> None:
        self.calls.append(("add", name))

    def remove_function(self, name: str) -> None:
        self.calls.append(("remove", name))


@pytest.fixture
def workers() -> list[Worker]:
    links: list[Any] = [Links(), Links(), Links()]
    return [Worker(n, f"host/{n}", each, n, level=int(n == 2)) for n, each in enumerate(links)]


def lanes_of(workers: list[Worker]) -> PrivateLanes:
    return PrivateLanes(SETTINGS, workers, lambda worker: None)


def name_of(queue: str) -> str:
    return Lane(queue, (3, 11), KEY_ID).name


def calls_of(worker: Worker) -> list[tuple[str, str]]:
    links: Any = worker.links
    calls: list[tuple[str, str]] = links.calls
    return calls


def test_each_worker_serves_its_lane_until_the_lease_is_over(workers: list[Worker]) -> None:
    lanes = lanes_of(workers)
    assert lanes.deadline is None
    assert lanes.serve([[0, "on-a"], [1, "on-b"]], 60.0, 100.0, KEY_ID) == ""
    assert lanes.deadline == 160.0
    lanes.look(159.9)
    assert calls_of(workers[0]) == [("add", name_of("on-a"))]
    lanes.look(160.0)
    assert calls_of(workers[0]) == [("add", name_of("on-a")), ("remove", name_of("on-a"))]
    assert calls_of(workers[1]) == [("add", name_of("on-b")), ("remove", name_of("on-b"))]
    assert lanes.deadline is None


def test_who_asks_again_has_it_longer_and_it_is_registered_once(workers: list[Worker]) -> None:
    lanes = lanes_of(workers)
    lanes.serve([[0, "on-a"]], 60.0, 100.0, KEY_ID)
    lanes.serve([[0, "on-a"]], 60.0, 120.0, KEY_ID)
    lanes.look(179.0)
    assert calls_of(workers[0]) == [("add", name_of("on-a"))]
    assert lanes.deadline == 180.0


def test_no_lease_is_for_ever(workers: list[Worker]) -> None:
    lanes = lanes_of(workers)
    lanes.serve([[0, "on-a"]], 1e9, 0.0, KEY_ID)
    assert lanes.deadline == LONGEST_LEASE


def test_a_lane_that_is_given_back_is_not_served_and_others_are(workers: list[Worker]) -> None:
    lanes = lanes_of(workers)
    lanes.serve([[0, "on-a"], [1, "on-b"]], 60.0, 0.0, KEY_ID)
    lanes.leave([[0, "on-a"]], KEY_ID)
    lanes.leave([[0, "on-a"]], KEY_ID)
    assert calls_of(workers[0]) == [("add", name_of("on-a")), ("remove", name_of("on-a"))]
    assert calls_of(workers[1]) == [("add", name_of("on-b"))]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_lease_of_no_time_is_none(workers: list[Worker], seconds: float) -> None:
    lanes = lanes_of(workers)
    assert lanes.serve([[0, "on-a"]], seconds, 0.0, KEY_ID) == "seconds must be positive"
    assert lanes.deadline is None


def test_a_worker_that_leaves_takes_no_lane(workers: list[Worker]) -> None:
    workers[0].is_leaving = True
    assert lanes_of(workers).serve([[0, "on-a"]], 60.0, 0.0, KEY_ID) == "this node is leaving"
    assert calls_of(workers[0]) == []


@pytest.mark.parametrize(
    "lanes",
    [
        None,
        "on-a",
        [[0]],
        [["0", "on-a"]],
        [[True, "on-a"]],
        [[0, 1]],
        [[-1, "on-a"]],
        [[2, "on-a"]],  # a nested level's
        [[0, "default"]],  # which its workers serve anyway, and must not cease to
        [[0, ""]],
        [[0, "a b"]],
        [[0, "a~1"]],
        [[0, "x" * 65]],
        [[0, "on-a"], [7, "on-b"]],
    ],
)
def test_what_is_no_lane_is_refused_as_a_whole(workers: list[Worker], lanes: object) -> None:
    private = lanes_of(workers)
    assert private.serve(lanes, 60.0, 0.0, KEY_ID) != ""
    private.leave(lanes, KEY_ID)
    assert [calls_of(worker) for worker in workers] == [[], [], []]
