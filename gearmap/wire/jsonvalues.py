"""Headers as JSON: written compactly, read with suspicion.

What must not live here: what any field means.

Rule 1: reading is total. Anything but the expected type gives `EnvelopeError`, and nothing else is ever raised.
Rule 2: unknown keys are ignored, so that a newer writer can add some.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from gearmap.errors import EnvelopeError
from gearmap.wire.framing import Buffer

__all__ = [
    "Ranges",
    "as_int",
    "as_strings",
    "decode_object",
    "encode_object",
    "read_bool",
    "read_int",
    "read_list",
    "read_number",
    "read_ranges",
    "read_str",
]

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of positions, ascending and disjoint."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# ASCII on the wire: texts with lone surrogates (undecodable paths, broken messages) then survive as escapes.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def encode_object(value: Mapping[str, Any]) -> bytes:
    """Compact JSON; `value` has finite numbers only."""
    return _encode(value).encode("ascii")


def decode_object(data: Buffer) -> dict[str, Any]:
    """Read one JSON object.

    Raises
    ------
    EnvelopeError
        If `data` is anything else.
    """
    try:
        value = _decode(str(data, "utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise EnvelopeError(f"a header is not JSON: {error}") from None
    if type(value) is not dict:
        raise EnvelopeError(f"a header is not a JSON object but {type(value).__name__}")
    return value


def read_str(values: Mapping[str, Any], key: str, default: str = "") -> str:
    value = values.get(key, default)
    if type(value) is not str:
        raise _wrong(key, "a string", value)
    return value


def read_bool(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key, False)
    if type(value) is not bool:
        raise _wrong(key, "true or false", value)
    return value


def read_int(values: Mapping[str, Any], key: str, default: int = 0) -> int:
    """A number of something: an integer, not negative."""
    return as_int(values.get(key, default), key)


def read_number(values: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    """A finite number, not negative."""
    value = values.get(key, default)
    if type(value) is int and 0 <= value < 2**63:
        return float(value)
    if type(value) is not float or not math.isfinite(value) or value < 0:
        raise _wrong(key, "a number", value)
    return value


def read_list(values: Mapping[str, Any], key: str) -> list[Any]:
    value = values.get(key, [])
    if type(value) is not list:
        raise _wrong(key, "a list", value)
    return value


def read_ranges(value: Any, key: str) -> Ranges:
    """Half-open ranges, ascending, disjoint and not empty."""
    if type(value) is not list:
        raise _wrong(key, "a list of ranges", value)
    ranges: list[tuple[int, int]] = []
    last = 0
    for pair in value:
        if type(pair) is not list or len(pair) != 2:
            raise _wrong(key, "a list of ranges", value)
        start, stop = as_int(pair[0], key), as_int(pair[1], key)
        if not last <= start < stop:
            raise _wrong(key, "ascending ranges", value)
        ranges.append((start, stop))
        last = stop
    return tuple(ranges)


def as_int(value: Any, key: str) -> int:
    # Larger positions cannot be meant, and would not fit where they are stored.
    if type(value) is not int or not 0 <= value < 2**63:
        raise _wrong(key, "a whole number", value)
    return value


def as_strings(values: Sequence[Any], key: str) -> tuple[str, ...]:
    for value in values:
        if type(value) is not str:
            raise _wrong(key, "a list of strings", value)
    return tuple(values)


def _wrong(key: str, expected: str, value: Any) -> EnvelopeError:
    text = repr(value)
    return EnvelopeError(f"{key!r} in a header must be {expected}, got {text if len(text) < 80 else text[:80] + '...'}")
