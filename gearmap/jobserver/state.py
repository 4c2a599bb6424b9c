"""All jobs, functions and peers of the job server, and the moves of a job between them.

What lives here: queues, ownership, coalescing, wake-ups, the two indexes. What must not: packet numbers of requests
(see `machine`), sockets, clocks, threads, randomness.

Rule 1: a job is in exactly one place: queued in its function, running on one peer, or gone.
Rule 2: every place that names a job is left when the job goes, except the queue, whose dead entries are skipped when
met and swept when they are the greater part.
Rule 3: what all peers together leave here is bounded (`limits.Stock`), and counted where it comes and goes.
Rule 4: what a peer shall be sent is appended to its `out`, in order; whoever feeds the state collects it by `touched`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from gearmap.errors import ProtocolError
from gearmap.jobserver.protocol import JOB_ASSIGN_UNIQ, NO_JOB, NOOP, WORK_FAIL, Data, reply, reply_head
from gearmap.jobserver.records import HIGH, LOW, NORMAL, Function, Job, JobState, Peer, ServerOptions

__all__ = ["JobTable"]

PRIORITIES: Final = (HIGH, NORMAL, LOW)

# Below this number of dead entries sweeping a queue costs more than it frees.
MIN_DEAD_TO_SWEEP: Final = 64

# What a job, a function, and one peer's serving a function count beyond their bytes.
JOB_BYTES: Final = 1024
FUNCTION_BYTES: Final = 512
ABILITY_BYTES: Final = 64

# Up to here large data with the unique `-` is compared. Larger: whoever sends it holds the others up for longer.
MAX_COMPARED_BYTES: Final = 64 << 20

NOOP_PACKET: Final = reply(NOOP)
NO_JOB_PACKET: Final = reply(NO_JOB)


class JobTable:
    """Every job, function and peer there is, and what may happen to a job."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.functions: dict[bytes, Function] = {}
        self.jobs: dict[bytes, Job] = {}
        self.peers: dict[Peer, None] = {}
        # Nearly always one job; several where functions share a unique.
        self.by_unique: dict[bytes, tuple[Job, ...]] = {}
        self.by_data: dict[tuple[bytes, bool, bytes], Job] = {}
        self.touched: list[Peer] = []
        # Functions without jobs and workers, longest so first: they are forgotten when room is needed.
        self.idle: dict[Function, None] = {}
        self.jobs_bytes = self.names_bytes = self.abilities_bytes = 0
        self._handle_prefix = b"H:" + options.host_name + b":"
        self._last_number = 0

    # -- peers

    def add_peer(self, peer: Peer) -> None:
        """Welcome a connection."""
        self.peers[peer] = None

    def remove_peer(self, peer: Peer) -> None:
        """Forget a connection: requeue what it ran, drop what only it waited for."""
        if peer.is_gone:
            return
        peer.is_gone = True
        self.peers.pop(peer, None)
        for job in list(peer.waiting):
            self._leave(job, peer)
        woken_for = [] if peer.is_sleeping else list(peer.abilities)
        self.remove_abilities(peer)
        peer.out.clear()
        if self.options.wake_one:
            # It may have gone with a NOOP that it never answered; the jobs must not wait for the next submission.
            for function in woken_for:
                if function.n_waiting:
                    self._wake(function)

    def send(self, peer: Peer, *pieces: Data) -> None:
        """Put pieces of packets on the way to a peer; to one that is gone they are dropped."""
        if peer.is_gone:
            return
        peer.out.extend(pieces)
        if not peer.is_touched:
            peer.is_touched = True
            self.touched.append(peer)

    def send_data(self, peer: Peer, command: int, args: bytes, data: Data) -> None:
        """Put a packet that ends in data on the way to a peer."""
        head = reply_head(command, args, len(data))
        if isinstance(data, bytes):
            self.send(peer, head + data)
        else:
            self.send(peer, head, data)

    def take_touched(self) -> list[Peer]:
        """Return the peers that got output since the last call."""
        touched = self.touched
        self.touched = []
        for peer in touched:
            peer.is_touched = False
        return touched

    # -- abilities and sleep

    def function(self, name: bytes) -> Function | None:
        """Return the function of this name; a new one if there is none; None if there are too many."""
        function = self.functions.get(name)
        if function is None:
            n_bytes = len(name) + FUNCTION_BYTES
            most = self.options.stock.max_names_bytes - n_bytes
            while self.names_bytes > most:
                if not self.idle:
                    return None
                self._forget(next(iter(self.idle)))
            function = self.functions[name] = Function(name)
            self.names_bytes += n_bytes
            self.idle[function] = None
        return function

    def _forget(self, function: Function) -> None:
        del self.functions[function.name]
        del self.idle[function]
        self.names_bytes -= len(function.name) + FUNCTION_BYTES

    def _note_idle(self, function: Function) -> None:
        if not function.workers and not function.n_total:
            self.idle[function] = None

    def add_ability(self, peer: Peer, name: bytes) -> None:
        """Let a peer serve a function, before the others that it serves.

        Raises
        ------
        ProtocolError
            If it, or all peers together, serve too many.
        """
        stock, n_bytes = self.options.stock, len(name) + ABILITY_BYTES
        if len(peer.abilities) >= stock.max_abilities:
            raise ProtocolError(f"more than {stock.max_abilities} functions of one connection")
        function = self.function(name)
        if function is None or self.abilities_bytes + n_bytes > stock.max_abilities_bytes:
            raise ProtocolError("more functions than this server keeps")
        self.abilities_bytes += n_bytes
        self.idle.pop(function, None)
        function.workers[peer] = function.workers.get(peer, 0) + 1
        peer.abilities.appendleft(function)
        if peer.is_sleeping:
            function.sleepers[peer] = None
        if peer.is_waiting and function.n_waiting:
            self._wake(function)

    def remove_ability(self, peer: Peer, name: bytes) -> None:
        """Let a peer serve a function no more; its running jobs of that function are requeued."""
        function = self.functions.get(name)
        if function is None or peer not in function.workers:
            return
        rest = deque(f for f in peer.abilities if f is not function)
        self.abilities_bytes -= (len(name) + ABILITY_BYTES) * (len(peer.abilities) - len(rest))
        peer.abilities = rest
        self._forget_worker(function, peer)
        self._give_back(peer, [job for job in peer.running if job.function is function])

    def remove_abilities(self, peer: Peer) -> None:
        """Let a peer serve nothing; all that it runs is requeued."""
        for function in peer.abilities:
            self.abilities_bytes -= len(function.name) + ABILITY_BYTES
            self._forget_worker(function, peer)
        peer.abilities.clear()
        self._give_back(peer, list(peer.running))

    def sleep(self, peer: Peer) -> None:
        """Note that a peer wants a NOOP at the next job; at once if one is there.

        One whose grabs wait takes back the one that does, if it still does, and wants none.
        """
        if peer.grabs_wait:
            if peer.is_waiting:
                self.wake_up(peer)
                self.send(peer, NO_JOB_PACKET)
            return
        for function in peer.abilities:
            if function.n_waiting:
                self.wake_up(peer)
                self.send(peer, NOOP_PACKET)
                return
        self._fall_asleep(peer)

    def wait(self, peer: Peer) -> None:
        """Note that a peer is to be given the next job; none is there."""
        peer.is_waiting = True
        self._fall_asleep(peer)

    def _fall_asleep(self, peer: Peer) -> None:
        peer.is_sleeping = True
        for function in peer.abilities:
            function.sleepers[peer] = None

    def wake_up(self, peer: Peer) -> None:
        """Note that a peer waits for nothing."""
        if peer.is_sleeping:
            peer.is_sleeping = peer.is_waiting = False
            for function in peer.abilities:
                function.sleepers.pop(peer, None)

    def _forget_worker(self, function: Function, peer: Peer) -> None:
        function.workers.pop(peer, None)
        function.sleepers.pop(peer, None)
        self._note_idle(function)

    def _wake(self, function: Function) -> None:
        while function.sleepers and function.n_waiting:
            peer = self._next_sleeper(function)
            if peer.is_waiting:
                job = self.take(peer)
                assert job is not None
                self.assign(peer, job)
            else:
                self.wake_up(peer)
                self.send(peer, NOOP_PACKET)
            if self.options.wake_one:
                return

    def _next_sleeper(self, function: Function) -> Peer:
        """Return who slept longest, those first who can be given the job at once."""
        if self.options.wake_one:
            for peer in function.sleepers:
                if peer.is_waiting:
                    return peer
        return next(iter(function.sleepers))

    # -- the life of a job

    def submit(
        self,
        client: Peer,
        name: bytes,
        unique: bytes,
        data: Data,
        *,
        priority: int = NORMAL,
        background: bool = False,
    ) -> Job | None:
        """Queue a job, or join the one that has the same function and unique.

        Returns None if the queue is full.
        """
        stock, function = self.options.stock, self.function(name)
        if function is None:
            return None
        data_key = _data_key(name, data) if unique == b"-" and len(data) <= MAX_COMPARED_BYTES else None
        job = self._find_equal(function, unique, data_key)
        if job is None:
            limit = function.limits[priority]
            if limit and function.n_total >= limit:
                return None
            # However large the one job is that the server has.
            n_bytes = self.jobs_bytes + len(data)
            if len(self.jobs) >= stock.max_jobs or (n_bytes > stock.max_jobs_bytes and self.jobs):
                return None
            if len(self.by_unique.get(unique, ())) >= stock.max_namesakes:
                return None
            if not background and len(client.waiting) >= stock.max_awaited:
                return None
            job = self._new_job(function, unique, data, priority, background)
            if data_key is not None:
                job.data_key = data_key
                self.by_data[data_key] = job
            if not background:
                self._join(job, client)
            self._enqueue(job)
        elif not background:
            if len(job.clients) >= stock.max_waits:
                return None
            self._join(job, client)
        return job

    def take(self, worker: Peer) -> Job | None:
        """Give a worker its next job: the highest priority of the first function that has one.

        The function that gave goes to the end of the worker's turn.
        """
        self.wake_up(worker)
        if len(worker.running) >= self.options.stock.max_held:
            return None
        for function in worker.abilities:
            if function.n_waiting:
                break
        else:
            return None
        if len(worker.abilities) > 1:
            worker.abilities.remove(function)
            worker.abilities.append(function)
        for priority in PRIORITIES:
            if function.n_queued[priority]:
                job = self._pop(function, priority)
                job.state = JobState.RUNNING
                job.worker = worker
                function.n_running += 1
                worker.running[job] = None
                return job
        raise AssertionError("a queue counts jobs that it does not hold")

    def assign(self, worker: Peer, job: Job) -> None:
        """Send a worker the job that it has taken."""
        args = b"%b\0%b\0%b\0" % (job.handle, job.function.name, job.unique)
        self.send_data(worker, JOB_ASSIGN_UNIQ, args, job.data)

    def finish(self, job: Job) -> None:
        """Remove a job for good, wherever it is."""
        function, state = job.function, job.state
        job.state = JobState.GONE
        if state is JobState.RUNNING:
            function.n_running -= 1
            if job.worker is not None:
                job.worker.running.pop(job, None)
        elif state is JobState.QUEUED:
            function.n_queued[job.priority] -= 1
            function.n_dead[job.priority] += 1
            self._sweep(function, job.priority)
        else:
            return
        job.worker = None
        for client in job.clients:
            client.waiting.pop(job, None)
        job.clients = []
        # A dead entry of a queue must not keep its payload.
        self.jobs_bytes -= len(job.data) + JOB_BYTES
        job.data = b""
        self._unindex(job)
        self._note_idle(function)

    def fail(self, job: Job) -> None:
        """Tell the clients of a job that it failed, and remove it."""
        self._tell_failure(job)
        self.finish(job)

    def cancel(self, job: Job) -> None:
        """Tell the clients that a job failed; drop it if it is queued, let it run unheard if it runs."""
        if job.state is JobState.QUEUED:
            self.fail(job)
            return
        self._tell_failure(job)
        for client in job.clients:
            client.waiting.pop(job, None)
        job.clients = []
        job.is_cancelled = True

    def find_unique(self, unique: bytes) -> Job | None:
        """Return a job with this unique, of whatever function."""
        jobs = self.by_unique.get(unique)
        return jobs[0] if jobs else None

    def drop_function(self, name: bytes) -> bool:
        """Forget a function; False if it has jobs or workers. It must exist."""
        function = self.functions[name]
        if function.workers or function.n_total:
            return False
        self._forget(function)
        return True

    def _new_job(self, function: Function, unique: bytes, data: Data, priority: int, background: bool) -> Job:
        self._last_number += 1
        job = Job(b"%s%d" % (self._handle_prefix, self._last_number), function, unique, data, priority, background)
        self.jobs[job.handle] = job
        self.jobs_bytes += len(data) + JOB_BYTES
        self.idle.pop(function, None)
        if unique and unique != b"-":
            self.by_unique[unique] = (*self.by_unique.get(unique, ()), job)
        return job

    def _find_equal(self, function: Function, unique: bytes, data_key: tuple[bytes, bool, bytes] | None) -> Job | None:
        if data_key is not None:
            job = self.by_data.get(data_key)
            return None if job is None or job.is_cancelled else job
        for job in self.by_unique.get(unique, ()):
            if job.function is function and not job.is_cancelled:
                return job
        return None

    def _unindex(self, job: Job) -> None:
        del self.jobs[job.handle]
        if job.data_key is not None:
            # A cancelled job may have been followed by a fresh one of the same key.
            if self.by_data.get(job.data_key) is job:
                del self.by_data[job.data_key]
        elif job.unique in self.by_unique:
            rest = tuple(other for other in self.by_unique[job.unique] if other is not job)
            if rest:
                self.by_unique[job.unique] = rest
            else:
                del self.by_unique[job.unique]

    def _join(self, job: Job, client: Peer) -> None:
        job.clients.append(client)
        client.waiting[job] = None

    def _leave(self, job: Job, client: Peer) -> None:
        client.waiting.pop(job, None)
        job.clients = [other for other in job.clients if other is not client]
        # A running job goes on: its worker may ask how many clients wait, and a client may come back for it.
        if job.state is JobState.QUEUED and not job.is_wanted:
            self.finish(job)

    def _enqueue(self, job: Job) -> None:
        function = job.function
        job.state = JobState.QUEUED
        job.worker = None
        function.queues[job.priority].append(job)
        function.n_queued[job.priority] += 1
        if function.sleepers:
            self._wake(function)

    def _pop(self, function: Function, priority: int) -> Job:
        queue = function.queues[priority]
        while True:
            job = queue.popleft()
            if job.state is JobState.QUEUED:
                function.n_queued[priority] -= 1
                return job
            function.n_dead[priority] -= 1

    def _sweep(self, function: Function, priority: int) -> None:
        queue, n_dead = function.queues[priority], function.n_dead[priority]
        if n_dead < MIN_DEAD_TO_SWEEP or 2 * n_dead < len(queue):
            return
        alive = [job for job in queue if job.state is JobState.QUEUED]
        queue.clear()
        queue.extend(alive)
        function.n_dead[priority] = 0

    def _give_back(self, worker: Peer, jobs: list[Job]) -> None:
        """Requeue jobs of a worker, the last one first, as gearmand does."""
        limit = self.options.job_retries
        for job in reversed(jobs):
            job.retries += 1
            if not job.is_wanted or (limit and job.retries >= limit):
                self.fail(job)
                continue
            del worker.running[job]
            job.function.n_running -= 1
            self._enqueue(job)

    def _tell_failure(self, job: Job) -> None:
        for client in job.clients:
            self.send(client, reply(WORK_FAIL, job.handle))


def _data_key(name: bytes, data: Data) -> tuple[bytes, bool, bytes]:
    """Return what two jobs with the unique `-` have in common if they are the same."""
    if isinstance(data, bytes):
        return name, False, data
    # Here, because hashlib costs start-up time and large data with this unique is rare.
    from hashlib import sha256

    digest = sha256()
    for view in data.views:
        digest.update(view)
    return name, True, digest.digest()
