"""Numbers of bytes, both ways."""

from __future__ import annotations

import pytest

from gearmap.core.sizes import parse_bytes, shown_bytes
from gearmap.errors import ConfigurationError

KB, MB, GB = 2**10, 2**20, 2**30


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 MB"), (45 * MB, "45 MB"), (1023 * MB, "1023 MB"), (GB, "1.0 GB"), (int(15.6 * GB), "15.6 GB")],
)
def test_bytes_are_shown_in_the_unit_that_people_use(count: int, shown: str) -> None:
    assert shown_bytes(count) == shown


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4G", 4 * GB),
        ("4GB", 4 * GB),
        ("4GiB", 4 * GB),
        (" 4 gb ", 4 * GB),
        ("0.5g", GB // 2),
        ("512M", 512 * MB),
        ("1k", KB),
        ("2T", 2048 * GB),
        ("1000", 1000),
        ("1000B", 1000),
    ],
)
def test_people_write_bytes_in_many_ways(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "G", "4X", "-4G", "4G5", "four", "4,5G", "1e9", "nan", "50%"])
def test_what_is_no_number_of_bytes_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="like 4G or 512M, got"):
        parse_bytes(text)
