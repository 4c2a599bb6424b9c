"""Runs are shown in the notebook that this process is the kernel of.

Law of the file: IPython and the widgets are imported when something is shown, never before.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from gearmap.display import registry
from gearmap.display.registry import SinkRequest
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
        install_formatters(formatters.formatters["text/html"], formatters.ipython_display_formatter)


class KernelDisplay:
    """Makes the displays of one kernel."""

    def __init__(self) -> None:
        self._ticker = Ticker()
        self._widget_class: Any = None

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


def _card_class() -> Any:
    import anywidget
    import traitlets

    folder = files("gearmap.notebook")

    class RunCardWidget(anywidget.AnyWidget):
        _esm = folder.joinpath("card.js").read_text(encoding="utf-8")
        _css = folder.joinpath("card.css").read_text(encoding="utf-8")
        state = traitlets.Dict().tag(sync=True)
        rows: Any = traitlets.List().tag(sync=True)
        text = traitlets.Unicode().tag(sync=True)
        can_cancel = traitlets.Bool().tag(sync=True)
        hides = traitlets.Unicode().tag(sync=True)

    return RunCardWidget
