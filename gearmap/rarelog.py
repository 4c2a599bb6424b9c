"""Log lines that come in a flood, thinned.

Law of the file: what others can make happen at will is told once, and then how often it happened; so nobody fills a
disk by being refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["RareLog"]

# Between two lines of one kind. Raised: a flood is fewer lines; lowered: more of what differs between them is seen.
PAUSE_SECONDS = 10.0


class RareLog:
    """A logger that says each kind of thing at once, and then at most every `pause` seconds.

    Parameters
    ----------
    logger
        Where the lines go.
    pause
        Seconds between two lines of one kind. What has the same text before its arguments are put in is of one kind.
    clock
        Monotonic seconds.

    Examples
    --------
    >>> now = [0.0]
    >>> log = RareLog(logging.getLogger("example"), pause=10.0, clock=lambda: now[0])
    >>> [log.warning("%s is refused", who) for who in ("a", "b", "c")]
    [True, False, False]
    >>> now[0] = 10.0
    >>> log.warning("%s is refused", "d")  # says "d is refused (and 2 more)"
    True
    """

    def __init__(
        self, logger: logging.Logger, *, pause: float = PAUSE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._pause = pause
        self._clock = clock
        # By the text: when it was said last, and how often it was not said since.
        self._said: dict[str, tuple[float, int]] = {}

    def info(self, text: str, *args: object) -> bool:
        """Log, or count; return whether it was logged."""
        return self._log(logging.INFO, text, args)

    def warning(self, text: str, *args: object) -> bool:
        """Log, or count; return whether it was logged."""
        return self._log(logging.WARNING, text, args)

    def error(self, text: str, *args: object) -> bool:
        """Log, or count; return whether it was logged."""
        return self._log(logging.ERROR, text, args)

    def exception(self, text: str, *args: object) -> bool:
        """Log with the present exception, or count; return whether it was logged."""
        return self._log(logging.ERROR, text, args, exc_info=True)

    def _log(self, level: int, text: str, args: tuple[object, ...], *, exc_info: bool = False) -> bool:
        now = self._clock()
        when, unsaid = self._said.get(text, (-self._pause, 0))
        if now - when < self._pause:
            self._said[text] = (when, unsaid + 1)
            return False
        self._said[text] = (now, 0)
        if unsaid:
            text, args = text + " (and %d more)", (*args, unsaid)
        self._logger.log(level, text, *args, exc_info=exc_info)
        return True
