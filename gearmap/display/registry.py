"""Who shows runs in a notebook: handed in from above, where notebooks are known.

Law of the file: one display at most, for this process; without one there is no notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gearmap.core.snapshot import ProgressSink

__all__ = ["Notebook", "SinkRequest", "register", "registered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkRequest:
    """What a display is made for.

    Attributes
    ----------
    title
        What the run is called.
    where
        Where its tasks run, in words.
    total
        How many tasks there are, if that is known.
    delay
        Seconds for which nothing is shown: a run that is over sooner needs no display.
    cancel
        Ends the run; may be called in any thread. None if nobody but the waiting thread can.
    """

    title: str
    where: str = ""
    total: int | None = None
    delay: float = 0.0
    cancel: Callable[[], object] | None = None


class Notebook(Protocol):
    """Shows runs in a notebook."""

    def is_here(self) -> bool:
        """Whether this process is the kernel of one."""

    def has_widgets(self) -> bool:
        """Whether the live card can be made."""

    def make_card(self, request: SinkRequest) -> ProgressSink:
        """Return a live card."""

    def make_html(self, request: SinkRequest) -> ProgressSink:
        """Return a display that is only HTML."""


_registered: list[Notebook] = []


def register(notebook: Notebook) -> None:
    """Have runs shown by it from now on."""
    _registered[:] = [notebook]


def registered() -> Notebook | None:
    """Return who shows runs in notebooks, or None."""
    return _registered[0] if _registered else None
