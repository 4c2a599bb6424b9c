"""One call as it was sent: pickled, and described where the user's objects may be unpickled.

Law of the file: it is taken down in the driver thread, which unpickles nothing; `describe` is for whoever asks what
became of the task, and never raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gearmap.runtime.placed import payload_here
from gearmap.wire.jobheader import BlockKind
from gearmap.wire.outcome import describe_call
from gearmap.wire.serializer import loads

__all__ = ["SentCall"]


@dataclass(frozen=True, slots=True)
class SentCall:
    """A function and arguments.

    Attributes
    ----------
    function
        Its payload.
    kind
        How `arguments` hold what the task was called with.
    arguments
        The payload of the task's whole block; of the call alone, if blocks of that kind are pickled call by call.
    offset
        Which task of the block it is.
    """

    function: Any
    kind: BlockKind
    arguments: Any
    offset: int

    def describe(self) -> str:
        """Return the call on one line, or nothing if it does not unpickle here."""
        try:
            fn, value = loads(payload_here(self.function)), loads(payload_here(self.arguments))
            if self.kind is BlockKind.CALLS:
                args, kwargs = value
            elif self.kind is BlockKind.ROWS:
                args, kwargs = value[self.offset], {}
            else:
                args, kwargs = [column[self.offset] for column in value], {}
            return describe_call(fn, args, kwargs)
        except Exception:  # whatever user code does when it is unpickled or asked for its text
            return ""
