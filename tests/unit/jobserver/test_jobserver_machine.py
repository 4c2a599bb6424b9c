"""The state machine without a socket: what happens to jobs, and what must never happen to them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gearmap.errors import ProtocolError
from gearmap.jobserver import protocol as p
from gearmap.jobserver.blocks import LargeData
from gearmap.jobserver.machine import WAITING_GRABS, Machine
from gearmap.jobserver.records import JobState, Peer, ServerOptions
from gearmap.jobserver.state import ABILITY_BYTES, FUNCTION_BYTES, JOB_BYTES, MIN_DEAD_TO_SWEEP


class Bench:
    """A machine with peers, and what each of them was sent."""

    def __init__(self, **options):
        self.machine = Machine(ServerOptions(**options), pid=42)
        self.table = self.machine.table

    def peer(self):
        peer = Peer()
        self.machine.connect(peer)
        return peer

    def worker(self, *functions):
        worker = self.peer()
        for function in functions:
            self.say(worker, p.CAN_DO, function)
        return worker

    def waiting_worker(self, *functions):
        """A worker whose GRAB waits for a job."""
        worker = self.worker(*functions)
        assert self.say(worker, p.OPTION_REQ, WAITING_GRABS) == [(p.OPTION_RES, WAITING_GRABS)]
        assert self.say(worker, p.GRAB_JOB_UNIQ) == []
        return worker

    def say(self, peer, command, *args):
        """Let a peer send a packet; return what the peer itself is sent."""
        self.machine.handle(peer, command, b"\0".join(args))
        return self.heard(peer)

    def heard(self, peer):
        """Return the packets that a peer was sent since the last look."""
        self.machine.take_touched()
        stream = b"".join(bytes(piece) for piece in peer.out)
        peer.out.clear()
        packets = []
        while stream:
            _, command, size = struct.unpack_from(">4sII", stream)
            packets.append((command, stream[12 : 12 + size]))
            stream = stream[12 + size :]
        return packets

    def submit(self, client, function=b"f", unique=b"", data=b"data", command=p.SUBMIT_JOB):
        ((answer, handle),) = self.say(client, command, function, unique, data)
        assert answer == p.JOB_CREATED
        return handle

    def grab(self, worker):
        """Return handle and data of the assigned job, or None."""
        ((answer, body),) = self.say(worker, p.GRAB_JOB)
        if answer == p.NO_JOB:
            return None
        handle, _, data = body.split(b"\0", 2)
        return handle, data


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def local_bench():
    """As the server of a local cluster."""
    return Bench(wake_one=True)


def check_invariants(table):
    """Every job is in exactly one place, and every number is the length of what it counts."""
    queued = {f: {0: [], 1: [], 2: []} for f in table.functions.values()}
    running = dict.fromkeys(table.functions.values(), 0)
    for handle, job in table.jobs.items():
        assert job.handle == handle
        assert table.functions[job.function.name] is job.function
        assert job.state is not JobState.GONE
        if job.state is JobState.QUEUED:
            queued[job.function][job.priority].append(job)
            assert job.worker is None
            assert job.is_wanted
        else:
            running[job.function] += 1
            assert job.worker in table.peers
            assert job in job.worker.running
        for client in job.clients:
            assert client in table.peers
            assert job in client.waiting
        if job.unique not in (b"", b"-"):
            assert job in table.by_unique[job.unique]
    for function in table.functions.values():
        assert function.n_running == running[function]
        for priority, queue in enumerate(function.queues):
            alive = [job for job in queue if job.state is JobState.QUEUED]
            assert sorted(map(id, alive)) == sorted(map(id, queued[function][priority]))
            assert function.n_queued[priority] == len(alive)
            assert function.n_dead[priority] == len(queue) - len(alive)
            assert function.n_dead[priority] <= max(MIN_DEAD_TO_SWEEP, len(queue) // 2 + 1)
        assert set(function.sleepers) <= set(function.workers) <= set(table.peers)
    for peer in table.peers:
        assert all(job.worker is peer for job in peer.running)
        assert all(peer in job.clients for job in peer.waiting)
        for function in peer.abilities:
            assert (peer in function.sleepers) == peer.is_sleeping
            assert not (peer.is_waiting and function.n_waiting)
        assert peer.is_sleeping or not peer.is_waiting
    for function in table.functions.values():
        is_idle = not function.workers and not function.n_total
        assert (function in table.idle) == is_idle
    assert set(table.idle) <= set(table.functions.values())
    assert table.jobs_bytes == sum(len(job.data) + JOB_BYTES for job in table.jobs.values())
    assert table.names_bytes == sum(len(name) + FUNCTION_BYTES for name in table.functions)
    served = [function for peer in table.peers for function in peer.abilities]
    assert table.abilities_bytes == sum(len(function.name) + ABILITY_BYTES for function in served)
    assert sum(map(len, table.by_unique.values())) == sum(job.unique not in (b"", b"-") for job in table.jobs.values())
    assert all(job.handle in table.jobs for job in table.by_data.values())


def test_a_lost_worker_requeues_only_its_own_jobs(bench):
    client, lost, other = bench.peer(), bench.worker(b"f"), bench.worker(b"f")
    first, second = bench.submit(client), bench.submit(client)
    assert bench.grab(lost) == (first, b"data")
    assert bench.grab(other) == (second, b"data")
    bench.machine.disconnect(lost)
    assert bench.grab(other) == (first, b"data")
    assert bench.grab(other) is None


def test_a_job_fails_at_its_last_allowed_loss():
    bench = Bench(job_retries=2)
    client = bench.peer()
    handle = bench.submit(client)
    for _ in range(2):
        worker = bench.worker(b"f")
        assert bench.grab(worker) == (handle, b"data")
        bench.machine.disconnect(worker)
    assert bench.heard(client) == [(p.WORK_FAIL, handle)]
    assert not bench.table.jobs
    check_invariants(bench.table)


def test_equal_submissions_are_one_job_until_it_is_finished(bench):
    first, second, worker = bench.peer(), bench.peer(), bench.worker(b"f")
    handle = bench.submit(first, unique=b"u")
    assert bench.submit(second, unique=b"u") == handle
    bench.grab(worker)
    bench.say(worker, p.WORK_COMPLETE, handle, b"result")
    assert bench.heard(first) == bench.heard(second) == [(p.WORK_COMPLETE, handle + b"\0result")]
    assert bench.submit(first, unique=b"u") != handle


def test_large_data_with_the_unique_dash_is_compared_by_content(bench):
    client = bench.peer()
    large = b"x" * 100_000
    handles = []
    for data in (large, bytes(bytearray(large)), large[:-1] + b"y"):
        body = LargeData([memoryview(b"f\0-\0" + data[:100]), memoryview(data)[100:]])
        bench.machine.handle(client, p.SUBMIT_JOB, body)
        handles.append(bench.heard(client)[0][1])
    assert handles[0] == handles[1] != handles[2]


def test_a_client_s_loss_drops_what_only_it_waited_for(bench):
    leaving, staying = bench.peer(), bench.peer()
    bench.submit(leaving, unique=b"alone")
    shared = bench.submit(leaving, unique=b"shared")
    bench.submit(staying, unique=b"shared")
    background = bench.submit(leaving, command=p.SUBMIT_JOB_BG)
    bench.machine.disconnect(leaving)
    assert set(bench.table.jobs) == {shared, background}
    check_invariants(bench.table)


def test_a_cancelled_running_job_is_joined_by_nobody(bench):
    client, worker, admin = bench.peer(), bench.worker(b"f"), bench.peer()
    handle = bench.submit(client, unique=b"u")
    bench.grab(worker)
    bench.machine.handle(admin, p.TEXT_LINE, b"cancel job " + handle)
    assert bench.heard(client) == [(p.WORK_FAIL, handle)]
    fresh = bench.submit(client, unique=b"u", data=b"fresh")
    assert fresh != handle
    assert bench.say(worker, p.WORK_COMPLETE, handle, b"late") == []
    assert bench.heard(client) == []
    assert bench.grab(worker) == (fresh, b"fresh")
    check_invariants(bench.table)


def test_the_worker_of_a_cancelled_job_sees_no_clients_even_if_its_unique_came_again(bench):
    client, worker, admin = bench.peer(), bench.worker(b"f"), bench.peer()
    handle = bench.submit(client, unique=b"u")
    bench.grab(worker)
    bench.machine.handle(admin, p.TEXT_LINE, b"cancel job " + handle)
    bench.heard(client)
    bench.submit(client, unique=b"u")
    ((_, body),) = bench.say(worker, p.GET_STATUS_UNIQUE, b"u")
    assert body.split(b"\0")[1:] == [b"1", b"1", b"0", b"0", b"0"]


def test_dead_jobs_leave_the_queue_and_keep_no_payload(bench):
    clients = [bench.peer() for _ in range(1000)]
    for client in clients:
        bench.submit(client, data=b"x" * 1000)
    jobs = list(bench.table.jobs.values())
    for client in clients[:-1]:
        bench.machine.disconnect(client)
    (queue,) = [queue for queue in bench.table.functions[b"f"].queues if queue]
    assert len(queue) <= MIN_DEAD_TO_SWEEP
    assert [job.data for job in jobs[:-1]] == [b""] * 999
    assert not bench.table.by_unique
    check_invariants(bench.table)


def test_nothing_is_left_of_finished_jobs(bench):
    client, worker = bench.peer(), bench.worker(b"f")
    for unique in (b"", b"-", b"u"):
        handle = bench.submit(client, unique=unique)
        bench.grab(worker)
        bench.say(worker, p.WORK_COMPLETE, handle, b"")
        bench.heard(client)
    table = bench.table
    assert [table.jobs, table.by_unique, table.by_data, client.waiting, worker.running] == [{}] * 5


def test_wake_one_wakes_the_next_sleeper_if_the_woken_one_goes_away():
    bench = Bench(wake_one=True)
    client, first, second = bench.peer(), bench.worker(b"f"), bench.worker(b"f")
    for worker in (first, second):
        assert bench.say(worker, p.PRE_SLEEP) == []
    bench.submit(client)
    assert bench.heard(first) == [(p.NOOP, b"")]
    assert bench.heard(second) == []
    bench.machine.disconnect(first)
    assert bench.heard(second) == [(p.NOOP, b"")]


def test_a_grab_that_waits_is_answered_by_the_next_job(local_bench):
    client, worker = local_bench.peer(), local_bench.waiting_worker(b"f", b"g")
    handle = local_bench.submit(client, b"f", b"u")
    assert local_bench.heard(worker) == [(p.JOB_ASSIGN_UNIQ, b"\0".join((handle, b"f", b"u", b"data")))]
    local_bench.submit(client, b"g")
    assert local_bench.heard(worker) == []


def test_a_grab_does_not_wait_where_that_was_not_asked_for(local_bench):
    worker = local_bench.worker(b"f")
    assert local_bench.say(worker, p.GRAB_JOB_UNIQ) == [(p.NO_JOB, b"")]
    local_bench.say(worker, p.OPTION_REQ, WAITING_GRABS)
    assert local_bench.say(worker, p.GRAB_JOB) == [(p.NO_JOB, b"")]
    local_bench.submit(local_bench.peer())
    assert local_bench.heard(worker) == []


def test_a_waiting_grab_that_is_taken_back_gets_nothing_any_more(local_bench):
    worker = local_bench.waiting_worker(b"f")
    assert local_bench.say(worker, p.PRE_SLEEP) == [(p.NO_JOB, b"")]
    local_bench.submit(local_bench.peer())
    assert local_bench.heard(worker) == []


def test_taking_a_grab_back_too_late_changes_nothing(local_bench):
    client, worker = local_bench.peer(), local_bench.waiting_worker(b"f")
    local_bench.submit(client)
    ((assigned, _),) = local_bench.heard(worker)
    assert assigned == p.JOB_ASSIGN_UNIQ
    assert local_bench.say(worker, p.PRE_SLEEP) == []
    local_bench.submit(client)
    assert local_bench.heard(worker) == []


def test_a_job_goes_to_one_waiting_grab_and_wakes_nobody_else(local_bench):
    sleeper = local_bench.worker(b"f")
    assert local_bench.say(sleeper, p.PRE_SLEEP) == []
    first, second = local_bench.waiting_worker(b"f"), local_bench.waiting_worker(b"f")
    for worker in (first, second):
        local_bench.submit(local_bench.peer())
        assert [command for command, _ in local_bench.heard(worker)] == [p.JOB_ASSIGN_UNIQ]
        assert local_bench.heard(sleeper) == []
    local_bench.submit(local_bench.peer())
    assert local_bench.heard(sleeper) == [(p.NOOP, b"")]


def test_grabs_wait_at_the_servers_of_local_clusters_only(bench):
    worker = bench.worker(b"f")
    ((answer, _),) = bench.say(worker, p.OPTION_REQ, WAITING_GRABS)
    assert answer == p.ERROR
    assert bench.say(worker, p.GRAB_JOB_UNIQ) == [(p.NO_JOB, b"")]


def test_a_requeued_job_goes_to_a_grab_that_waits(local_bench):
    busy, idle = local_bench.waiting_worker(b"f"), local_bench.waiting_worker(b"f")
    handle = local_bench.submit(local_bench.peer())
    local_bench.machine.disconnect(busy)
    ((assigned, body),) = local_bench.heard(idle)
    assert (assigned, body.split(b"\0")[0]) == (p.JOB_ASSIGN_UNIQ, handle)


def test_a_waiting_grab_serves_what_was_registered_meanwhile_and_not_what_was_left(local_bench):
    client, worker = local_bench.peer(), local_bench.waiting_worker(b"f")
    local_bench.submit(client, b"g")
    ((assigned, body),) = local_bench.say(worker, p.CAN_DO, b"g")
    assert (assigned, body.split(b"\0")[1]) == (p.JOB_ASSIGN_UNIQ, b"g")
    local_bench.say(worker, p.GRAB_JOB_UNIQ)
    local_bench.say(worker, p.CANT_DO, b"f")
    local_bench.submit(client, b"f")
    assert local_bench.heard(worker) == []


def test_a_worker_that_goes_takes_its_waiting_grab_along(local_bench):
    worker = local_bench.waiting_worker(b"f")
    local_bench.machine.disconnect(worker)
    handle = local_bench.submit(local_bench.peer())
    assert local_bench.grab(local_bench.worker(b"f"))[0] == handle


def test_a_peer_that_is_gone_is_sent_nothing(bench):
    client, worker = bench.peer(), bench.worker(b"f")
    handle = bench.submit(client)
    bench.grab(worker)
    bench.machine.disconnect(client)
    bench.say(worker, p.WORK_DATA, handle, b"unheard")
    assert client.out == []
    bench.machine.disconnect(client)


def test_an_unknown_command_is_a_protocol_error(bench):
    with pytest.raises(ProtocolError):
        bench.say(bench.peer(), 36, b"f", b"u", b"0", b"data")


@pytest.mark.parametrize("command", [p.SUBMIT_JOB, p.CAN_DO_TIMEOUT, p.WORK_COMPLETE, p.WORK_STATUS, p.WORK_DATA])
def test_a_packet_without_its_arguments_is_a_protocol_error(bench, command):
    with pytest.raises(ProtocolError):
        bench.say(bench.peer(), command, b"alone")


NAMES = st.sampled_from([b"f", b"g", b"h"])
UNIQUES = st.sampled_from([b"", b"-", b"u1", b"u2", b"u3"])
SUBMISSIONS = st.sampled_from(
    [
        p.SUBMIT_JOB,
        p.SUBMIT_JOB_BG,
        p.SUBMIT_JOB_HIGH,
        p.SUBMIT_JOB_HIGH_BG,
        p.SUBMIT_JOB_LOW,
        p.SUBMIT_JOB_LOW_BG,
    ]
)
INDEX = st.integers(0, 5)


class ServerMachine(RuleBasedStateMachine):
    """Peers that do anything in any order."""

    def __init__(self, **options):
        super().__init__()
        self.bench = Bench(job_retries=3, **options)
        self.peers = [self.bench.peer() for _ in range(6)]

    def handle_of(self, pick):
        handles = list(self.bench.table.jobs) or [b"H:nobody:1"]
        return handles[pick % len(handles)]

    @rule(who=INDEX, name=NAMES, unique=UNIQUES, command=SUBMISSIONS, data=st.sampled_from([b"", b"a", b"b\0c"]))
    def submit(self, who, name, unique, command, data):
        answers = self.bench.say(self.peers[who], command, name, unique, data)
        assert answers[-1][0] in (p.JOB_CREATED, p.ERROR)

    @rule(who=INDEX, command=st.sampled_from([p.CAN_DO, p.CANT_DO]), name=NAMES)
    def change_ability(self, who, command, name):
        self.bench.say(self.peers[who], command, name)

    @rule(who=INDEX, command=st.sampled_from([p.RESET_ABILITIES, p.PRE_SLEEP, p.GRAB_JOB, p.GRAB_JOB_UNIQ]))
    def act(self, who, command):
        self.bench.say(self.peers[who], command)

    @rule(who=INDEX)
    def have_grabs_wait(self, who):
        self.bench.say(self.peers[who], p.OPTION_REQ, WAITING_GRABS)
        self.bench.say(self.peers[who], p.GRAB_JOB_UNIQ)

    @rule(
        who=INDEX,
        pick=st.integers(0, 50),
        command=st.sampled_from([p.WORK_COMPLETE, p.WORK_EXCEPTION, p.WORK_DATA, p.WORK_WARNING]),
        as_owner=st.booleans(),
    )
    def report(self, who, pick, command, as_owner):
        handle = self.handle_of(pick)
        job = self.bench.table.jobs.get(handle)
        peer = job.worker if as_owner and job is not None and job.worker is not None else self.peers[who]
        self.bench.say(peer, command, handle, b"x")

    @rule(who=INDEX, pick=st.integers(0, 50))
    def fail(self, who, pick):
        self.bench.say(self.peers[who], p.WORK_FAIL, self.handle_of(pick))

    @rule(pick=st.integers(0, 50))
    def cancel(self, pick):
        self.bench.machine.handle(self.peers[0], p.TEXT_LINE, b"cancel job " + self.handle_of(pick))
        self.peers[0].out.clear()

    @rule(name=NAMES, command=st.sampled_from([b"drop function ", b"create function "]))
    def administer(self, name, command):
        self.bench.machine.handle(self.peers[0], p.TEXT_LINE, command + name)
        self.peers[0].out.clear()

    @rule(name=NAMES, limit=st.integers(0, 3))
    def limit(self, name, limit):
        self.bench.machine.handle(self.peers[0], p.TEXT_LINE, b"maxqueue %b %d" % (name, limit))
        self.peers[0].out.clear()

    @rule(who=INDEX)
    def replace(self, who):
        self.bench.machine.disconnect(self.peers[who])
        self.peers[who] = self.bench.peer()

    @rule(who=INDEX, unique=UNIQUES)
    def ask(self, who, unique):
        command, body = self.bench.say(self.peers[who], p.GET_STATUS_UNIQUE, unique)[-1]
        assert command == p.STATUS_RES_UNIQUE
        assert len(body.split(b"\0")) == 6

    @invariant()
    def nothing_is_lost_or_counted_twice(self):
        check_invariants(self.bench.table)

    def teardown(self):
        for peer in self.peers:
            self.bench.machine.disconnect(peer)
        table = self.bench.table
        check_invariants(table)
        assert all(job.background for job in table.jobs.values())


class LocalServerMachine(ServerMachine):
    """The same at the server of a local cluster."""

    def __init__(self):
        super().__init__(wake_one=True)


TestLocalServerMachine = LocalServerMachine.TestCase
TestLocalServerMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestServerMachine = ServerMachine.TestCase
TestServerMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
