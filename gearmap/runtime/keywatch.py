"""Notices that a key file has changed, while a node runs.

Rule 1: it looks from a thread of its own: a key file may be in a home folder on another machine, and when that does not
answer the node's jobs must go on.
Rule 2: a file that is not fit changes nothing. It is told of once, and looked at again when it has changed.

Rejected: SIGHUP, which somebody must send on each of a hundred hosts, and which ends a node whose terminal has gone;
inotify, which does not see what other machines do to a folder on the network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from gearmap.errors import ConfigurationError
from gearmap.keyfile import Keys, load_keys
from gearmap.transport.poller import Waker

__all__ = ["KeyWatch"]

# How often the file is looked at. Raised: less to do; lowered: a changed file counts sooner.
LOOK_SECONDS = 2.0


class KeyWatch(Waker):
    """A pollable that hands over what a key file holds, each time that it has changed.

    Parameters
    ----------
    take
        Given the keys, in the thread that polls.
    tell
        Given what is wrong with the file, in the same thread.
    """

    def __init__(self, path: Path, take: Callable[[Keys], object], tell: Callable[[str], object]) -> None:
        super().__init__()
        self._path = path
        self._take = take
        self._tell = tell
        self._found: list[Keys | str] = []
        self._stamp: object = object()  # of the file that was looked at last: none yet
        self._thread = threading.Thread(target=self._main, name="gearmap-keys", daemon=True)

    def start(self) -> None:
        """Begin to look; the first look hands over what there is."""
        self._thread.start()

    def on_readable(self) -> None:
        super().on_readable()
        while self._found:
            found = self._found.pop(0)
            if isinstance(found, Keys):
                self._take(found)
            else:
                self._tell(found)

    def _main(self) -> None:
        pause = threading.Event()
        while True:
            self.look()
            pause.wait(LOOK_SECONDS)

    def look(self) -> None:
        """Look at the file once."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # taken before the file is read: what changes meanwhile is seen by the next look
        try:
            self._found.append(load_keys(self._path, "the key in use"))
        except ConfigurationError as error:
            self._found.append(f"{error}; until then the keys stay as they are")
        self.wake()


def _stamp(path: Path) -> object:
    """Return what differs once a file was changed, replaced, or given other rights."""
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
