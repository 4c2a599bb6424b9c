"""Which children of a node are being started, and when there is no hope for more.

Rule 1: what ends all children that are starting at once, as the end of the process that starts them does, is one
failure. Only a child that was started after a failure can tell of another.
Rule 2: after a failure one child is tried at a time, until one is ready: a node that can start none soon knows.
Rule 3: after two failures in a row there is a wait before the next try: what starts children may need a moment to be
gone after it was killed, and nobody can be started meanwhile.
"""

from __future__ import annotations

__all__ = ["MAX_FAILED_STARTS", "ChildStarts"]

# Failures in a row before the node gives up. Raised: it bears a machine that is short of memory for longer; lowered:
# where no child can start, that is said sooner.
MAX_FAILED_STARTS = 5

# Seconds before the third try; twice as long before each after it. Raised: more time for what has to pass by itself;
# lowered: workers are without a child for less long.
FIRST_WAIT = 0.1

_NEVER = float("inf")


class ChildStarts:
    """The children that were started and are not ready yet; their numbers grow.

    Attributes
    ----------
    next_try
        When a wait ends; infinity if there is none.
    """

    def __init__(self) -> None:
        self._starting: set[int] = set()
        self._next = 0
        self._failures = 0
        # The first child that was started after the last failure.
        self._first_after = 0
        self.next_try = _NEVER

    def __len__(self) -> int:
        return len(self._starting)

    def __contains__(self, child: int) -> bool:
        return child in self._starting

    @property
    def is_hopeless(self) -> bool:
        """Whether starts have failed so often in a row that the next would fail, too."""
        return self._failures >= MAX_FAILED_STARTS

    def begin(self, wanted: int) -> range:
        """Return the numbers of the children to start now, where so many more are wanted."""
        if self.next_try != _NEVER:
            wanted = 0
        elif self._failures:
            wanted = min(wanted, 1 - sum(child >= self._first_after for child in self._starting))
        begun = range(self._next, self._next + max(0, wanted))
        self._next = begun.stop
        self._starting.update(begun)
        return begun

    def ready(self, child: int) -> bool:
        """Take in that a child is ready; return whether children that were held back may be started now."""
        self._starting.discard(child)
        had_failed, self._failures, self.next_try = self._failures > 0, 0, _NEVER
        return had_failed

    def may_try(self, now: float) -> bool:
        """Return whether a wait is over."""
        if now < self.next_try:
            return False
        self.next_try = _NEVER
        return True

    def failed(self, child: int, now: float) -> None:
        """Take in that a child has ended before it was ready."""
        self._starting.discard(child)
        if child >= self._first_after:
            self._failures += 1
            self._first_after = self._next
            if self._failures > 1:
                self.next_try = now + FIRST_WAIT * 2 ** (self._failures - 2)
