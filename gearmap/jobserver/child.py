"""A child process that lives by a pipe.

What lives here: starting it, reading its first line, ending it. What must not: which program it is, and whether it
answers.

Rule 1: the writing end of the pipe is in this process alone; when it closes, for whatever reason, the child ends.
Rule 2: only the process that started a child ends it.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from typing import IO, Final

__all__ = ["Child", "guarded"]

# gearmand cannot watch a pipe, so a shell does: $1 is the directory to clean up, the rest the command. The end of
# standard input ends the server, and the end of the server ends the shell. `read` is built in: no process is left over.
GUARD: Final = """
dir=$1; shift
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
echo "$server"
exec >&-
(
  read -r _ <&3
  kill "$server"
  sleep 5 &
  nap=$!
  trap 'kill "$nap"; exit' TERM
  wait "$nap"
  kill -9 "$server"
) 2>/dev/null &
watch=$!
wait "$server"
status=$?
kill "$watch" 2>/dev/null
rm -rf "$dir"
exit "$status"
"""


def guarded(command: list[str], directory: str) -> list[str]:
    """Return a command line that runs `command` until the end of standard input, and then removes `directory`.

    Its first line of output is the process id of `command`.
    """
    return ["/bin/sh", "-c", GUARD, "gearmap-guard", directory, *command]


class Child:
    """A started process, the pipe it lives by, and its temporary directory if it has one."""

    def __init__(self, command: list[str], directory: str | None = None) -> None:
        self.directory = directory
        self.owner_pid = os.getpid()
        # Not the process that we wait for where a shell stands between.
        self.server_pid: int | None = None
        # Open as long as the child is there, so that its last words can be read.
        self.messages: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            # A session of its own: Ctrl-C in our terminal is not meant for the server.
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.messages,
                start_new_session=True,
                close_fds=True,
            )
        except BaseException:
            self.messages.close()
            self._remove_directory()
            raise
        _close_lifeline_after_fork(self)

    @property
    def is_ours(self) -> bool:
        return os.getpid() == self.owner_pid

    @property
    def is_alive(self) -> bool:
        return self.is_ours and self.process.poll() is None

    def close_lifeline(self) -> None:
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                pass

    def read_line(self, deadline: float) -> bytes:
        """Return the first line of standard output; what came so far if it ends or the deadline passes."""
        stdout = self.process.stdout
        assert stdout is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                timeout = deadline - time.monotonic()
                if timeout <= 0 or not selector.select(timeout):
                    break
                data = os.read(stdout.fileno(), 4096)
                if not data:
                    break
                line += data
        return line

    def read_messages(self) -> str:
        """Return the last that the child wrote to standard error."""
        size = self.messages.seek(0, os.SEEK_END)
        self.messages.seek(max(0, size - 2000))
        return self.messages.read().decode(errors="replace").strip()

    def stop(self, timeout: float) -> None:
        self.close_lifeline()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self.release()

    def kill(self) -> None:
        # The server first: while its parent, perhaps a shell, is there, its number is not given to another process.
        if self.process.poll() is None and self.server_pid is not None:
            try:
                os.kill(self.server_pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.close_lifeline()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def release(self) -> None:
        """Close what is left in this process, and remove the directory."""
        self.close_lifeline()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.messages.close()
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def _close_lifeline_after_fork(child: Child) -> None:
    """Keep a forked process from holding the pipe, and with it the server, when its parent has died."""
    reference = weakref.ref(child)

    def close() -> None:
        child = reference()
        if child is not None:
            child.close_lifeline()

    os.register_at_fork(after_in_child=close)
