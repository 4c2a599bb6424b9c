"""How clicks on a widget reach it while the cell that shows it is busy."""

from __future__ import annotations

from typing import Any

__all__ = ["route_directly"]


def route_directly(widget: Any) -> None:
    """Have clicks delivered while the cell that shows the widget is busy.

    ipykernel 7.4 sends them to the shell that has published last on the widget's channel, which is the busy one; the
    front end names another. Where there is no such detour there is nothing to do.
    """
    comm = getattr(widget, "comm", None)
    if comm is not None and hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, default: default
