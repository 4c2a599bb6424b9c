"""Where the embedded server is not gearmand: every difference, what each does, and why.

The conformance tests assert both columns; a difference that is not in this table is a defect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One allowed difference."""

    gearmand: str
    ours: str
    why: str


ALLOWED_DIFFERENCES = {
    "abandoned-jobs-go-at-once": Difference(
        gearmand="a queued foreground job without clients stays listed and counted until a worker grabs",
        ours="it is removed when its last client goes",
        why="it holds memory and a place of `maxqueue`; nothing could run it any more",
    ),
    "resubmitted-unique-runs": Difference(
        gearmand="a job submitted under the unique of an abandoned or cancelled queued job is lost: JOB_CREATED, then "
        "nothing for ever",
        ours="it is a fresh job",
        why="an accepted job must run; the abandoned one is gone already",
    ),
    "background-outlives-foreground": Difference(
        gearmand="a background job is dropped when a foreground client that joined it leaves",
        ours="it stays",
        why="an accepted background job must run",
    ),
    "cancelled-jobs-go-at-once": Difference(
        gearmand="a cancelled queued job stays listed until a worker grabs, and may be cancelled again",
        ours="it is removed; cancelling it again is UNKNOWN_JOB",
        why="as for abandoned jobs",
    ),
    "one-verdict-per-client": Difference(
        gearmand="after `cancel job` of a running job the client gets WORK_FAIL, then whatever the worker sends, and "
        "is counted as one that waits",
        ours="WORK_FAIL is the last that the client hears, and it is not counted",
        why="two terminal packets for one job have no meaning; the worker is told nothing in both",
    ),
    "no-trailing-nul": Difference(
        gearmand="WORK_FAIL made from WORK_EXCEPTION, or from a WORK_FAIL that had one, ends with a NUL",
        ours="the handle stands alone",
        why="clients look the handle up as it comes",
    ),
    "short-packets-close": Difference(
        gearmand="a packet with too few arguments stalls its connection; some are closed when more comes",
        ours="the connection is closed at once",
        why="a stalled peer never learns what is wrong",
    ),
    "unique-of-64": Difference(
        gearmand="a unique of 64 bytes is accepted and stored damaged",
        ours="ERROR ARGUMENT_TOO_LARGE, as for 65 and more",
        why="it shifts the data that the worker gets by one byte",
    ),
    "long-status-questions": Difference(
        gearmand="GET_STATUS and GET_STATUS_UNIQUE of 64 bytes and more close the connection",
        ours="the answer is: unknown",
        why="nothing of that name can exist, so the answer is true",
    ),
    "no-epoch-no-reduce": Difference(
        gearmand="SUBMIT_JOB_EPOCH and SUBMIT_REDUCE_JOB are accepted",
        ours="the connection is closed, as for any unknown command",
        why="outside of the subset; gearmand itself never wakes a worker for an epoch job",
    ),
    "high-command-numbers": Difference(
        gearmand="a command number from 2**31 on ends the server process",
        ours="the connection is closed",
        why="one packet must not end a server",
    ),
    "body-limit": Difference(
        gearmand="bodies up to 4 GiB",
        ours="a header that announces 2 GiB or more closes the connection",
        why="a bound on what one packet can take",
    ),
    "half-packets-time-out": Difference(
        gearmand="waits for ever for the rest of a packet",
        ours="closes the connection if a small packet takes 30 s, or a large body is silent for 300 s or slower than "
        "4 kB/s by so much",
        why="half packets hold memory, and bytes that come one by one hold everybody up",
    ),
    "stock-is-bounded": Difference(
        gearmand="keeps as many jobs, functions and connections as memory and file descriptors last",
        ours="has limits for each (`jobserver.limits`): jobs above them are answered `Job queue is full`, functions "
        "that nobody uses are forgotten, idle connections closed",
        why="one peer must not end what others have here",
    ),
    "only-data-is-long": Difference(
        gearmand="accepts a packet of any command up to 4 GiB",
        ours="closes the connection at the header of one that is longer than 16 KiB and has no data at its end",
        why="it would be received, copied and thrown away",
    ),
    "long-listings-are-kept": Difference(
        gearmand="makes every listing anew",
        ours="one that took 5 ms or longer is given again, for fifteen times as long as it took",
        why="whoever asks for long listings all the time takes a third of the server, not all of it",
    ),
    "slow-readers-hold-back": Difference(
        gearmand="keeps all output for a client that does not read",
        ours="does not read from the connections that feed it while 32 MiB wait for it",
        why="memory is bounded; the sender feels a full socket",
    ),
    "create-function-keeps-its-last-letter": Difference(
        gearmand="`create function foo` with a bare newline creates `fo`",
        ours="creates `foo`",
        why="the carriage return is optional in every other command",
    ),
    "drop-function-keeps-jobs": Difference(
        gearmand="`drop function` takes queued jobs with it, and nobody is told",
        ours="it is refused while there are jobs, as with workers",
        why="an accepted job must run",
    ),
    "version-text": Difference(
        gearmand="OK 1.1.20 and what the distribution adds",
        ours="OK 1.1.20+gearmap",
        why="it behaves as that version, and says that it is another program",
    ),
    "waiting-grabs": Difference(
        gearmand="knows no option `waiting_grabs`",
        ours="with --wake-one, a worker may ask that its GRAB_JOB_UNIQ waits for a job; PRE_SLEEP takes it back",
        why="two hops and two wake-ups less for a job that finds its worker idle; nobody who does not ask sees it",
    ),
    "order-of-listings": Difference(
        gearmand="hash order",
        ours="order of creation",
        why="nobody can rely on the former",
    ),
}


def expected(kind: str, difference: str, *, gearmand: T, ours: T) -> T:
    """Return what the server of this kind is expected to do where the two are allowed to differ."""
    assert difference in ALLOWED_DIFFERENCES
    return ours if kind == "embedded" else gearmand
