"""What gearmap needs is pinned, by the hashes of the files, to versions that it says it works with."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def needed() -> list[Requirement]:
    (listed,) = re.findall(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE
    )
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', listed)]


def pinned() -> dict[str, list[tuple[str, list[str]]]]:
    """Return versions and hashes by name; some have several versions, for different Pythons."""
    text = (ROOT / "deploy" / "requirements.txt").read_text().replace("\\\n", " ")
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            words = line.split(" --hash=")
            requirement = Requirement(words[0].strip())
            (only,) = requirement.specifier
            assert only.operator == "==", line
            found.setdefault(canonicalize_name(requirement.name), []).append((only.version, words[1:]))
    return found


def test_every_dependency_is_pinned_to_a_version_that_will_do() -> None:
    versions = pinned()
    assert len(needed()) > 5
    for requirement in needed():
        for version, _ in versions[canonicalize_name(requirement.name)]:
            assert requirement.specifier.contains(version), (requirement, version)


def test_every_file_that_may_be_installed_has_its_hash() -> None:
    for name, versions in pinned().items():
        for version, hashes in versions:
            assert hashes, (name, version)
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each.strip()) for each in hashes), (name, version)
