"""What `gearmap doctor` says of a deployment, from what was told: right, doubtful or wrong, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gearmap.core.names import Lane, blobs_name, control_name
from gearmap.overview.checkup import Facts, Finding, KeyFacts, ServerFacts, ToldNode, Verdict, findings
from gearmap.overview.listing import ServerAnswer
from gearmap.transport.admin import WorkerRow
from gearmap.transport.events import StatusRow

KEY, OTHER, THIRD = "1f3a77c0", "77c01f3a", "deadbeef"
PYTHON = (3, 11)
FILE = KeyFacts(path="/home/me/key", ids=(KEY,))
TOLD: dict[str, Any] = {
    "name": "host-a",
    "gearmap": "1.0",
    "clock": 1000.5,
    "descriptors": 60,
    "descriptor_limit": 1024,
    "shared_free": 2**30,
}


def serving(*names: str, jobs: Mapping[str, int] | None = None, workers: int = 2) -> ServerAnswer:
    """A job server whose workers serve these functions, and that has jobs for these."""
    waiting = jobs or {}
    rows = [StatusRow(name, waiting.get(name, 0), 0, workers) for name in names]
    rows += [StatusRow(name, count, 0, 0) for name, count in waiting.items() if name not in names]
    connections = tuple(
        WorkerRow(number, "10.0.0.7", f"gearmap:{name.split('.')[2]}:0", ())
        for number, name in enumerate(names)
        if name.split(".")[1] == "node"
    )
    return ServerAnswer(
        server="head:4730", origin="-s", version="1.1.20", functions=tuple(rows), connections=connections
    )


def lane(key: str = KEY, queue: str = "default", python: tuple[int, int] = PYTHON, version: int = 1) -> str:
    return Lane(queue, python, key, 0, version).name


def facts(
    answer: ServerAnswer | None = None, *, key: KeyFacts = FILE, nodes: Mapping[str, Mapping[str, Any]] | None = None,
    queues: tuple[str, ...] = ("default",), is_loopback: bool = True, tls: bool = False,
) -> Facts:  # fmt: skip
    """Facts of a deployment; all is well with it by itself."""
    there = serving(control_name("a-1", KEY), lane()) if answer is None else answer
    told = {"a-1": TOLD} if nodes is None else nodes
    return Facts(
        servers=(ServerFacts(answer=there, is_loopback=is_loopback, tls=tls),),
        key=key,
        nodes={node: ToldNode(told=each, asked=1000.0, answered=1001.0) for node, each in told.items()},
        queues=queues,
        version="1.0",
        wire=1,
        python=PYTHON,
        host={"descriptor_limit": 4096, "shared_free": 2**30},
    )


def said(of: Facts, verdict: Verdict) -> list[str]:
    return [f"{each.subject}: {each.says}; {each.advice}" for each in findings(of) if each.verdict is verdict]


def doubts(of: Facts) -> list[str]:
    """What is not right, with a mark of how bad it is."""
    return [f"{verdict.value} {line}" for verdict in (Verdict.FAIL, Verdict.WARN) for line in said(of, verdict)]


def test_a_deployment_that_is_well_has_a_good_line_for_everything() -> None:
    assert doubts(facts()) == []
    subjects = [each.subject for each in findings(facts())]
    assert subjects == [
        "server head:4730", "server head:4730", "key", "nodes", "gearmap's version", "Python's version", "clocks",
        "queue default", "open files", "shared memory",
    ]  # fmt: skip
    assert all(each.advice == "" for each in findings(facts()))


def test_whatever_is_not_right_says_what_to_do() -> None:
    answer = serving(control_name("a-1", OTHER), lane(OTHER), jobs={lane(KEY): 3})
    bad = facts(answer, nodes={}, is_loopback=False, queues=("gpu",))
    wrong: list[Finding] = [each for each in findings(bad) if each.verdict is not Verdict.OK]
    assert len(wrong) >= 4
    assert all(each.advice for each in wrong)


def test_a_server_that_does_not_answer_fails_and_where_another_does_it_is_a_warning() -> None:
    silent = ServerAnswer(server="spare:4730", origin="GEARMAP_SERVERS", problem="connection refused")
    only = facts(silent, nodes={})
    assert doubts(only) == [
        "fail server spare:4730: connection refused (address from GEARMAP_SERVERS); "
        "start one there: gearmap server; or name another: -s HOST[:PORT]"
    ]
    well = facts()
    both = replace(well, servers=(*well.servers, ServerFacts(answer=silent, is_loopback=True)))
    assert [line[:25] for line in doubts(both)] == ["warn server spare:4730: co"[:25]]


@pytest.mark.parametrize(
    ("is_loopback", "tls", "says"),
    [
        (True, False, "ok: plain text, on this machine only"),
        (False, True, "ok: TLS, and its certificate is right"),
        (True, True, "ok: TLS, and its certificate is right"),
        (False, False, "warn: plain text: who reads the network"),
    ],
)
def test_plain_text_is_doubtful_where_others_may_read_it(is_loopback: bool, tls: bool, says: str) -> None:
    lines = [f"{each.verdict.value}: {each.says}" for each in findings(facts(is_loopback=is_loopback, tls=tls))]
    assert lines[1].startswith(says)


def test_without_a_key_nothing_is_said_of_nodes() -> None:
    none = KeyFacts(path="/home/me/key", problem="no key file at '/home/me/key'; make one: gearmap key new")
    assert doubts(facts(key=none, nodes={})) == ["fail key: no key file at '/home/me/key'; make one: gearmap key new; "]
    silent = ServerAnswer(server="127.0.0.1:4730", origin="default", problem="connection refused")
    assert "warn key" in doubts(facts(silent, key=none, nodes={}))[1]  # on this machine it is made on first use


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "fail nodes: none is connected; start one: gearmap worker -s head:4730"),
        (
            (control_name("b-2", OTHER),),
            f"fail nodes: 1 of 1 node has another key ({OTHER}) than yours ({KEY}); copy the key file",
        ),
        (
            (control_name("a-1", KEY), control_name("b-2", OTHER), control_name("c-3", THIRD)),
            f"warn nodes: 2 of 3 nodes have another key ({OTHER}, {THIRD}) than yours ({KEY}); copy the key file",
        ),
    ],
)
def test_keys_of_nodes_are_compared_with_ours(names: tuple[str, ...], says: str) -> None:
    lines = doubts(facts(serving(*names, lane()), nodes={"a-1": TOLD} if control_name("a-1", KEY) in names else {}))
    assert any(line.startswith(says) for line in lines), lines


def test_a_node_that_does_not_answer_is_named_with_its_host() -> None:
    (line,) = doubts(facts(nodes={}))
    assert line.startswith("warn nodes: 1 node does not answer: a-1 (10.0.0.7); look at their logs")


def test_a_change_of_keys_goes_on_once_all_nodes_accept_the_next_one() -> None:
    key = replace(FILE, ids=(KEY, OTHER), stage="next")
    both = (control_name("a-1", KEY), control_name("a-1", OTHER), lane(), lane(OTHER))
    (line,) = doubts(facts(serving(*both), key=key))
    assert line == (
        f"warn change of keys, next {OTHER}: all nodes (1) accept it; "
        "once the file is on every host: gearmap key rotate --switch"
    )
    assert "no node is connected" in doubts(facts(serving(), key=key, nodes={}))[-1]
    (line,) = doubts(facts(serving(*both, control_name("b-2", KEY)), key=key, nodes={"a-1": TOLD, "b-2": TOLD}))
    assert line.startswith(
        f"warn change of keys, next {OTHER}: 1 of 2 nodes does not accept it yet: host-a; copy the key"
    )


def test_a_change_of_keys_ends_once_nothing_uses_the_old_one() -> None:
    key = replace(FILE, ids=(KEY, OTHER), stage="old")
    both = (control_name("a-1", KEY), control_name("a-1", OTHER), lane(), lane(OTHER))
    (line,) = doubts(facts(serving(*both), key=key))
    assert line.endswith("idle clients are not seen; then: gearmap key rotate --finish")
    used = serving(*both, blobs_name("0123", OTHER), jobs={lane(OTHER): 3, lane(): 5})
    (line,) = doubts(facts(used, key=key))
    assert line.startswith(
        f"warn change of keys, old {OTHER}: still used: 3 jobs, 1 client with large arrays; start anew"
    )


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"gearmap": "0.9"}, "warn gearmap's version: 1.0 here, 0.9 on host-a; install the same everywhere"),
        ({"gearmap": None}, "warn gearmap's version: 1.0 here, one that does not tell on host-a"),
        ({"clock": 1060.0}, "warn clocks: host-a is 59 s ahead; set them"),
        ({"clock": 900.0}, "warn clocks: host-a is 100 s behind; set them"),
        ({"clock": 9000.0}, "fail clocks: host-a is 7,999 s ahead; set them"),
        ({"descriptors": 1000}, "warn open files: nearly all are used on host-a (1000 of 1024); raise it there"),
        ({"shared_free": 2**20}, "warn shared memory: little is left on host-a (1 MB); make room"),
    ],
)
def test_what_a_node_tells_is_judged(told: dict[str, Any], says: str) -> None:
    (line,) = doubts(facts(nodes={"a-1": TOLD | told}))
    assert line.startswith(says)


@pytest.mark.parametrize("clock", [1000.0, 1001.0, 996.0, 1005.9])
def test_a_clock_is_not_blamed_for_the_round_trip(clock: float) -> None:
    assert doubts(facts(nodes={"a-1": TOLD | {"clock": clock}})) == []


@pytest.mark.parametrize("odd", [None, "x", True, [], float("nan")])
def test_odd_answers_of_a_node_are_no_answers(odd: object) -> None:
    told = dict.fromkeys(TOLD, odd) | {"gearmap": "1.0"}
    assert doubts(facts(nodes={"a-1": told})) == []


def test_another_python_everywhere_fails_and_on_some_nodes_warns() -> None:
    nodes = (control_name("a-1", KEY),)
    lines = doubts(facts(serving(*nodes, lane(python=(3, 12)))))
    assert lines[0].startswith("fail Python's version: 3.11 here, 3.12 on the nodes; use one that nodes have")
    (line,) = doubts(facts(serving(*nodes, lane(), lane(python=(3, 12)))))
    assert line.startswith("warn Python's version: 3.11 here and on nodes; others have 3.11, 3.12")
    (line,) = doubts(facts(serving(*nodes, lane(), lane(version=2))))
    assert line.startswith("warn wire version: 1 here, 2 on some nodes")
    assert doubts(facts(serving(*nodes, lane(), lane(OTHER, python=(3, 12))))) == []  # of somebody else


def test_queues_that_are_asked_for_must_be_served() -> None:
    (line,) = doubts(facts(queues=("default", "gpu")))
    assert line.startswith("fail queue gpu: no worker serves queue 'gpu' for Python 3.11 with your key")
    assert line.endswith("start one: gearmap worker -s head:4730 -q gpu")


def test_jobs_that_wait_for_nobody_are_told_of() -> None:
    answer = serving(control_name("a-1", KEY), lane(), jobs={lane(queue="gpu"): 4})
    (line,) = doubts(facts(answer))
    assert line.startswith("warn waiting jobs: no worker serves queue 'gpu'")


def test_a_hundred_hosts_make_no_longer_lines_than_ten() -> None:
    nodes = {f"n-{n}": TOLD | {"name": f"host-{n:03}", "clock": 9.0, "shared_free": 1} for n in range(100)}
    lines = doubts(facts(serving(*(control_name(node, KEY) for node in nodes), lane()), nodes=nodes))
    assert len(lines) == 2
    assert all("and 95 more" in line and len(line) < 300 for line in lines)


def test_little_room_on_this_host_is_told_of() -> None:
    little = replace(facts(), host={"descriptor_limit": 256, "shared_free": 2**20})
    assert [line.partition(";")[0] for line in doubts(little)] == [
        "warn open files: this process may have 256",
        "warn shared memory: 1 MB free in /dev/shm here",
    ]
    assert doubts(replace(facts(), host={})) == []
