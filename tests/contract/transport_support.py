"""What the transport's contract tests share: a loop with a deadline, a scripted server, a counting proxy."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter

import pytest

from gearmap.transport.client import ServerSession, SessionState
from gearmap.transport.events import JobAssigned, JobRequest
from gearmap.transport.poller import Poller
from gearmap.transport.worker import WorkerLinks

DEADLINE = 10.0
NAMES = {
    7: "SUBMIT",
    4: "PRE_SLEEP",
    6: "NOOP",
    30: "GRAB",
    10: "NO_JOB",
    31: "ASSIGN",
    13: "COMPLETE",
    3: "RESET",
}


def free_port(host="127.0.0.1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Server:
    """A job server of the test's own."""

    def __init__(self, process):
        self.process = process
        self.host, self.port, self.kind = process.host, process.port, process.kind
        self.address = (process.host, process.port)

    def kill(self):
        self.process.kill()

    def freeze(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self):
        os.kill(self.process.pid, signal.SIGCONT)


@pytest.fixture
def start_server(own_job_server):
    """A function that starts a job server of each kind for this test alone."""
    servers = []

    def start(**options):
        servers.append(Server(own_job_server(**options)))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.alive:
            server.thaw()


class Loop:
    """Drives sessions and workers, and collects their events."""

    def __init__(self):
        self.poller = Poller()
        self.sessions = {}
        self.workers = {}

    def session(self, address, **options):
        session = ServerSession(address, **options)
        self.sessions[session] = []
        session.start(time.monotonic())
        self.poller.add(session)
        return session

    def ready_session(self, address, **options):
        session = self.session(address, **options)
        self.until(lambda: session.state is SessionState.READY)
        self.sessions[session].clear()
        return session

    def worker(self, addresses, functions=("f",), client_id="w", *, on_job=None, **options):
        worker = WorkerLinks(addresses, functions, client_id, **options)
        self.workers[worker] = ([], on_job)
        worker.start(time.monotonic())
        for link in worker.links:
            self.poller.add(link)
        return worker

    def events(self, thing):
        return self.sessions[thing] if thing in self.sessions else self.workers[thing][0]

    def step(self, timeout=0.02):
        self.poller.dispatch(timeout)
        now = time.monotonic()
        for session, events in self.sessions.items():
            session.tick(now)
            events += session.take_events()
        for worker, (events, on_job) in self.workers.items():
            worker.tick(now)
            for event in worker.take_events():
                events.append(event)
                if isinstance(event, JobAssigned) and on_job is not None:
                    on_job(worker, event.job)

    def until(self, condition, timeout=DEADLINE):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"nothing came: {self.sessions} {self.workers}"
            self.step()

    def until_event(self, thing, kind, count=1, timeout=DEADLINE):
        """Run until `count` events of this kind have come, and return them."""
        self.until(lambda: len(self.of(thing, kind)) >= count, timeout)
        return self.of(thing, kind)

    def of(self, thing, kind):
        return [event for event in self.events(thing) if isinstance(event, kind)]

    def for_a_while(self, seconds):
        """Run on, to see that something does not happen."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()

    def close(self):
        for session in self.sessions:
            session.close()
        for worker in self.workers:
            worker.close()
        self.poller.close()


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def other_loop():
    """One that can stand still while the first goes on."""
    loop = Loop()
    yield loop
    loop.close()


def echo(worker, job):
    worker.complete(job, job.data)


def request(token, body=b"x", *, function="f", unique=None, **options):
    return JobRequest(token, function, f"unique-{token}" if unique is None else unique, body, **options)


def packet(command, *arguments):
    body = b"\0".join(arguments)
    return struct.pack("!4sII", b"\0RES", command, len(body)) + body


class FakeServer:
    """A listening socket whose answers the test writes."""

    def __init__(self, host="127.0.0.1", backlog=16):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.socket(family)
        self.listener.bind((host, 0))
        self.listener.listen(backlog)
        self.listener.settimeout(DEADLINE)
        self.address = (host, self.listener.getsockname()[1])
        self.peer = None

    def accept(self):
        self.peer, _ = self.listener.accept()
        self.peer.settimeout(DEADLINE)

    def send(self, data):
        self.peer.sendall(data)

    def receive_until(self, end):
        received = b""
        while end not in received:
            more = self.peer.recv(65536)
            assert more, f"closed after {received!r}"
            received += more
        return received

    def greet(self, loop):
        """Accept, read the greeting and answer it."""
        loop.until(lambda: select.select([self.listener], [], [], 0)[0])
        self.accept()
        loop.until(lambda: select.select([self.peer], [], [], 0)[0])
        self.receive_until(b"gearmap")
        self.send(b"OK fake\n" + packet(17, b"gearmap"))

    def close(self):
        self.listener.close()
        if self.peer is not None:
            self.peer.close()


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.close()


class CountingProxy(threading.Thread):
    """Passes everything on to a job server and counts the packets of both directions by name."""

    def __init__(self, target):
        super().__init__(daemon=True)
        self.target = target
        self.counts = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop_reader, self._stop_writer = socket.socketpair()
        self.address = self._listener.getsockname()
        self.sends = 0

    def run(self):
        pairs, buffers = {}, {}
        while True:
            ready, _, _ = select.select([self._listener, self._stop_reader, *pairs], [], [])
            if self._stop_reader in ready:
                break
            for each in ready:
                if each is self._listener:
                    near, _ = each.accept()
                    far = socket.create_connection(self.target)
                    for end in (near, far):
                        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        buffers[end] = bytearray()
                    pairs[near], pairs[far] = far, near
                elif each in pairs:
                    try:
                        data = each.recv(65536)
                    except ConnectionResetError:  # closed with an answer on its way
                        data = b""
                    if data:
                        self._count(buffers[each], data)
                        pairs[each].sendall(data)
                    else:
                        other = pairs.pop(each)
                        pairs.pop(other).close()
                        other.close()
        for each in pairs:
            each.close()

    def _count(self, buffer, data):
        buffer += data
        self.sends += 1
        while buffer:
            if buffer[0]:
                end = buffer.find(b"\n") + 1
                if not end:
                    return
            else:
                if len(buffer) < 12:
                    return
                _, command, size = struct.unpack_from("!4sII", buffer)
                end = 12 + size
                if len(buffer) < end:
                    return
                self.counts[NAMES.get(command, command)] += 1
            del buffer[:end]

    def close(self):
        self._stop_writer.send(b"x")
        self.join(DEADLINE)
        for each in (self._listener, self._stop_reader, self._stop_writer):
            each.close()


@pytest.fixture
def counting_proxy():
    proxies = []

    def start(target):
        proxies.append(CountingProxy(target))
        proxies[-1].start()
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()
