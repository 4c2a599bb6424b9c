"""The thread that runs what users want to be called when their futures are done.

Rule 1: the driver thread runs no user code. It leaves the calls here; they are made one after another, in that order.
Rule 2: a callback that blocks holds up the callbacks after it, and nothing else.
Rule 3: the thread starts with the first call and ends with the driver, after all that was left.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
from collections.abc import Callable

__all__ = ["CallbackThread"]

logger = logging.getLogger(__name__)


class CallbackThread:
    """Makes calls for one driver."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def is_current(self) -> bool:
        """Whether the caller is a callback: it must not wait for callbacks to end."""
        return threading.current_thread() is self._thread

    def post(self, call: Callable[[], object]) -> None:
        """Have `call` made soon; driver thread only."""
        if self._thread is None and not self._start():
            self._make(call)
        else:
            self._calls.put(call)

    def close(self) -> None:
        """Let the thread end after what was left so far; driver thread only, and the last call there."""
        self._calls.put(None)

    def join(self, timeout: float) -> None:
        """Wait for the end, in any thread but this one."""
        thread = self._thread
        if thread is not None and not self.is_current:
            thread.join(timeout)

    def _start(self) -> bool:
        # As the driver: a context of its own, so that nothing is mixed up with the cell that happens to run.
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._main,), name="gearmap-callbacks", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is about to end: there is nobody left to be held up
            return False
        self._thread = thread
        return True

    def _main(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            self._make(call)
            del call  # while it waits, the thread keeps no future alive

    def _make(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException:  # `sys.exit` too: the calls after this one are not its business
            logger.exception("a callback failed", extra={"action": "callback_failed"})
