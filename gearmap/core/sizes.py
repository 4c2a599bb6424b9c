"""Numbers of bytes, as people read and write them. K, M, G and T are powers of 1024."""

from __future__ import annotations

import re

from gearmap.errors import ConfigurationError

__all__ = ["parse_bytes", "shown_bytes"]

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def shown_bytes(count: int) -> str:
    """Return a number of bytes for people.

    >>> shown_bytes(4 * 2**30), shown_bytes(45 * 2**20)
    ('4.0 GB', '45 MB')
    """
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def parse_bytes(text: str) -> int:
    """Read a number of bytes as people write it.

    Raises
    ------
    ConfigurationError
        If it is none.

    Examples
    --------
    >>> parse_bytes("4G"), parse_bytes("1.5 MiB"), parse_bytes("1000")
    (4294967296, 1572864, 1000)
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"memory is given like 4G or 512M, got {text!r}")
    return int(float(match[1]) * 1024 ** _POWERS[(match[2] or "").upper()])
