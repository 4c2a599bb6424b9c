"""Lanes that single workers of a node serve for a while, so that a client can speak to each of them: the node's side.

Rule 1: a lane is a lease. Whoever wants it longer asks again; who has gone leaves nothing that lasts.
Rule 2: registered on open connections, given back only by a worker that is idle: no job is ever put back for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gearmap.core.names import Lane
from gearmap.runtime.crew import Worker
from gearmap.runtime.keyring import key_id_of
from gearmap.runtime.nodesettings import NodeSettings

__all__ = ["PrivateLanes"]

# However long somebody asks for. Raised: fewer renewals; lowered: what a dead client has asked for ends sooner.
LONGEST_LEASE = 600.0


class PrivateLanes:
    """The private lanes of one node.

    Parameters
    ----------
    workers
        The crew's.
    touched
        Told of each worker whose connections were written to.
    """

    def __init__(self, settings: NodeSettings, workers: list[Worker], touched: Callable[[Worker], object]) -> None:
        self._settings = settings
        self._workers = workers
        self._touched = touched
        self._until: dict[tuple[int, str], float] = {}  # worker, function name -> when the lease ends

    @property
    def deadline(self) -> float | None:
        """When `look` must be called (monotonic seconds), or None."""
        return min(self._until.values(), default=None)

    def serve(self, lanes: object, seconds: float, now: float, key_id: str) -> str:
        """Have workers serve a lane each; return what is wrong, or an empty text.

        Parameters
        ----------
        lanes
            Pairs of a worker's number and a queue's name, as somebody has sent them.
        key_id
            The key that he has.
        """
        wanted = self._checked(lanes, key_id)
        if wanted is None:
            return "lanes must be pairs of a worker's number and a queue"
        if not seconds > 0:  # nor is that which is no number
            return "seconds must be positive"
        for index, name in wanted:
            worker = self._workers[index]
            if worker.is_leaving:
                return "this node is leaving"
            if (index, name) not in self._until:
                worker.links.add_function(name)
                self._touched(worker)
            self._until[index, name] = now + min(seconds, LONGEST_LEASE)
        return ""

    def leave(self, lanes: object, key_id: str) -> None:
        """Let lanes go."""
        for lane in self._checked(lanes, key_id) or ():
            self._end(*lane)

    def forget_keys(self, key_ids: Sequence[str]) -> None:
        """Let the lanes go of those who have these keys."""
        for lane in [each for each in self._until if key_id_of(each[1]) in key_ids]:
            self._end(*lane)

    def look(self, now: float) -> None:
        """Let the lanes go whose lease is over."""
        for lane, until in list(self._until.items()):
            if now >= until:
                self._end(*lane)

    def _end(self, index: int, name: str) -> None:
        if self._until.pop((index, name), None) is not None:
            worker = self._workers[index]
            worker.links.remove_function(name)
            self._touched(worker)

    def _checked(self, lanes: object, key_id: str) -> Sequence[tuple[int, str]] | None:
        """Return workers and function names, or None if that is not what was sent."""
        if not isinstance(lanes, list):
            return None
        settings = self._settings
        found: list[tuple[int, str]] = []
        for pair in lanes:
            number, queue = _pair(pair)
            if number is None or not 0 <= number < settings.workers or queue in settings.queues:
                return None
            lane = Lane(queue, settings.python, key_id)
            if Lane.parse(lane.name) != lane:
                return None
            found.append((number, lane.name))
        return found


def _pair(value: Any) -> tuple[int | None, str]:
    match value:
        case [int() as number, str() as queue] if number is not True and number is not False:
            return number, queue
    return None, ""
