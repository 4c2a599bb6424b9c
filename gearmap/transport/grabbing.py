"""Which job server a worker asks next. The worker holds at most one job over all of its servers.

Law of the file: pure; events in, orders out. While a job is held, a NOOP is remembered and not answered, because
PRE_SLEEP would only bring the next NOOP at once. A server is told PRE_SLEEP once, when it answered NO_JOB; from then on
it is asked again only after its NOOP, or after `forget_emptiness`. After a job the turn goes on to the
next server, so that servers that are all full are served alike.

Where jobs come one by one, each GRAB after a job finds nothing. With an only server the worker learns that, and says
PRE_SLEEP at once: the server wakes it then if there is work after all.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from gearmap.errors import ProtocolError

__all__ = ["GrabPolicy", "Order", "Orders", "Phase"]


class Order(enum.Enum):
    """What to send to a server."""

    GRAB = "grab"
    SLEEP = "sleep"


class Phase(enum.Enum):
    """What the worker is about."""

    IDLE = "idle"
    ASKING = "asking"
    HOLDING = "holding"


class _Server(enum.Enum):
    DOWN = "down"
    AWAKE = "awake"  # may have work
    WOKEN = "woken"  # said that it has work
    ASLEEP = "asleep"  # said that it has none, and will wake us


# Those that said so come first.
_WORTH_ASKING = (_Server.WOKEN, _Server.AWAKE)

Orders: TypeAlias = list[tuple[Order, int]]

_GRAB_THE_ONLY_ONE = (Order.GRAB, 0)
_LEAVE_THE_ONLY_ONE = (Order.SLEEP, 0)

# After so many jobs that were the only one the next is taken to be it, too. Raised: workers ask in vain more often;
# lowered: a queue that fills is believed in later.
_ALONE_FROM = 4

# So many jobs later it is asked again. Raised: less asking in vain; lowered: fewer jobs cost a NOOP once there is more.
_ALONE_FOR = 12


class GrabPolicy:
    """The grab policy of one worker. Servers are numbered from 0.

    Attributes
    ----------
    phase
        Whether a job is held or asked for.
    current
        The server that is asked, or whose job is held.
    changes
        Counts the changes of `phase` and `current`.
    is_paused
        While paused nothing new is asked for.
    """

    def __init__(self, n_servers: int) -> None:
        self.phase = Phase.IDLE
        self.current: int | None = None
        self.changes = 0
        self.is_paused = False
        self._servers = [_Server.DOWN] * n_servers
        self._last_asked = n_servers - 1
        self._alone = 0  # jobs in turn after which there was no other, as far as was asked
        self._asks_for_another = False  # the GRAB that is under way followed a job

    @property
    def is_asleep(self) -> bool:
        """Whether every server that is up has said that it has no work."""
        return self.phase is Phase.IDLE and not self.is_paused and _Server.ASLEEP in self._servers

    def came_up(self, server: int) -> Orders:
        self._servers[server] = _Server.AWAKE
        return self._ask_next()

    def went_down(self, server: int) -> Orders:
        self._servers[server] = _Server.DOWN
        if self.current == server:
            self._rest()
        return self._ask_next()

    def noop(self, server: int) -> Orders:
        # A NOOP that crossed our GRAB is answered by what the GRAB brings.
        if self._servers[server] is _Server.ASLEEP:
            self._servers[server] = _Server.WOKEN
        return self._ask_next()

    def no_job(self, server: int) -> Orders:
        self._expect_asked(server)
        self._rest()
        if self._asks_for_another:
            self._asks_for_another = False
            self._alone += 1
        if self.is_paused:
            return []
        self._servers[server] = _Server.ASLEEP
        return [(Order.SLEEP, server), *self._ask_next()]

    def withdrawn(self, server: int) -> Orders:
        """A GRAB that waited at the server was taken back."""
        self._expect_asked(server)
        self._rest()
        return self._ask_next()

    def assigned(self, server: int) -> None:
        self._expect_asked(server)
        self.phase = Phase.HOLDING
        self.changes += 1
        if self._asks_for_another:
            self._asks_for_another = False
            self._alone = 0

    def finished(self) -> Orders:
        """The held job is done with."""
        if len(self._servers) == 1 and not self.is_paused:
            # Nothing to choose. This is on the way of every job.
            if self._alone >= _ALONE_FROM:
                return self._sleep_at_once()
            self.phase, self.current = Phase.ASKING, 0
            self.changes += 1
            self._asks_for_another = True
            return [_GRAB_THE_ONLY_ONE]
        self._rest()
        return self._ask_next()

    def _sleep_at_once(self) -> Orders:
        self._rest()
        self._servers[0] = _Server.ASLEEP
        self._alone += 1
        if self._alone >= _ALONE_FROM + _ALONE_FOR:
            self._alone = _ALONE_FROM - 1  # after the next one it is asked
        return [_LEAVE_THE_ONLY_ONE]

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> Orders:
        self.is_paused = False
        return self._ask_next()

    def forget_emptiness(self) -> Orders:
        """Ask servers again that had nothing: they may serve a new function, or a NOOP was swallowed."""
        self._servers = [_Server.AWAKE if state is _Server.ASLEEP else state for state in self._servers]
        return self._ask_next()

    # ---------------------------------------------------------------------------------------------------- inside

    def _rest(self) -> None:
        self.phase = Phase.IDLE
        self.current = None
        self.changes += 1

    def _expect_asked(self, server: int) -> None:
        if self.phase is not Phase.ASKING or self.current != server:
            raise ProtocolError("a job server answered a GRAB_JOB that was not sent")

    def _ask_next(self) -> Orders:
        if self.phase is not Phase.IDLE or self.is_paused:
            return []
        server = self._next_in_turn()
        if server is None:
            return []
        self._servers[server] = _Server.AWAKE
        self._last_asked = self.current = server
        self.phase = Phase.ASKING
        self.changes += 1
        return [(Order.GRAB, server)]

    def _next_in_turn(self) -> int | None:
        """The next server that has work or may have some, those that said so first."""
        servers = self._servers
        if len(servers) == 1:
            return 0 if servers[0] in _WORTH_ASKING else None
        after = self._last_asked + 1
        for wanted in _WORTH_ASKING:
            if wanted in servers:
                turn = servers[after:] + servers[:after]
                return (after + turn.index(wanted)) % len(servers)
        return None
