"""A question of another thread that the driver answers later.

Law of the file: who asks waits; the driver does not. It answers, or its end does.
"""

from __future__ import annotations

import threading

from gearmap.errors import ClusterBroken, GearmapError
from gearmap.runtime.driver import Driver

__all__ = ["Question"]

# Who waits makes sure this often that the driver is still there to answer (seconds). It tells others when it ends, so
# raised: who asks too late waits longer in vain; lowered: more work for nothing.
STEP = 0.5


class Question:
    """Somebody waits to know whether there is a job server."""

    def __init__(self) -> None:
        self._answered = threading.Event()
        self._error: GearmapError | None = None

    def answer(self, error: GearmapError | None) -> None:
        """Say that there is one, or why there is none; driver thread only."""
        self._error = error
        self._answered.set()

    def wait(self, driver: Driver) -> None:
        """Return when there is one.

        Raises
        ------
        ServerUnavailable
            If no job server answered within its connect timeout.
        ClusterBroken
            If the driver has ended.
        """
        while not self._answered.is_set():
            if not driver.is_alive:
                raise ClusterBroken("the client was closed")
            self._answered.wait(STEP)
        if self._error is not None:
            raise self._error
