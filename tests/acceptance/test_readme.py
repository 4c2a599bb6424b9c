"""The README tells the truth: its Python runs, its commands and options exist, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from acceptance_support import REPOSITORY

from gearmap.cli import commands

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CHANGELOG.md", "ARCHITECTURE.md", "SECURITY.md")
# Programs in shell lines that are not ours.
STRANGERS = {"pip", "jupyter", "scp"}


def blocks(language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def command_lines() -> list[str]:
    """Return the lines of the shell blocks, without prompt and comment."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [re.sub(r"\s+#.*$", "", re.sub(r"^\w*\$\s+", "", line)) for line in lines]


def test_every_block_is_of_a_language_that_is_checked() -> None:
    assert set(re.findall(r"^```(\w*)$", README, re.MULTILINE)) == {"python", "console", ""}
    assert README.count("```") % 2 == 0
    assert len(blocks("python")) >= 2
    assert len(blocks("console")) >= 3


@pytest.mark.slow
def test_the_python_blocks_run_one_after_the_other_as_a_script_without_a_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")

    ended = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^local cluster, 2 workers, (gearmand [\w.+]+|embedded) server$", ended.stdout, re.M)


@pytest.mark.parametrize("line", command_lines())
def test_a_shell_line_names_commands_and_options_that_exist(line: str) -> None:
    words = shlex.split(line)
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        words = words[1:]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "gearmap":
        check_command(words[1:])
    else:
        assert words[0] in STRANGERS


def check_command(words: list[str]) -> None:
    """Parse words as the command line would, down to the last subcommand, without running it."""
    command: click.Command = commands
    context: click.Context | None = None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        command = found
    command.make_context(command.name, words, parent=context).close()


def test_the_check_of_commands_can_fail() -> None:
    with pytest.raises(click.UsageError):
        check_command(["worker", "--no-such-option"])
    with pytest.raises(AssertionError):
        check_command(["no-such-command"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_to_a_file_leads_to_one(document: str) -> None:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]

    missing = [target for target in targets if "://" not in target and target and not (REPOSITORY / target).exists()]

    assert missing == []


def test_the_names_that_the_readme_uses_exist() -> None:
    import gearmap

    names = set(re.findall(r"\bgearmap\.(\w+)", README)) - {"map"}

    assert names
    assert all(hasattr(gearmap, name) for name in names)
