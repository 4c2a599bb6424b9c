"""One selector for one thread: who may be read, who may be written, and a way to end the wait from outside.

Law of the file: nothing here knows what travels over the file descriptors. One Poller belongs to one thread; only
`Waker.wake` may be called from another.
"""

from __future__ import annotations

import math
import select
import selectors
import socket
from collections.abc import Callable
from typing import Protocol

__all__ = ["Pollable", "Poller", "Waker"]

_READ = 1
_WRITE = 4
_MAX_EVENTS = 256
# More than threads can leave there while one of them is woken up.
_WAKE_BYTES = 4096


class _Selector:
    """What `select.epoll` does, on systems without it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, mask: int) -> None:
        self._selector.register(fd, self._events(mask))

    def modify(self, fd: int, mask: int) -> None:
        self._selector.modify(fd, self._events(mask))

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(self, timeout: float | None, max_events: int) -> list[tuple[int, int]]:
        ready = self._selector.select(None if timeout is None or timeout < 0 else timeout)
        return [
            (
                key.fd,
                (_READ if events & selectors.EVENT_READ else 0) | (_WRITE if events & selectors.EVENT_WRITE else 0),
            )
            for key, events in ready[:max_events]
        ]

    def close(self) -> None:
        self._selector.close()

    @staticmethod
    def _events(mask: int) -> int:
        # It refuses to watch for nothing; who wants neither is read, which is slower or fuller and not wrong.
        wanted = (selectors.EVENT_READ if mask & _READ else 0) | (selectors.EVENT_WRITE if mask & _WRITE else 0)
        return wanted or selectors.EVENT_READ


class Pollable(Protocol):
    """What a Poller watches.

    A pollable without a file descriptor at the moment answers `fileno() == -1`. One that replaces its file
    descriptor while it is registered counts up an attribute `epoch`: the system gives the lowest free number
    again, so the number alone does not show that the socket behind it is another. One that does not always want to
    be read has an attribute `wants_read`; `on_readable` is called all the same when the other side has gone.
    """

    def fileno(self) -> int: ...

    @property
    def wants_write(self) -> bool: ...

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...


class _Entry:
    __slots__ = ("epoch", "events", "fd", "reports")

    def __init__(self) -> None:
        self.fd = -1
        self.events = 0
        self.epoch = 0
        # Whether the pollable itself says when it has changed.
        self.reports = False


class Poller:
    """Waits for pollables; for reading unless they do not want it, for writing only while they do.

    Notes
    -----
    After a pollable was touched from outside its callbacks (a submission, a tick), call `update` for it;
    after its callbacks `dispatch` does that itself. `update` costs no system call when nothing changed.
    A pollable with a method `watched_by(callback)` need not be updated: it calls back when it has changed.
    """

    def __init__(self) -> None:
        # Not `selectors`: its layer costs as much as the system call, and this is on the way of every job.
        self._selector = select.epoll() if hasattr(select, "epoll") else _Selector()
        self._fds: dict[int, Pollable] = {}
        self._entries: dict[Pollable, _Entry] = {}
        self._changed: set[Pollable] = set()

    def __contains__(self, pollable: Pollable) -> bool:
        return pollable in self._entries

    def add(self, pollable: Pollable) -> None:
        """Begin to watch; adding twice is an update."""
        if pollable not in self._entries:
            self._entries[pollable] = entry = _Entry()
            watched_by = getattr(pollable, "watched_by", None)
            if watched_by is not None:
                entry.reports = True
                watched_by(self._changed.add)
        self.update(pollable)

    def remove(self, pollable: Pollable) -> None:
        """Stop watching; may be called after the pollable was closed, and for one that was never added."""
        entry = self._entries.pop(pollable, None)
        if entry is not None:
            self._forget(pollable, entry)

    def update(self, pollable: Pollable) -> None:
        """Take over the pollable's present file descriptor and interest; unknown pollables are ignored."""
        entry = self._entries.get(pollable)
        if entry is None:
            return
        fd = pollable.fileno()
        epoch = getattr(pollable, "epoch", 0)
        events = _READ if getattr(pollable, "wants_read", True) else 0
        if pollable.wants_write:
            events |= _WRITE
        if fd == entry.fd and epoch == entry.epoch:
            if fd >= 0 and events != entry.events:
                self._selector.modify(fd, events)
                entry.events = events
            return
        self._forget(pollable, entry)
        if fd >= 0:
            self._take_over(fd, events, pollable)
        entry.fd, entry.epoch, entry.events = fd, epoch, events

    def poll(self, timeout: float | None) -> list[tuple[Pollable, bool, bool]]:
        """Wait at most `timeout` seconds (None: for ever) and name who is ready, as (pollable, readable, writable)."""
        return [
            (self._fds[fd], bool(mask & ~_WRITE), bool(mask & ~_READ))
            for fd, mask in self._wait(timeout)
            if fd in self._fds
        ]

    def dispatch(self, timeout: float | None) -> list[Pollable]:
        """Wait like `poll`, run the callbacks of who is ready, and return who was."""
        waited = self._wait(timeout)
        fds = self._fds
        if len(waited) == 1:
            # Nearly always so when one thing happens after another, and then no callback came before this one.
            ((fd, mask),) = waited
            only = fds.get(fd)
            if only is None:
                return []
            if mask == _READ and self._entries[only].reports:
                only.on_readable()
            else:
                self._call(fd, mask, only)
            return [only]
        ready = [(fd, mask, fds[fd]) for fd, mask in waited if fd in fds]
        for fd, mask, pollable in ready:
            self._call(fd, mask, pollable)
        return [pollable for _, _, pollable in ready]

    def _call(self, fd: int, mask: int, pollable: Pollable) -> None:
        """Run the callbacks of one that is ready."""
        entries = self._entries
        # A callback may have removed a later pollable of the same round, or replaced its socket.
        entry = entries.get(pollable)
        if entry is None or entry.fd != fd:
            return
        if mask == _READ:
            pollable.on_readable()
        else:
            # An error or a hang-up is for both: whoever looks first finds out.
            if mask & ~_WRITE:
                pollable.on_readable()
            if mask & ~_READ and entry.events & _WRITE and entries.get(pollable) is entry and entry.fd == fd:
                pollable.on_writable()
        if not entry.reports:
            self.update(pollable)

    def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
        if self._changed:
            self._update_changed()
        # Rounded up to whole milliseconds, or a wait for less than one would be a busy loop.
        wait = -1.0 if timeout is None else 0.0 if timeout <= 0 else math.ceil(timeout * 1000) / 1000
        return self._selector.poll(wait, _MAX_EVENTS)

    def close(self) -> None:
        """Let go of the selector; the pollables stay open."""
        self._entries.clear()
        self._fds.clear()
        self._changed.clear()
        self._selector.close()

    def _update_changed(self) -> None:
        while self._changed:
            self.update(self._changed.pop())

    def _take_over(self, fd: int, events: int, pollable: Pollable) -> None:
        """Register `fd`, even if a closed pollable that was never removed still stands under this number."""
        stale = self._fds.get(fd)
        if stale is not None:
            self._forget(stale, self._entries[stale])
        self._selector.register(fd, events)
        self._fds[fd] = pollable

    def _forget(self, pollable: Pollable, entry: _Entry) -> None:
        if self._fds.get(entry.fd) is pollable:
            del self._fds[entry.fd]
            try:
                self._selector.unregister(entry.fd)
            except (OSError, KeyError, ValueError):
                pass  # closed already: the system has forgotten it by itself
        entry.fd = -1


class Waker:
    """Ends a poll from any thread, and from a signal handler. Many calls of `wake` before the poll are mostly one.

    There is no lock: the woken thread would run into it while the waking one is still on its way out of the system
    call. What is announced must be in its place before `wake`. Who finds `_is_pending` set sends nothing; that is
    right because it is unset before anything announced is looked at. A byte too many is only a poll too many.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._is_pending = False

    wants_write = False

    def fileno(self) -> int:
        return self._reader.fileno()

    def watched_by(self, report_change: Callable[[Waker], object]) -> None:
        """Its file descriptor stays, and it never wants to write."""

    def wake(self) -> None:
        """End the present poll, or the next one if there is none."""
        if self._is_pending:
            return
        self._is_pending = True
        try:
            self._writer.send(b"\0")
        except OSError:
            pass  # full, so the poll ends anyway; or closed

    def on_readable(self) -> None:
        try:
            self._reader.recv(_WAKE_BYTES)
        except BlockingIOError:
            pass
        self._is_pending = False

    def on_writable(self) -> None:
        """Never wanted."""

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
