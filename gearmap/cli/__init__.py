"""The command line: `gearmap worker`, `server`, `status`, `doctor`, `demo`, `key`.

What lives here: the group of commands and how their errors end. What must not: any command's work.
Law of the file: nothing heavier than click is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from gearmap import __version__
from gearmap.cli.demo import demo_command
from gearmap.cli.doctor import doctor_command
from gearmap.cli.key import key_commands
from gearmap.cli.server import server_command
from gearmap.cli.status import status_command
from gearmap.cli.worker import worker_command
from gearmap.errors import ConfigurationError, GearmapError

__all__ = ["main", "run"]

# What a shell reports for a program that Ctrl-C ended. (Run as a module, Python ends by the signal itself should it
# have come while a string was executed, as `dataclasses` does.)
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gearmap")
def commands() -> None:
    """Run Python functions over many machines, through a Gearman job server.

    \b
    On one machine nothing has to be started: `gearmap demo` shows it.
    For a cluster, in three terminals:
      head$  gearmap server --host 0.0.0.0
      node$  gearmap worker -s head
      you$   GEARMAP_SERVERS=head jupyter lab
    """


for _command in (demo_command, server_command, worker_command, status_command, doctor_command, key_commands):
    commands.add_command(_command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit status."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    An error of ours is one line on standard error: status 2 if the caller asked for something impossible, else 1.
    """
    try:
        result = commands.main(args=None if argv is None else list(argv), prog_name="gearmap", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except GearmapError as error:
        print(f"gearmap: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigurationError) else 1
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except RuntimeError as error:
        # Before Python 3.12 that is what Ctrl-C becomes while a class is made, as in modules that are imported late.
        if isinstance(error.__cause__, KeyboardInterrupt):
            return INTERRUPTED
        raise
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0
