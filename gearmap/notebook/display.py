"""Runs are shown in the notebook that this process is the kernel of.

Law of the file: IPython and the widgets are imported when something is shown, never before.
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

from gearmap.display import registry
from gearmap.display.registry import SinkRequest
from gearmap.display.sinks import SinkKind, choose_sink
from gearmap.notebook.reprs import install_formatters
from gearmap.notebook.runcard import CardFace, HtmlFace, RunCard
from gearmap.notebook.ticker import Ticker

__all__ = ["KernelDisplay", "install"]


def install() -> None:
    """Have runs, and futures that a cell ends with, shown in the notebook from now on."""
    if registry.registered() is not None:
        return
    display = KernelDisplay()
    registry.register(display)
    formatters = getattr(_shell(), "display_formatter", None)
    if display.is_here() and formatters is not None:
        own_display = formatters.ipython_display_formatter
        install_formatters(formatters.formatters["text/html"], own_display)
        for name in ("Client", "LocalCluster"):  # not loaded yet, perhaps
            own_display.for_type_by_name("gearmap.client", name, display.show_cluster)


class KernelDisplay:
    """Makes the displays of one kernel."""

    def __init__(self) -> None:
        self._ticker = Ticker()
        self._widget_class: Any = None
        self._cluster_class: Any = None
        self._clusters: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def is_here(self) -> bool:
        """Whether this process is a kernel. IPython in a terminal has a shell, too, but no kernel."""
        return getattr(_shell(), "kernel", None) is not None

    def has_widgets(self) -> bool:
        """Whether what the live card is made of is installed."""
        return find_spec("anywidget") is not None and find_spec("ipywidgets") is not None

    def make_card(self, request: SinkRequest) -> RunCard:
        """Return a live card."""
        return RunCard(request, CardFace(request, _display(), self._make_widget), self._ticker)

    def make_html(self, request: SinkRequest) -> RunCard:
        """Return a display that is only HTML."""
        return RunCard(request, HtmlFace(request, _display()), self._ticker)

    def show_cluster(self, client: Any) -> None:
        """Show the live card of a cluster, or its table where no card can live."""
        kind = choose_sink(
            progress=None,
            is_terminal=False,
            environ=os.environ,
            is_notebook=True,
            has_widgets=self.has_widgets(),
        )
        if client.is_closed or kind is not SinkKind.CARD:
            _display()({"text/plain": repr(client), "text/html": client._repr_html_()}, raw=True)
            return
        from gearmap.notebook.clustercard import BusyKernel, ClusterCard

        card = self._clusters.get(client)
        if card is None:
            card = self._clusters[client] = ClusterCard(client, self._make_cluster_widget, BusyKernel())
        card.show(_display())

    def _make_cluster_widget(self, **traits: Any) -> Any:
        if self._cluster_class is None:
            self._cluster_class = _cluster_class()
        return self._cluster_class(**traits)

    def _make_widget(self, **traits: Any) -> Any:
        if self._widget_class is None:
            self._widget_class = _card_class()
        return self._widget_class(**traits)


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _display() -> Any:
    from IPython.display import display

    return display


def _cluster_class() -> Any:
    import anywidget
    import traitlets

    class ClusterCardWidget(anywidget.AnyWidget):
        _esm = _source("dom.js") + _source("cluster.js")
        _css = _source("card.css") + _source("cluster.css")
        state = traitlets.Dict().tag(sync=True)

    return ClusterCardWidget


def _source(name: str) -> str:
    return files("gearmap.notebook").joinpath(name).read_text(encoding="utf-8")


def _card_class() -> Any:
    import anywidget
    import traitlets

    class RunCardWidget(anywidget.AnyWidget):
        _esm = _source("dom.js") + _source("card.js")
        _css = _source("card.css")
        state = traitlets.Dict().tag(sync=True)
        rows: Any = traitlets.List().tag(sync=True)
        text = traitlets.Unicode().tag(sync=True)
        can_cancel = traitlets.Bool().tag(sync=True)
        hides = traitlets.Unicode().tag(sync=True)

    return RunCardWidget
