"""Those who attack a job server, for `benchmarks.siege`: each a function that goes on for some seconds.

    python -m benchmarks.attackers ATTACK HOST PORT SECONDS

Prints "ready" when the attack is in full swing, and ends by itself. Bounded in connections, in bytes kept, and in time;
of the lowest priority, so that the server is what is measured. For servers of one's own on this machine only.
"""

from __future__ import annotations

import os
import random
import resource
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count

__all__ = ["ATTACKS"]

Address = tuple[str, int]

_CAN_DO, _PRE_SLEEP, _SUBMIT_JOB, _GRAB_JOB, _WORK_COMPLETE, _WORK_DATA = 1, 4, 7, 9, 13, 28
_GET_STATUS, _ECHO_REQ, _SUBMIT_JOB_BG, _SET_CLIENT_ID = 15, 16, 18, 22
_MIB = 1 << 20


def _request(command: int, *args: bytes) -> bytes:
    body = b"\0".join(args)
    return b"\0REQ" + struct.pack(">II", command, len(body)) + body


def _connect(address: Address) -> socket.socket:
    """Connect; what the server does with it is its affair."""
    connection = socket.create_connection(address, 10.0)
    connection.setblocking(False)
    return connection


def _connections(address: Address, number: int) -> list[socket.socket]:
    opened = []
    for _ in range(number):
        try:
            opened.append(_connect(address))
        except OSError:
            break  # refused: the server has enough
    return opened


def _ready() -> None:
    print("ready", flush=True)


def _until(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def _rest(seconds: float) -> None:
    """Keep what is open, and do nothing."""
    _ready()
    time.sleep(seconds)


def _pump(address: Address, number: int, data: bytes, seconds: float, *, is_read: bool = True) -> None:
    """Send `data` again and again on so many connections, as fast as it is taken; connect anew when one is closed."""
    selector = selectors.DefaultSelector()
    begun = memoryview(data)
    events = selectors.EVENT_WRITE | (selectors.EVENT_READ if is_read else 0)
    for connection in _connections(address, number):
        selector.register(connection, events, begun)
    _ready()
    for _ in _until(seconds):
        for key, mask in selector.select(0.1):
            connection, rest = key.fileobj, key.data
            assert isinstance(connection, socket.socket)
            try:
                if mask & selectors.EVENT_READ and not connection.recv(_MIB):
                    raise ConnectionResetError
                if mask & selectors.EVENT_WRITE:
                    rest = rest[connection.send(rest[:_MIB]) :]
                    selector.modify(connection, events, rest or begun)
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(connection)
                connection.close()
                for fresh in _connections(address, 1):
                    selector.register(fresh, events, begun)


def idle(address: Address, seconds: float) -> None:
    """5,000 connections that say nothing."""
    opened = _connections(address, 5000)
    _rest(seconds)
    del opened


def churn(address: Address, seconds: float) -> None:
    """Connections that are opened, used for one packet, and reset, one after the other."""
    _ready()
    for _ in _until(seconds):
        for connection in _connections(address, 20):
            connection.send(_request(_CAN_DO, b"f") + _request(_ECHO_REQ, b"x"))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


def half_open(address: Address, seconds: float) -> None:
    """2,000 peers that began a packet, and closed their sending side or stopped."""
    opened = _connections(address, 2000)
    for number, connection in enumerate(opened):
        connection.send(_request(_ECHO_REQ, b"hello")[: 1 + number % 16])
        if number % 2:
            connection.shutdown(socket.SHUT_WR)
    _rest(seconds)


def slow_writers(address: Address, seconds: float) -> None:
    """1,000 connections that send a byte of a packet each 100 ms."""
    opened = _connections(address, 1000)
    packet = _request(_ECHO_REQ, bytes(10_000))
    _ready()
    began = time.monotonic()
    for number, _ in enumerate(_until(seconds)):
        for connection in opened:
            try:
                connection.send(packet[number : number + 1])
            except OSError:
                pass  # closed
        time.sleep(max(0.0, began + 0.1 * (number + 1) - time.monotonic()))


def huge_headers(address: Address, seconds: float) -> None:
    """Headers that announce 4 GB, and just what is accepted, each with a few bytes; 1,000 connections, renewed."""
    packets = [
        b"\0REQ" + struct.pack(">II", _SUBMIT_JOB, size) + b"f\0u\0begun" for size in (2**32 - 1, 2**31 - 1, 2**31)
    ]
    opened = _connections(address, 1000)
    for number, connection in enumerate(opened):
        connection.send(packets[number % 3])
    _ready()
    for _ in _until(seconds):
        for packet in packets:
            for connection in _connections(address, 10):
                connection.send(packet)
                opened.append(connection)
        for connection in opened[:-1000]:
            connection.close()
        del opened[:-1000]


def small_promises(address: Address, seconds: float) -> None:
    """4,000 connections that announce 1 MiB each and send 100 bytes."""
    opened = _connections(address, 4000)
    for connection in opened:
        connection.send(b"\0REQ" + struct.pack(">II", _SUBMIT_JOB, _MIB) + bytes(100))
    _rest(seconds)


def large_halves(address: Address, seconds: float) -> None:
    """As much as is taken, up to 6 GB, of bodies that never end: 60 connections with 100 MB of 2 GB each."""
    opened = _connections(address, 60)
    block = bytes(4 * _MIB)
    for connection in opened:
        connection.setblocking(True)
        connection.settimeout(2.0)
        try:
            connection.sendall(b"\0REQ" + struct.pack(">II", _SUBMIT_JOB, 2**31 - 1))
            for _ in range(25):
                connection.sendall(block)
        except OSError:
            pass  # closed, or not taken
    _rest(seconds)


def never_read(address: Address, seconds: float) -> None:
    """200 connections that ask to be told their own bytes, and never read."""
    _pump(address, 200, _request(_ECHO_REQ, bytes(60_000)) * 16, seconds, is_read=False)


def unread_results(address: Address, seconds: float) -> None:
    """100 clients that never read, fed by a worker of their own."""
    worker = _connect(address)
    worker.setblocking(True)
    worker.settimeout(2.0)
    clients = _connections(address, 100)
    handles = []
    for client in clients:
        client.setblocking(True)
        client.sendall(_request(_SUBMIT_JOB, b"evil", b"", b"x"))
        handles.append(client.recv(4096)[12:])
    worker.sendall(_request(_CAN_DO, b"evil") + _request(_GRAB_JOB) * len(handles))
    _ready()
    part = bytes(_MIB)
    for _ in _until(seconds):
        for handle in handles:
            try:
                worker.sendall(_request(_WORK_DATA, handle, part))
            except OSError:
                time.sleep(0.1)  # held back


def echo_flood(address: Address, seconds: float) -> None:
    """50 connections that send small packets without end, and read the answers."""
    _pump(address, 50, _request(_ECHO_REQ, b"x") * 5000, seconds)


def submit_flood(address: Address, seconds: float) -> None:
    """10 connections that queue background jobs without end, of many functions."""
    packets = b"".join(_request(_SUBMIT_JOB_BG, b"evil-%d" % (number % 50), b"", b"x" * 100) for number in range(5000))
    _pump(address, 10, packets, seconds)


def large_jobs(address: Address, seconds: float) -> None:
    """4 connections that queue background jobs of 8 MB without end."""
    _pump(address, 4, _request(_SUBMIT_JOB_BG, b"evil", b"", bytes(8 * _MIB)), seconds)


def joined_job(address: Address, seconds: float) -> None:
    """A client that joins its own job 20,000 times, and a worker that sends it 60 kB each time, not read."""
    client, worker = _connect(address), _connect(address)
    for peer in (client, worker):
        peer.setblocking(True)
        peer.settimeout(2.0)
    client.sendall(_request(_SUBMIT_JOB, b"evil", b"joined", b"x"))
    handle = client.recv(4096)[12:]
    worker.sendall(_request(_CAN_DO, b"evil") + _request(_GRAB_JOB))
    for _ in range(200):
        try:
            client.sendall(_request(_SUBMIT_JOB, b"evil", b"joined", b"x") * 100)
            client.recv(_MIB)
        except OSError:
            break
    _ready()
    for _ in _until(seconds):
        try:
            worker.sendall(_request(_WORK_DATA, handle, bytes(60_000)))
        except OSError:
            time.sleep(0.1)


def many_functions(address: Address, seconds: float) -> None:
    """10 connections that name new functions without end, of 8 kB each."""
    numbers = count()
    selector = selectors.DefaultSelector()
    for connection in _connections(address, 10):
        selector.register(connection, selectors.EVENT_WRITE, memoryview(b""))
    _ready()
    for _ in _until(seconds):
        for key, _ in selector.select(0.1):
            connection, rest = key.fileobj, key.data
            assert isinstance(connection, socket.socket)
            if not rest:
                names = (b"%08d" % next(numbers) + bytes([65]) * 8000 for _ in range(20))
                rest = memoryview(
                    b"".join(
                        b"create function " + name + b"\n" if number % 2 else _request(_SUBMIT_JOB_BG, name, b"", b"")
                        for number, name in enumerate(names)
                    )
                )
            try:
                selector.modify(connection, selectors.EVENT_WRITE, rest[connection.send(rest) :])
                connection.recv(_MIB)
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(connection)
                for fresh in _connections(address, 1):
                    selector.register(fresh, selectors.EVENT_WRITE, memoryview(b""))


def many_abilities(address: Address, seconds: float) -> None:
    """20 workers that register 20,000 functions each, and grab without end."""
    opened = _connections(address, 20)
    for connection in opened:
        connection.setblocking(True)
        connection.settimeout(5.0)
        try:
            connection.sendall(b"".join(_request(_CAN_DO, b"f%d" % number) for number in range(20_000)))
        except OSError:
            pass
    _pump(address, 1, _request(_PRE_SLEEP), 0.0)
    for _ in _until(seconds):
        for connection in opened:
            try:
                connection.sendall((_request(_GRAB_JOB) + _request(_PRE_SLEEP)) * 20)
                connection.recv(_MIB)
            except OSError:
                pass


def listings(address: Address, seconds: float) -> None:
    """20 administrators that ask for listings without end, on a server with 200,000 jobs."""
    for _ in range(40):
        connection = _connect(address)
        connection.setblocking(True)
        with connection:
            connection.sendall(_request(_SUBMIT_JOB_BG, b"evil", b"", b"") * 5000)
            received = 0
            while received < 5000 * 17:
                received += len(connection.recv(_MIB))
    _pump(address, 20, b"show jobs\nstatus\nworkers\nshow unique jobs\n" * 100, seconds)


def endless_line(address: Address, seconds: float) -> None:
    """20 connections that send a line that never ends, and lines of nonsense."""
    _pump(address, 20, b"x" * 8000 + b"\n" + b"y" * 100_000, seconds)


def long_names(address: Address, seconds: float) -> None:
    """20 connections that send huge functions, uniques, handles and client ids."""
    large = b"n" * (4 * _MIB)
    packets = [
        _request(_SUBMIT_JOB, large, b"u", b"data"),
        _request(_SUBMIT_JOB, b"f", large, b"data"),
        _request(_CAN_DO, large),
        _request(_SET_CLIENT_ID, large),
        _request(_GET_STATUS, large),
        _request(_WORK_COMPLETE, large, b"data"),
    ]
    numbers = count()
    _pump(address, 1, _request(_ECHO_REQ, b"x"), 0.0)
    for _ in _until(seconds):
        for connection in _connections(address, 20):
            connection.setblocking(True)
            connection.settimeout(2.0)
            try:
                connection.sendall(packets[next(numbers) % len(packets)])
            except OSError:
                pass
            connection.close()


def mutated(address: Address, seconds: float) -> None:
    """Random bytes, and real conversations with bytes changed; its seed is the same each time."""
    chance = random.Random(7)
    talk = b"".join(
        _request(command, *args)
        for command, args in (
            (_CAN_DO, (b"evil",)),
            (_SUBMIT_JOB, (b"evil", b"u", b"data" * 20)),
            (_SUBMIT_JOB_BG, (b"evil", b"", b"data")),
            (_GRAB_JOB, ()),
            (_WORK_DATA, (b"H:evil:1", b"x" * 50)),
            (_WORK_COMPLETE, (b"H:evil:1", b"result")),
            (_GET_STATUS, (b"H:evil:1",)),
            (_PRE_SLEEP, ()),
        )
    )
    _ready()
    for _ in _until(seconds):
        for connection in _connections(address, 10):
            data = bytearray(talk * 4)
            for _ in range(chance.randrange(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            try:
                connection.send(chance.randbytes(500) if chance.random() < 0.3 else bytes(data))
                connection.recv(4096)
            except OSError:
                pass
            connection.close()


ATTACKS: dict[str, Callable[[Address, float], None]] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        idle,
        churn,
        half_open,
        slow_writers,
        huge_headers,
        small_promises,
        large_halves,
        never_read,
        unread_results,
        echo_flood,
        submit_flood,
        large_jobs,
        joined_job,
        many_functions,
        many_abilities,
        listings,
        endless_line,
        long_names,
        mutated,
    )
}


def main(arguments: Sequence[str]) -> int:
    """Run one attack against a server on this machine."""
    name, host, port, seconds = arguments
    if host not in ("127.0.0.1", "::1"):
        print("attackers are for servers on this machine", file=sys.stderr)
        return 2
    os.nice(19)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ATTACKS[name]((host, int(port)), float(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
