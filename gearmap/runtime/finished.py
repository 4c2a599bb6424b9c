"""What a node has finished: the same sealed job is not run a second time here.

What must not live here: opening jobs (`work`), and answering them (`node`, `control`).

Law of the file: only what has been opened is noted, so strangers fill nothing. What is kept is bounded in number and
bytes, the oldest goes first; a job that was forgotten runs again, as does one that another node has finished.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from gearmap.wire.framing import Buffer

__all__ = ["MOST_ANSWER_BYTES", "FinishedJobs"]

# Jobs that are remembered. Raised: memory, about 200 bytes each; lowered: a repeated job runs again sooner.
MOST_JOBS = 16_384
# What is kept of their answers, each, and in all. A longer answer is not kept; the job fails then, and whoever waits
# for it submits it anew. Raised: memory, and copying for each job; lowered: more is done twice after a lost answer.
MOST_ANSWER_BYTES = 16 * 1024
MOST_BYTES = 16 * 1024 * 1024


class FinishedJobs:
    """The jobs that were finished last, by what they are bound to, with their answers.

    Examples
    --------
    >>> finished = FinishedJobs(most_jobs=2)
    >>> for name in (b"one", b"two", b"three"):
    ...     finished.note(name, [b"answer to ", name])
    >>> b"one" in finished, finished.answer(b"three")
    (False, b'answer to three')
    """

    def __init__(self, *, most_jobs: int = MOST_JOBS, most_bytes: int = MOST_BYTES) -> None:
        self._most_jobs = most_jobs
        self._most_bytes = most_bytes
        self._answers: OrderedDict[bytes, bytes] = OrderedDict()
        self._n_bytes = 0

    def __contains__(self, context: bytes) -> bool:
        return context in self._answers

    def answer(self, context: bytes) -> bytes:
        """Return what a job was answered, which must be here; nothing if that was too long."""
        return self._answers[context]

    def note(self, context: bytes, said: Iterable[Buffer] | None) -> None:
        """Note that a job was finished, with all that was said of it if that is not too much."""
        answer = b"".join(said) if said is not None else b""
        self._n_bytes += len(answer) - len(self._answers.pop(context, b""))
        self._answers[context] = answer
        while len(self._answers) > self._most_jobs or self._n_bytes > self._most_bytes:
            self._n_bytes -= len(self._answers.popitem(last=False)[1])
