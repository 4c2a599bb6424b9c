"""Gearman packets: constants, building them, and taking bodies apart.

What lives here: the wire format as the server sees it. What must not: sockets, clocks, any meaning of a packet; cutting
a stream into packets is `reader`'s.

Rule 1: a large body is `LargeData` and goes on as such, never as a copy.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Final, TypeAlias

from gearmap.jobserver.blocks import LargeData

Data: TypeAlias = "bytes | LargeData"

CAN_DO: Final = 1
CANT_DO: Final = 2
RESET_ABILITIES: Final = 3
PRE_SLEEP: Final = 4
NOOP: Final = 6
SUBMIT_JOB: Final = 7
JOB_CREATED: Final = 8
GRAB_JOB: Final = 9
NO_JOB: Final = 10
JOB_ASSIGN: Final = 11
WORK_STATUS: Final = 12
WORK_COMPLETE: Final = 13
WORK_FAIL: Final = 14
GET_STATUS: Final = 15
ECHO_REQ: Final = 16
ECHO_RES: Final = 17
SUBMIT_JOB_BG: Final = 18
ERROR: Final = 19
STATUS_RES: Final = 20
SUBMIT_JOB_HIGH: Final = 21
SET_CLIENT_ID: Final = 22
CAN_DO_TIMEOUT: Final = 23
ALL_YOURS: Final = 24
WORK_EXCEPTION: Final = 25
OPTION_REQ: Final = 26
OPTION_RES: Final = 27
WORK_DATA: Final = 28
WORK_WARNING: Final = 29
GRAB_JOB_UNIQ: Final = 30
JOB_ASSIGN_UNIQ: Final = 31
SUBMIT_JOB_HIGH_BG: Final = 32
SUBMIT_JOB_LOW: Final = 33
SUBMIT_JOB_LOW_BG: Final = 34
GRAB_JOB_ALL: Final = 39
JOB_ASSIGN_ALL: Final = 40
GET_STATUS_UNIQUE: Final = 41
STATUS_RES_UNIQUE: Final = 42

HIGHEST_COMMAND: Final = 42

# Requests that end in data of any size; the others are short.
WITH_DATA: Final = frozenset(
    (
        SUBMIT_JOB,
        SUBMIT_JOB_BG,
        SUBMIT_JOB_HIGH,
        SUBMIT_JOB_HIGH_BG,
        SUBMIT_JOB_LOW,
        SUBMIT_JOB_LOW_BG,
        WORK_COMPLETE,
        WORK_DATA,
        WORK_WARNING,
        WORK_EXCEPTION,
        ECHO_REQ,
    )
)

# Stand where a packet has its command number: a line of the admin protocol, and a packet with the magic of responses.
TEXT_LINE: Final = -1
RESPONSE_MAGIC: Final = -2

HEADER_BYTES: Final = 12
REQUEST_MAGIC: Final = b"\0REQ"
REPLY_MAGIC: Final = b"\0RES"

# Function, unique and handle stand at the beginning of a body and are short; longer ones are not looked for.
MAX_ARGS_BYTES: Final = 16 * 1024

HEADER: Final = Struct(">4sII")


def split_args(body: Data, n_args: int) -> list[bytes] | None:
    """Split a body into `n_args` NUL-terminated arguments and nothing else.

    Returns None if there are fewer. The last argument has no NUL and may contain some; it is `bytes` and therefore a
    copy, so this is for bodies whose last argument is small. For data see `split_data`.
    """
    args = bytes(body).split(b"\0", n_args - 1)
    return args if len(args) == n_args else None


def split_data(body: Data, n_args: int) -> tuple[list[bytes], Data] | None:
    """Split a body into `n_args` arguments and the data behind them; None if an argument lacks its NUL.

    The data of a large body is a part of it, not a copy.
    """
    if isinstance(body, bytes):
        parts = body.split(b"\0", n_args)
        if len(parts) <= n_args:
            return None
        data = parts.pop()
        return parts, data
    parts = bytes(body.views[0][:MAX_ARGS_BYTES]).split(b"\0", n_args)
    if len(parts) <= n_args:
        return None
    parts.pop()
    return parts, body.behind(sum(map(len, parts)) + n_args)


def reply(command: int, body: bytes = b"") -> bytes:
    """Return a response packet."""
    return HEADER.pack(REPLY_MAGIC, command, len(body)) + body


def reply_head(command: int, args: bytes, data_bytes: int) -> bytes:
    """Return the beginning of a response packet whose data of `data_bytes` bytes follows."""
    return HEADER.pack(REPLY_MAGIC, command, len(args) + data_bytes) + args


def error_reply(code: bytes, text: bytes) -> bytes:
    """Return an ERROR packet."""
    return reply(ERROR, code + b"\0" + text)


def leading_int(text: bytes) -> int:
    """Return the number that a text begins with, 0 if none, as C's `atoi`.

    >>> leading_int(b"12 of 20"), leading_int(b"0.5"), leading_int(b"many")
    (12, 0, 0)
    """
    # Longer numbers than this mean nothing to the protocol, and Python would refuse very long ones.
    match = re.match(rb"\s*([-+]?[0-9]{1,19})", text)
    return int(match[1]) if match else 0
