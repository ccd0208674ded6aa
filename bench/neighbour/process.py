"""The neighbour: a command in a process group of its own, started for each block and ended after it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sigd.bench.errors import BadRequest, PeerFailed

STOP_TIMEOUT_S = 5.0
_SAID_BYTES_MAX = 2000


def words_of(command: str) -> list[str]:
    """The command line as words.

    Raises:
        BadRequest: it is empty, or a quotation mark has no partner.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadRequest(f"--neighbour {command!r}: {error}") from error
    if not words:
        raise BadRequest("--neighbour is empty: expected a command, as on a command line")
    return words


@contextmanager
def running(words: list[str], settle_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """The command while the block runs; it has `settle_s` seconds to begin its work.

    Raises:
        BadRequest: there is no such program.
        PeerFailed: it ended before its time; the message has what it wrote last.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise BadRequest(f"--neighbour: {words[0]}: {error.strerror}") from error
        try:
            time.sleep(settle_s)
            _check_alive(process, said.fileno())
            yield process
            _check_alive(process, said.fileno())
        finally:
            _end(process)


def _check_alive(process: subprocess.Popen[bytes], said: int) -> None:
    code = process.poll()
    if code is None:
        return
    size = os.fstat(said).st_size
    words = os.pread(said, _SAID_BYTES_MAX, max(0, size - _SAID_BYTES_MAX)).decode(errors="replace").strip()
    raise PeerFailed(
        f"the neighbour ended with {code} before its block did; expected a command that works until"
        f" it is told to"
        f" end{': ' + words if words else ''}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: a shell's children work on without it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
            break
    # The first of the group may have ended at SIGTERM while its children did not.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
