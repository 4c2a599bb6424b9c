"""A cluster in a notebook: a card that follows it while somebody looks.

What must not live here: what the card says (`overview.cardstate`), how servers and nodes are asked (`overview.survey`).

Rule 1: nobody is asked anything while nobody looks. The front end says that somebody does, again and again; a kernel
that runs a cell cannot hear it, and goes on for as long as that cell runs.
Rule 2: one thread asks and scales, and ends when nobody looks any more. It keeps no cluster alive.
Rule 3: in the place of the card stands a table with the time at which it held, for whoever reads the saved notebook;
once the cluster is closed, that is all there is.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gearmap.client import Client, LocalCluster
from gearmap.errors import GearmapError
from gearmap.notebook.widgets import route_directly, widget_view
from gearmap.overview.cardstate import cluster_card_state, cpu_shares
from gearmap.overview.values import ClusterStatus, NodeStatus

__all__ = ["BusyKernel", "ClusterCard"]

logger = logging.getLogger(__name__)

# Between two looks at a cluster (seconds). Raised: less is asked of servers and nodes; lowered: the card is livelier.
LOOK_SECONDS = 1.0

# After so many seconds without a sign of the front end nobody looks: it gives one every two seconds.
WATCH_SECONDS = 7.0

# More than one person means.
MAX_WORKERS = 4096

# Cells in which a card is replaced by its table at the end. Those before keep the one of their time.
MAX_CELLS = 16


class ClusterCard:
    """The live card of one client; its widget may be shown in any number of cells.

    Parameters
    ----------
    client
        The cluster. It is not kept alive.
    make_widget
        Makes the widget from its traits.
    is_busy
        Whether the kernel runs a cell, so that it cannot hear the front end.
    """

    def __init__(self, client: Client, make_widget: Callable[..., Any], is_busy: Callable[[], bool]) -> None:
        self._client = weakref.ref(client)
        self._is_busy = is_busy
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._looked_at = time.monotonic()
        self._wanted: int | None = None  # asked for, and not done yet
        self._before: ClusterStatus | None = None
        self._known: dict[str, NodeStatus] = {}  # nodes as they have answered last, by their ids
        self._note = ""
        self._cells: deque[tuple[contextvars.Context, Any]] = deque(maxlen=MAX_CELLS)
        self.widget = make_widget(state={})
        route_directly(self.widget)
        # The widget lives as long as its front end may show it: it must not keep the card's client, and does not.
        self.widget.on_msg(lambda _widget, content, _buffers: self._on_message(content))

    def show(self, display: Callable[..., Any]) -> None:
        """Show it in the present cell."""
        client = self._client()
        assert client is not None  # whoever shows it has it
        status = client.status()
        self._tell(client, status)
        bundle = _table(repr(client), status) | widget_view(self.widget)
        handle = display(bundle, raw=True, display_id=True)
        # What is shown later is shown in this cell's context, or it would land in whatever cell runs then.
        self._cells.append((contextvars.copy_context(), handle))
        self._look()

    # ------------------------------------------------------------------------------------- messages of the front end

    def _on_message(self, content: Any) -> None:
        if not isinstance(content, dict):
            return
        if content.get("op") == "look":
            self._look()
        elif content.get("op") == "scale":
            wanted = content.get("workers")
            if type(wanted) is int and 1 <= wanted <= MAX_WORKERS:
                self._wanted = wanted
                self._look()
                self._wake.set()

    def _look(self) -> None:
        """Somebody looks: ask from now on."""
        with self._lock:
            self._looked_at = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gearmap-cluster-card", daemon=True)
                self._thread.start()

    # ------------------------------------------------------------------------------------------- the card's own thread

    def _run(self) -> None:
        while True:
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            try:
                is_over = self._step()
            except Exception as error:  # whatever a front end may raise: a card is not worth a traceback in a cell
                logger.debug("the cluster's card is given up: %s: %s", type(error).__name__, error)
                is_over = True
            with self._lock:
                if is_over or not self._is_watched():
                    self._thread = None
                    return

    def _is_watched(self) -> bool:
        return time.monotonic() - self._looked_at < WATCH_SECONDS or self._is_busy()

    def _step(self) -> bool:
        """Scale if that was asked for, look at the cluster and tell; return whether it has gone."""
        client = self._client()
        if client is None or client.is_closed:
            self._end()
            return True
        wanted, self._wanted = self._wanted, None
        if wanted is not None and isinstance(client, LocalCluster):
            self._note = ""
            try:
                client.scale(wanted)
            except (GearmapError, OSError) as error:
                self._note = str(error)
        self._tell(client, client.status())
        return False

    def _tell(self, client: Client, status: ClusterStatus) -> None:
        wanted = client.n_workers if isinstance(client, LocalCluster) else None
        shares = cpu_shares(self._before, status)
        self._before = status
        # Of those that are there: a cluster may see thousands come and go.
        self._known = {
            node.node_id: node if node.seen else self._known.get(node.node_id, node) for node in status.nodes
        }
        nodes = tuple(replace(node, name=self._known[node.node_id].name) for node in status.nodes)
        seen = {node.node_id: node.seen for node in self._known.values() if node.seen}
        self.widget.state = cluster_card_state(
            replace(status, nodes=nodes), shares, seen=seen, wanted=wanted or None, note=self._note
        )

    def _end(self) -> None:
        """Leave the table of what was seen last in the place of the card, and say that the cluster is closed."""
        assert self._before is not None  # it was shown
        bundle = _table("closed", replace(self._before, where=f"{self._before.where} (closed)"))
        while self._cells:
            context, handle = self._cells.popleft()
            context.run(handle.update, bundle, raw=True)


def _table(text: str, status: ClusterStatus) -> dict[str, Any]:
    return {"text/plain": text, "text/html": status._repr_html_()}


class BusyKernel:
    """Tells whether the kernel's event loop answers. It does not while a cell runs that does not await."""

    def __init__(self) -> None:
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._answered: threading.Event | None = None

    def __call__(self) -> bool:
        """Ask; True until it has answered what was asked the last time."""
        if self._loop is None or self._loop.is_closed():
            return False
        if self._answered is not None and self._answered.is_set():
            self._answered = None
            return False
        if self._answered is None:
            self._answered = threading.Event()
            self._loop.call_soon_threadsafe(self._answered.set)
        return True
