"""Which blobs a node has, which it fetches, and which it lets go: the plan, without a byte of them.

A blob is large, immutable, and called by a name that stands for its content; a waiter is a job that needs some.

Rule 1: a job has what it needs as soon as every byte of it is here, and nobody else's transfer stands before it: each
blob has a small window of pieces of its own.
Rule 2: what a job needs is never let go before the job is released; beyond that the least recently used goes first.
Rule 3: a transfer that brings nothing for `patience` seconds is over, and everybody who needs it is told.
Rule 4: nothing here waits: `now` is an argument, `deadline` an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from gearmap.config import Patience

__all__ = ["MAX_BLOBS", "AskPiece", "BlobName", "BlobPlan", "Forget", "Instruction", "Ready", "Unavailable", "Waiter"]

# Bytes of one answer. Raised: fewer round trips; lowered: the job server holds less, and nodes take turns more often.
PIECE_BYTES = 1024 * 1024

# Pieces of one blob that are asked for at once. Raised: a long way between the hosts costs less; lowered: the job
# server holds less (window x piece for each node), and the client serves many nodes more evenly.
WINDOW = 3

# Blobs that are kept, large or small; each is an open file of the node. Raised: more of them need not be fetched again;
# lowered: fewer descriptors.
MAX_BLOBS = 256

BlobName: TypeAlias = tuple[str, str]
"""Who gives it, and its digest."""

Waiter: TypeAlias = bytes
"""An execution."""


@dataclass(frozen=True, slots=True)
class AskPiece:
    """Ask for so many bytes of a blob."""

    blob: BlobName
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Ready:
    """All that a waiter needs is here, and stays until it is released."""

    waiter: Waiter


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A waiter will not have all that it needs. It is released."""

    waiter: Waiter
    detail: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Let go of a blob, whole or in part, and of what was asked of it."""

    blob: BlobName


Instruction: TypeAlias = AskPiece | Ready | Unavailable | Forget


@dataclass(slots=True)
class _Blob:
    n_bytes: int
    waiters: set[Waiter] = field(default_factory=set)
    asked: int = 0  # from 0 to here
    due: dict[int, int] = field(default_factory=dict)  # pieces under way: offset -> size
    heard_at: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.asked == self.n_bytes and not self.due


class BlobPlan:
    """The blobs of one node.

    Parameters
    ----------
    limit_bytes, limit_blobs
        What may be kept. Jobs that need more than that at once get it all the same.
    """

    def __init__(
        self,
        limit_bytes: int,
        limit_blobs: int = MAX_BLOBS,
        *,
        piece_bytes: int = PIECE_BYTES,
        window: int = WINDOW,
        patience: float = Patience().blob_timeout,
    ) -> None:
        self._limit_bytes = limit_bytes
        self._limit_blobs = limit_blobs
        self._piece_bytes = piece_bytes
        self._window = window
        self._patience = patience
        self._blobs: OrderedDict[BlobName, _Blob] = OrderedDict()  # the most recently used last
        self._needs: dict[Waiter, tuple[BlobName, ...]] = {}
        self._waiting: dict[Waiter, set[BlobName]] = {}  # what each waiter lacks

    @property
    def deadline(self) -> float | None:
        """When a `tick` is due (monotonic seconds), or None."""
        under_way = [blob.heard_at for blob in self._blobs.values() if not blob.is_whole]
        return min(under_way) + self._patience if under_way else None

    @property
    def total_bytes(self) -> int:
        """What is kept, or will be."""
        return sum(blob.n_bytes for blob in self._blobs.values())

    def has(self, blob: BlobName) -> bool:
        """Whether all of a blob is here."""
        known = self._blobs.get(blob)
        return known is not None and known.is_whole

    def want(self, waiter: Waiter, blobs: Iterable[tuple[BlobName, int]], now: float) -> list[Instruction]:
        """Have blobs, given with their sizes (1 byte or more), ready for a waiter."""
        out: list[Instruction] = []
        sizes = dict(blobs)
        self._needs[waiter] = tuple(sizes)
        lacking = set()
        for name, n_bytes in sizes.items():
            blob = self._blobs.get(name)
            if blob is None:
                blob = self._blobs[name] = _Blob(n_bytes, heard_at=now)
            blob.waiters.add(waiter)
            self._blobs.move_to_end(name)
            if not blob.is_whole:
                lacking.add(name)
                self._ask(name, blob, out)
        if lacking:
            self._waiting[waiter] = lacking
        else:
            out.append(Ready(waiter))
        self._trim(out)
        return out

    def arrived(self, name: BlobName, offset: int, now: float) -> list[Instruction]:
        """Take in that the piece which was asked for at an offset is here; one that was not is no news."""
        out: list[Instruction] = []
        blob = self._blobs.get(name)
        if blob is None or blob.due.pop(offset, None) is None:
            return out
        # A source answers in turn: while it gives one blob, those that wait for their turn have not stalled.
        source = _source(name)
        for other, waiting in self._blobs.items():
            if not waiting.is_whole and _source(other) == source:
                waiting.heard_at = now
        self._ask(name, blob, out)
        if blob.is_whole:
            for waiter in sorted(blob.waiters & self._waiting.keys(), key=repr):
                lacking = self._waiting[waiter]
                lacking.discard(name)
                if not lacking:
                    del self._waiting[waiter]
                    out.append(Ready(waiter))
        return out

    def failed(self, name: BlobName, detail: str) -> list[Instruction]:
        """Take in that a blob cannot be had, or is not what it should be."""
        out: list[Instruction] = []
        blob = self._blobs.pop(name, None)
        if blob is None:
            return out
        out.append(Forget(name))
        for waiter in sorted(blob.waiters & self._waiting.keys(), key=repr):
            self._part(waiter, out)
            out.append(Unavailable(waiter, detail))
        return out

    def release(self, waiter: Waiter) -> list[Instruction]:
        """Take in that a waiter needs nothing any more, whether it had everything or not."""
        out: list[Instruction] = []
        self._part(waiter, out)
        self._trim(out)
        return out

    def source_gone(self, source: str) -> list[Instruction]:
        """Let go of what a client gave that is not there any more, but for what jobs need."""
        idle = [name for name, blob in self._blobs.items() if name[0] == source and not blob.waiters]
        for name in idle:
            del self._blobs[name]
        return [Forget(name) for name in idle]

    def tick(self, now: float) -> list[Instruction]:
        """Give up what has brought nothing for too long."""
        out: list[Instruction] = []
        for name, blob in list(self._blobs.items()):
            if not blob.is_whole and now >= blob.heard_at + self._patience:
                out += self.failed(name, f"the client sent nothing of it for {self._patience:g} s")
        return out

    def _ask(self, name: BlobName, blob: _Blob, out: list[Instruction]) -> None:
        while len(blob.due) < self._window and blob.asked < blob.n_bytes:
            size = min(self._piece_bytes, blob.n_bytes - blob.asked)
            blob.due[blob.asked] = size
            out.append(AskPiece(name, blob.asked, size))
            blob.asked += size

    def _part(self, waiter: Waiter, out: list[Instruction]) -> None:
        """Take a waiter from its blobs; what nobody waits for any more is not fetched to its end."""
        self._waiting.pop(waiter, None)
        for name in self._needs.pop(waiter, ()):
            blob = self._blobs.get(name)
            if blob is None:
                continue
            blob.waiters.discard(waiter)
            if not blob.waiters and not blob.is_whole:
                del self._blobs[name]
                out.append(Forget(name))

    def _trim(self, out: list[Instruction]) -> None:
        surplus = self.total_bytes - self._limit_bytes
        if surplus <= 0 and len(self._blobs) <= self._limit_blobs:
            return
        for name in [name for name, blob in self._blobs.items() if not blob.waiters]:
            if surplus <= 0 and len(self._blobs) <= self._limit_blobs:
                return
            surplus -= self._blobs.pop(name).n_bytes
            out.append(Forget(name))


def _source(name: BlobName) -> object:
    """Who gives a blob: the first part of its name; who gives one with a name of another kind gives no other."""
    return name[0] if isinstance(name, tuple) else name
