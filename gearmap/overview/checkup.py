"""From what servers, nodes and files tell to the lines of `gearmap doctor`: what is right, what is not, what to do.

Law of the file: pure. Whoever asked (`examine`) hands the answers in. They come from peers: what is odd in one counts
as not said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gearmap.core.names import Lane, explain_no_worker, key_ids_of_nodes
from gearmap.core.sizes import shown_bytes
from gearmap.overview.listing import ServerAnswer, hints, lane_rows, node_rows, server_kind

__all__ = ["Facts", "Finding", "KeyFacts", "ServerFacts", "ToldNode", "Verdict", "findings"]

# How far a node's clock may be off, beyond what the round trip leaves open. A job's expiry is compared with it: jobs
# are good for 24 hours, so an hour is a fault that will grow, and some seconds are a sign that nobody sets the clock.
CLOCK_WARN_SECONDS = 5.0
CLOCK_FAIL_SECONDS = 3600.0

# Below these a process is short of open files, or of shared memory.
FEW_DESCRIPTORS = 1024
FULL_SHARE = 0.8
LITTLE_SHARED_BYTES = 32 * 1024 * 1024

# Names that a line lists before it says how many more there are.
SHOWN_NAMES = 5


class Verdict(Enum):
    """How a finding is to be taken."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it, if anything."""

    verdict: Verdict
    subject: str
    says: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One job server: what it answered, whether only this machine reaches it, whether TLS is spoken with it."""

    answer: ServerAnswer
    is_loopback: bool
    tls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """The key file: the ids in it, that of clients first, and how far a change of keys is; or what is wrong with it."""

    path: str
    ids: tuple[str, ...] = ()
    stage: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldNode:
    """What a node told of itself, and this machine's wall time before it was asked and after it answered."""

    told: Mapping[str, Any]
    asked: float
    answered: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known of a deployment.

    Attributes
    ----------
    nodes
        What nodes told, by their ids; those that did not answer are missing.
    queues
        Which should be served.
    version, wire, python, host
        Those of this process; see `runtime.hostfacts`.
    """

    servers: tuple[ServerFacts, ...]
    key: KeyFacts
    nodes: Mapping[str, ToldNode] = field(default_factory=dict)
    queues: tuple[str, ...] = ("default",)
    version: str
    wire: int
    python: tuple[int, int]
    host: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> tuple[ServerAnswer, ...]:
        """Those of the servers that answered."""
        return tuple(each.answer for each in self.servers if not each.answer.problem)


def findings(facts: Facts) -> list[Finding]:
    """Return what there is to say, in the order in which it is best read."""
    found = [*_servers(facts), *_key(facts)]
    if facts.answers and facts.key.ids:
        found += [*_nodes(facts), *_rotation(facts), *_versions(facts), *_clocks(facts), *_queues(facts)]
    found += _hosts(facts)
    return found


def _ok(subject: str, says: str) -> Finding:
    return Finding(Verdict.OK, subject, says)


# --------------------------------------------------------------------------------------------------- servers and key


def _servers(facts: Facts) -> Iterator[Finding]:
    for each in facts.servers:
        answer = each.answer
        subject = f"server {answer.server}"
        if answer.problem:
            # While another one answers, work goes on there.
            verdict = Verdict.WARN if facts.answers else Verdict.FAIL
            says = f"{answer.problem} (address from {answer.origin})"
            advice = "start one there: gearmap server; or name another: -s HOST[:PORT]"
            if each.tls:
                advice = (
                    "see to its certificate and ours, if it is there; else to the server, and what speaks TLS for it"
                )
            yield Finding(verdict, subject, says, advice)
            continue
        yield _ok(subject, f"answers: {server_kind(answer.version)}")
        if each.tls:
            yield _ok(subject, "TLS, and its certificate is right")
        elif each.is_loopback:
            yield _ok(subject, "plain text, on this machine only")
        else:
            says = "plain text: who reads the network sees names of queues, sizes and times, and can drop jobs"
            yield Finding(
                Verdict.WARN, subject, says, "keep it on a network that you trust, or name a server of TLS: tls://HOST"
            )


def _key(facts: Facts) -> Iterator[Finding]:
    key = facts.key
    if key.problem:
        is_needed = not all(each.is_loopback for each in facts.servers)
        yield Finding(Verdict.FAIL if is_needed or facts.answers else Verdict.WARN, "key", key.problem)
    else:
        yield _ok("key", f"{key.ids[0]} in {key.path}, which only its owner can read")


def _rotation(facts: Facts) -> Iterator[Finding]:
    """Say whether the next step of a change of keys may be taken."""
    key = facts.key
    if not key.stage:
        return
    current, other = key.ids
    subject = f"change of keys, {key.stage} {other}"
    nodes = _keys_of_nodes(facts)
    lacking = [_called(facts, node) for node, ids in nodes.items() if other not in ids and current in ids]
    if key.stage == "next" and lacking:
        yield Finding(Verdict.WARN, subject, _lack(lacking, len(nodes)), "copy the key file to their hosts")
        return
    if key.stage == "next" and nodes:
        advice = "once the file is on every host: gearmap key rotate --switch"
        yield Finding(Verdict.WARN, subject, f"all nodes ({len(nodes)}) accept it", advice)
        return
    used = _uses(facts.answers, other)
    if key.stage == "next":
        yield Finding(Verdict.WARN, subject, "no node is connected", "it goes on once there are some")
    elif used:
        says = f"still used: {', '.join(used)}"
        yield Finding(Verdict.WARN, subject, says, "start anew the clients that still have it, then look again")
    else:
        says = "no job, and no client with large arrays, uses it; idle clients are not seen"
        yield Finding(Verdict.WARN, subject, says, "then: gearmap key rotate --finish")


def _lack(lacking: Sequence[str], of: int) -> str:
    verb = "does" if len(lacking) == 1 else "do"
    return f"{len(lacking)} of {_count(of, 'node')} {verb} not accept it yet: {_some(lacking)}"


def _uses(answers: Iterable[ServerAnswer], key_id: str) -> list[str]:
    """Return what on job servers belongs to clients that have a key."""
    jobs = sum(row.queued + row.running for row in lane_rows(answers) if row.lane.key_id == key_id)
    names = {row.function for each in answers for row in each.functions if row.workers}
    clients = sum(name.split(".")[1:2] == ["blobs"] and name.endswith(f".{key_id}") for name in names)
    used = [_count(jobs, "job")] if jobs else []
    return used + ([f"{_count(clients, 'client')} with large arrays"] if clients else [])


# ------------------------------------------------------------------------------------------------------------- nodes


def _keys_of_nodes(facts: Facts) -> dict[str, set[str]]:
    return key_ids_of_nodes(row.function for each in facts.answers for row in each.functions if row.workers)


def _nodes(facts: Facts) -> Iterator[Finding]:
    keys = _keys_of_nodes(facts)
    mine = facts.key.ids[0]
    have = [node for node, ids in keys.items() if mine in ids]
    lack = {node: ids for node, ids in keys.items() if mine not in ids}
    if not keys:
        place = facts.answers[0].server
        yield Finding(Verdict.FAIL, "nodes", "none is connected", f"start one: gearmap worker -s {place}")
        return
    if have:
        yield _ok("nodes", f"{_count(len(have), 'node')} with your key ({mine})")
    if lack:
        others = sorted({each for ids in lack.values() for each in ids})
        verb = "has" if len(lack) == 1 else "have"
        says = (
            f"{len(lack)} of {_count(len(keys), 'node')} {verb} another key ({', '.join(others)}) than yours ({mine})"
        )
        advice = "copy the key file of one side to the other, if they are to work for you"
        yield Finding(Verdict.WARN if have else Verdict.FAIL, "nodes", says, advice)
    silent = [_called(facts, node) for node in have if node not in facts.nodes]
    if silent:
        verb = "does" if len(silent) == 1 else "do"
        says = f"{_count(len(silent), 'node')} {verb} not answer: {_some(silent)}"
        yield Finding(Verdict.WARN, "nodes", says, "look at their logs: busy, suspended, or cut off")


def _versions(facts: Facts) -> Iterator[Finding]:
    told: dict[str, list[str]] = {}
    for node, each in facts.nodes.items():
        version = each.told.get("gearmap")
        told.setdefault(version if isinstance(version, str) else "one that does not tell", []).append(
            _called(facts, node)
        )
    others = {version: names for version, names in told.items() if version != facts.version}
    if others:
        says = "; ".join(f"{version} on {_some(names)}" for version, names in sorted(others.items()))
        advice = "install the same everywhere; it works as long as the wire version is the same"
        yield Finding(Verdict.WARN, "gearmap's version", f"{facts.version} here, {says}", advice)
    elif told:
        yield _ok("gearmap's version", f"{facts.version} everywhere, wire version {facts.wire}")
    lanes = [row.lane for row in lane_rows(facts.answers) if row.workers and row.lane.key_id in facts.key.ids]
    wires = sorted({lane.version for lane in lanes} - {facts.wire})
    if wires:
        says = f"{facts.wire} here, {', '.join(map(str, wires))} on some nodes"
        yield Finding(
            Verdict.WARN, "wire version", says, "install the same gearmap everywhere: these do not work for you"
        )
    served = {lane.python for lane in lanes if lane.version == facts.wire}
    if served and facts.python not in served:
        says = f"{_dotted(facts.python)} here, {', '.join(map(_dotted, sorted(served)))} on the nodes"
        yield Finding(Verdict.FAIL, "Python's version", says, "use one that nodes have, or start nodes with yours")
    elif served - {facts.python}:
        says = f"{_dotted(facts.python)} here and on nodes; others have {', '.join(map(_dotted, sorted(served)))}"
        yield Finding(Verdict.WARN, "Python's version", says, "nodes with another one do not work for you")
    elif served:
        yield _ok("Python's version", f"{_dotted(facts.python)} everywhere")


def _clocks(facts: Facts) -> Iterator[Finding]:
    off: dict[str, float] = {}
    for node, each in facts.nodes.items():
        clock = _number(each.told.get("clock"))
        if clock is not None:
            off[_called(facts, node)] = _beyond(clock, each.asked, each.answered)
    wrong = {name: by for name, by in off.items() if abs(by) > CLOCK_WARN_SECONDS}
    if wrong:
        is_bad = any(abs(by) > CLOCK_FAIL_SECONDS for by in wrong.values())
        says = ", ".join(f"{name} is {_shown_seconds(by)}" for name, by in _first(sorted(wrong.items())))
        more = f" and {len(wrong) - SHOWN_NAMES} more" if len(wrong) > SHOWN_NAMES else ""
        advice = "set them, as by NTP: jobs expire after 24 hours by the node's clock"
        yield Finding(Verdict.FAIL if is_bad else Verdict.WARN, "clocks", says + more, advice)
    elif off:
        yield _ok("clocks", f"{_count(len(off), 'node')} within {CLOCK_WARN_SECONDS:g} s of this machine")


def _beyond(clock: float, asked: float, answered: float) -> float:
    """Return by how much a clock is certainly off: it was read at some time between the question and the answer."""
    if clock > answered:
        return clock - answered
    return min(0.0, clock - asked)


def _queues(facts: Facts) -> Iterator[Finding]:
    rows = lane_rows(facts.answers)
    served = {row.lane.name: row.workers for row in rows}
    places = [each.server for each in facts.answers]
    for queue in facts.queues:
        lane = Lane(queue, facts.python, facts.key.ids[0])
        workers = served.get(lane.name, 0)
        if workers:
            yield _ok(f"queue {queue}", f"{_count(workers, 'worker')} for your Python and key")
        else:
            says, _, advice = explain_no_worker(lane, served.items(), places).partition("; ")
            yield Finding(Verdict.FAIL, f"queue {queue}", says, advice)
    for line in hints(facts.answers, rows):
        says, _, advice = line.partition("; ")
        yield Finding(Verdict.WARN, "waiting jobs", says, advice)


# ------------------------------------------------------------------------------------------------------------- hosts


def _hosts(facts: Facts) -> Iterator[Finding]:
    limit = _number(facts.host.get("descriptor_limit"))
    if limit is not None and limit < FEW_DESCRIPTORS:
        yield Finding(Verdict.WARN, "open files", f"this process may have {limit:.0f}", "raise it: ulimit -n 4096")
    elif limit is not None:
        yield _ok("open files", f"this process may have {limit:,.0f}")
    free = _number(facts.host.get("shared_free"))
    if free is not None and free < LITTLE_SHARED_BYTES:
        says = f"{shown_bytes(int(free))} free in /dev/shm here"
        yield Finding(Verdict.WARN, "shared memory", says, "a local cluster needs some; in a container: --shm-size=1g")
    elif free is not None:
        yield _ok("shared memory", f"{shown_bytes(int(free))} free in /dev/shm here")
    crowded, tight = [], []
    for node, each in facts.nodes.items():
        used, most = _number(each.told.get("descriptors")), _number(each.told.get("descriptor_limit"))
        if used is not None and most is not None and used > FULL_SHARE * most:
            crowded.append(f"{_called(facts, node)} ({used:.0f} of {most:.0f})")
        left = _number(each.told.get("shared_free"))
        if left is not None and left < LITTLE_SHARED_BYTES:
            tight.append(f"{_called(facts, node)} ({shown_bytes(int(left))})")
    if crowded:
        advice = "raise it there (LimitNOFILE, ulimit -n), or start fewer workers"
        yield Finding(Verdict.WARN, "open files", f"nearly all are used on {_some(crowded)}", advice)
    if tight:
        advice = "make room in /dev/shm there; in a container: --shm-size=1g"
        yield Finding(Verdict.WARN, "shared memory", f"little is left on {_some(tight)}", advice)


# ------------------------------------------------------------------------------------------------------------- words


def _called(facts: Facts, node: str) -> str:
    """Return how people call a node."""
    each = facts.nodes.get(node)
    name = None if each is None else each.told.get("name")
    if isinstance(name, str) and name:
        return name
    hosts = [sorted(row.addresses) for row in node_rows(facts.answers) if row.node_id == node]
    return f"{node} ({', '.join(hosts[0])})" if hosts else node


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(_first(sorted(names)))
    return shown if len(names) <= SHOWN_NAMES else f"{shown} and {len(names) - SHOWN_NAMES} more"


def _first(items: Sequence[Any]) -> Sequence[Any]:
    return items[:SHOWN_NAMES]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return float(value) if is_number else None


def _shown_seconds(by: float) -> str:
    return f"{abs(by):,.0f} s {'ahead' if by > 0 else 'behind'}"


def _dotted(python: tuple[int, int]) -> str:
    return f"{python[0]}.{python[1]}"
