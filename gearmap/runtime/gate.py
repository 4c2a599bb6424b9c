"""Which jobs a node lets in: those that open, and that it has not finished already.

What must not live here: what becomes of them (`core.node_engine`), and how they are opened (`work`).

Law of the file: what does not open is told rarely, counted always, and touched no further.
"""

from __future__ import annotations

import logging
import os
import time

from gearmap.errors import WireError
from gearmap.rarelog import RareLog
from gearmap.runtime.finished import FinishedJobs
from gearmap.runtime.keyring import Keyring
from gearmap.runtime.work import JobOpener, Work
from gearmap.transport.events import AssignedJob

__all__ = ["Gate"]

log = logging.getLogger(__name__)


class Gate:
    """Lets jobs in.

    Attributes
    ----------
    refused
        Jobs that did not open.
    repeated
        Jobs that this node had finished before, and has not run again.
    """

    def __init__(self, keys: Keyring) -> None:
        self.refused = 0
        self.repeated = 0
        self._opener = JobOpener(keys)
        self._finished = FinishedJobs()
        self._log = RareLog(log)

    def admit(self, job: AssignedJob) -> Work | bytes:
        """Return the opened job; or what it is to be answered with instead, nothing if it is to fail."""
        try:
            work = self._opener.open(job, execution_id=os.urandom(16), now=time.monotonic())
        except WireError as error:
            self.refuse(str(error))
            return b""
        if work.context in self._finished:
            self.repeated += 1
            self._log.warning("a job came again that was finished here; it is not run a second time")
            return self._finished.answer(work.context)
        return work

    def refuse(self, why: str) -> None:
        """Count a job that does not open, and say so."""
        self.refused += 1
        self._log.warning("refused a job that does not open: %s", why)

    def finished(self, work: Work) -> None:
        """Note that a job was run, and all of it answered."""
        self._finished.note(work.context, work.take_said())
