"""The one wait of the server's process: file descriptors, signals, a regular look at the clock.

What lives here: who is called when. What must not: what travels over the file descriptors.

Rule 1: level-triggered: a callback need not read or write everything, it is called again.
Rule 2: a callback may watch and forget any file descriptor, its own too, and must not raise.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["READ", "WRITE", "Loop"]

READ: Final = 1
WRITE: Final = 4

_MAX_EVENTS: Final = 256

OnEvents = Callable[[int], None]


class _Poll:
    """What `select.epoll` does, on systems without it."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float, max_events: int) -> list[tuple[int, int]]:
        return self._poll.poll(timeout * 1000)[:max_events]

    def close(self) -> None:
        pass


class Loop:
    """Waits for file descriptors and calls those who watch them.

    Attributes
    ----------
    now
        The time (monotonic) at which the wait ended whose events are handled.
    """

    def __init__(self) -> None:
        # Neither asyncio nor `selectors`: what they add to each event costs as much as the state machine.
        self._poll = select.epoll() if hasattr(select, "epoll") else _Poll()
        self._callbacks: dict[int, OnEvents] = {}
        self._later: deque[Callable[[], None]] = deque()
        self._is_stopped = False
        self.now = time.monotonic()

    def watch(self, fd: int, mask: int, on_events: OnEvents) -> None:
        """Call `on_events` whenever one of `mask` (READ, WRITE, or both) is possible, or the other end has gone.

        Raises
        ------
        PermissionError
            If the system cannot wait for such a file.
        """
        if fd in self._callbacks:
            self._poll.modify(fd, mask)
        else:
            self._poll.register(fd, mask)
        self._callbacks[fd] = on_events

    def forget(self, fd: int) -> None:
        """Watch a file descriptor no more; it is still open, or was never watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def later(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, after those whose events are there already."""
        self._later.append(callback)

    def stop(self) -> None:
        """Let `run` return."""
        self._is_stopped = True

    def run(self, tick: Callable[[float], None], *, delay: float) -> None:
        """Wait and call until `stop`; `tick` gets the time (monotonic) about every `delay` seconds."""
        callbacks, poll = self._callbacks, self._poll.poll
        next_tick = time.monotonic() + delay
        while not self._is_stopped:
            wait = 0.0 if self._later else max(0.0, next_tick - time.monotonic())
            ready = poll(wait, _MAX_EVENTS)
            self.now = time.monotonic()
            for fd, events in ready:
                on_events = callbacks.get(fd)
                # Whoever was called before may have closed this one.
                if on_events is not None:
                    on_events(events)
            for _ in range(len(self._later)):
                self._later.popleft()()
            if self.now >= next_tick:
                next_tick = self.now + delay
                tick(self.now)

    @contextmanager
    def stopped_by(self, *signals: int) -> Iterator[None]:
        """Stop at any of these signals; their old handlers come back at the end."""
        reader, writer = os.pipe()
        # The pipe ends the wait, which the system goes on with after a signal.
        os.set_blocking(writer, False)
        self.watch(reader, READ, lambda events: self.stop())
        handlers = {number: signal.signal(number, lambda *_: _poke(writer)) for number in signals}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.forget(reader)
            os.close(reader)
            os.close(writer)

    def close(self) -> None:
        """Give the system's resources back."""
        self._poll.close()


def _poke(writer: int) -> None:
    try:
        os.write(writer, b"\0")
    except BlockingIOError:
        pass  # full of pokes that nobody has read yet
