"""The text protocol of administrators: one line in, the whole answer out.

What lives here: the commands of `gearadmin`, with gearmand's own words and line ends. What must not: anything binary.

Rule 1: every line gets an answer, except one of more than five words: that one closes the connection, as in gearmand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gearmap.errors import ProtocolError
from gearmap.jobserver.protocol import leading_int
from gearmap.jobserver.records import HIGH, LOW, NORMAL
from gearmap.jobserver.state import JobTable

__all__ = ["SERVER_VERSION", "Listings", "answer_line"]

SERVER_VERSION: Final = b"1.1.20+gearmap"
MAX_WORDS: Final = 5

# A listing that took so long (seconds) is kept, and given to whoever asks for it in so many times that time. There are
# five kinds, so making them takes at most a third of the time. Raised: listings of a server with very much in it are
# older; lowered: those who ask for them all the time slow the others down.
SLOW_LISTING: Final = 0.005
KEPT_TIMES: Final = 15.0

# What is answered with all that there is of something.
_LISTINGS: Final = frozenset((b"status", b"prioritystatus", b"workers", b"show jobs", b"show unique jobs"))

_OK: Final = b"OK\r\n"
_UNKNOWN_JOB: Final = b"ERR UNKNOWN_JOB\r\n"
_UNKNOWN_ERROR: Final = b"ERR UNKNOWN_ERROR\r\n"
_UNKNOWN_SHOW: Final = b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"
_NO_FUNCTION: Final = b"ERR function not found\r\n"
_TOO_MANY: Final = b"ERR QUEUE_ERROR Too+many+functions\r\n"
_FUNCTION_IN_USE: Final = b"ERR there are still connected workers or executing clients\r\n"

Words = list[bytes]


class Listings:
    """Listings that took long, for those who ask for the same at nearly the same time.

    Parameters
    ----------
    clock
        Monotonic seconds. One that stands still keeps nothing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # By the words: until when it is good, and the answer.
        self._kept: dict[bytes, tuple[float, bytes]] = {}

    def answer(self, words: bytes, make: Callable[[], bytes]) -> bytes:
        """Return the answer that is kept, or that `make` gives."""
        began = self._clock()
        kept = self._kept.get(words)
        if kept is not None and began < kept[0]:
            return kept[1]
        answer = make()
        now = self._clock()
        if now - began > SLOW_LISTING:
            self._kept[words] = (now + KEPT_TIMES * (now - began), answer)
        else:
            self._kept.pop(words, None)
        return answer

    def trim(self) -> None:
        """Let go of what is too old."""
        now = self._clock()
        self._kept = {words: kept for words, kept in self._kept.items() if now < kept[0]}


def answer_line(table: JobTable, line: bytes, *, pid: int, listings: Listings) -> bytes:
    """Return the answer to one line.

    Raises
    ------
    ProtocolError
        If the line has too many words to be a command.
    """
    # What follows a NUL is unseen, and a leading blank makes an empty first word, as in gearmand.
    text = line.partition(b"\0")[0]
    words = text.split()
    if len(words) > MAX_WORDS:
        raise ProtocolError(f"a text line of {len(words)} words")
    if not words or text[:1].isspace():
        return _unknown_command(b"")
    command = words[0].lower()
    if command == b"getpid":
        return b"OK %d\n" % pid
    answer = _COMMANDS.get(command)
    if answer is None:
        return _unknown_command(words[0])
    kind = command if command != b"show" else b" ".join(words).lower()
    if kind in _LISTINGS:
        return listings.answer(kind, lambda: answer(table, words[1:]))
    return answer(table, words[1:])


def _unknown_command(word: bytes) -> bytes:
    return b"ERR UNKNOWN_COMMAND Unknown+server+command%b\r\n" % word


def _incomplete(command: bytes) -> bytes:
    return b"ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+%b\r\n" % command


def _status(table: JobTable, words: Words) -> bytes:
    lines = [
        b"%b\t%d\t%d\t%d\n" % (f.name, f.n_total, f.n_running, sum(f.workers.values()))
        for f in table.functions.values()
    ]
    return b"".join(lines) + b".\n"


def _priority_status(table: JobTable, words: Words) -> bytes:
    lines = [
        b"%b\t%d\t%d\t%d\t%d\n"
        % (f.name, f.n_queued[HIGH], f.n_queued[NORMAL], f.n_queued[LOW], sum(f.workers.values()))
        for f in table.functions.values()
    ]
    return b"".join(lines) + b".\n"


def _workers(table: JobTable, words: Words) -> bytes:
    lines = []
    for peer in table.peers:
        names = b"".join(b" " + function.name for function in peer.abilities)
        lines.append(b"%d %b %b :%b\n" % (peer.number, peer.address, peer.client_id, names))
    return b"".join(lines) + b".\n"


def _show(table: JobTable, words: Words) -> bytes:
    arguments = [word.lower() for word in words]
    if arguments == [b"jobs"]:
        lines = [
            b"%b\t%d\t%d\t%d\n" % (job.handle, job.retries, not job.is_wanted, job.background)
            for job in table.jobs.values()
        ]
    elif arguments == [b"unique", b"jobs"]:
        lines = [job.unique + b"\n" for job in table.jobs.values()]
    else:
        return _UNKNOWN_SHOW if words else _unknown_command(b"show")
    return b"".join(lines) + b".\n"


def _cancel(table: JobTable, words: Words) -> bytes:
    if len(words) < 2:
        return _unknown_command(b"cancel")
    if len(words) != 2 or words[0].lower() != b"job":
        return _UNKNOWN_ERROR
    job = table.jobs.get(words[1])
    if job is None:
        return _UNKNOWN_JOB
    table.cancel(job)
    return _OK


def _create(table: JobTable, words: Words) -> bytes:
    if len(words) != 2 or words[0].lower() != b"function":
        return _incomplete(b"create")
    return _OK if table.function(words[1]) is not None else _TOO_MANY


def _drop(table: JobTable, words: Words) -> bytes:
    if len(words) != 2 or words[0].lower() != b"function":
        return _incomplete(b"drop")
    if words[1] not in table.functions:
        return _NO_FUNCTION
    return _OK if table.drop_function(words[1]) else _FUNCTION_IN_USE


def _max_queue(table: JobTable, words: Words) -> bytes:
    if not words:
        return _incomplete(b"maxqueue")
    function = table.functions.get(words[0])
    if function is not None:
        limits = [max(0, leading_int(word)) for word in words[1:4]] or [0]
        # One number is for all priorities; of two, the third is unlimited.
        high, normal, low = limits * 3 if len(limits) == 1 else [*limits, 0][:3]
        function.limits = (high, normal, low)
    return _OK


_COMMANDS: Final[dict[bytes, Callable[[JobTable, Words], bytes]]] = {
    b"status": _status,
    b"prioritystatus": _priority_status,
    b"workers": _workers,
    b"show": _show,
    b"cancel": _cancel,
    b"create": _create,
    b"drop": _drop,
    b"maxqueue": _max_queue,
    b"version": lambda table, words: b"OK " + SERVER_VERSION + b"\n",
    b"verbose": lambda table, words: b"OK ERROR\n",
}
