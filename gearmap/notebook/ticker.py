"""One thread that moves everything that is live in a notebook.

Law of the file: what comes between two ticks is shown once. The thread ends when nothing is live any more.
"""

from __future__ import annotations

import threading
from typing import Protocol

__all__ = ["TICK_SECONDS", "Live", "Ticker"]

# Raised: fewer messages; lowered: smoother. Browsers drain some hundreds of updates a second, of all cells together,
# and whatever waits behind them (a click on Cancel, too) waits.
TICK_SECONDS = 0.2


class Live(Protocol):
    """Something that is live."""

    def tick(self) -> None:
        """Show what is new; must not raise."""


class Ticker:
    """Calls `tick` of what was added, until it is removed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: list[Live] = []
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def add(self, live: Live) -> None:
        """Have it called from now on."""
        with self._lock:
            self._live.append(live)
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._run, name="gearmap-ticker", daemon=True)
                self._thread.start()

    def remove(self, live: Live) -> None:
        """Have it called no more, but for a call that has begun."""
        with self._lock:
            if live in self._live:
                self._live.remove(live)
            if not self._live:
                self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(TICK_SECONDS)
            with self._lock:
                self._wake.clear()
                if not self._live:
                    self._thread = None
                    return
                live = list(self._live)
            for each in live:
                each.tick()
