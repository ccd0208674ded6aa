"""The daemon's side of its flight recorder: makes the ring, starts the writer and sees that there always is
one."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from sigd import __version__
from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.recording.ring import Ring
from sigd.daemon.recording.status import RecorderStatus
from sigd.daemon.recording.tap import Taps
from sigd.daemon.runtime.child_process import Restarts, how_it_ended
from sigd.models.processor import instruction_sets
from sigd.wire.recording.format import (
    RING_ERROR_WORD,
    RING_HEADER_BYTES,
    RING_KEEPER_WORD,
    RING_SUFFIX,
    RING_TAIL_WORD,
    RingHeader,
)
from sigd.wire.recording.reader import About

if TYPE_CHECKING:
    from sigd.daemon.config.choices import LogFormat
    from sigd.daemon.config.config import Config
    from sigd.daemon.config.recorder import RecorderConfig
    from sigd.daemon.runtime.child_process import Starter

log = logging.getLogger(__name__)

MEMORY: Final = Path("/dev/shm")
"""A file there is memory, and stays when its process has ended."""
MEMORY_VARIABLE: Final = "RUNTIME_DIRECTORY"
"""Where the service manager has a place for that, which no other service cleans up (systemd/sigd.service)."""
START_TIMEOUT_S: Final = 10.0
END_TIMEOUT_S: Final = 3.0
"""Less than the service manager's patience (systemd/sigd.service)."""
_RUNTIMES: Final = ("onnxruntime", "tensorrt", "tensorrt-rtx", "numpy")


class Recorder:
    """From `start()` to `close()`.

    Attributes:
        taps: make what records a client.

    Args:
        ring: in memory, under `link` in the directory of the recordings.
    """

    def __init__(
        self, config: RecorderConfig, log_format: LogFormat, link: Path, ring: Ring, starter: Starter
    ) -> None:
        self._config = config
        self._log_format = log_format
        self._link = link
        self._ring = ring
        self._starter = starter
        self.taps = Taps(ring)
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._restarts = Restarts(
            f"the writer of {link}", "the ring holds what is recorded until then", self._start_again
        )
        self._writer, self._pidfd = self._start_writer()

    @classmethod
    def start(cls, config: RecorderConfig, log_format: LogFormat, starter: Starter) -> Recorder:
        """With a writer that is ready. A disk that is full is its business, not this one's.

        Raises:
            UsageError: the directory cannot be made or written to.
            MissingDependency: no memory for the ring, or the writer did not start.
        """
        directory = Path(config.directory).absolute()
        recording_id = secrets.token_bytes(16)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{recording_id.hex()[:8]}"
        link = directory / (name + RING_SUFFIX)
        memory = memory_in(os.environ)
        path = memory / f"sigd-{name}{RING_SUFFIX}"
        header = RingHeader(
            config.ring_bytes, config.stretch_bytes, recording_id, msgspec.json.encode(_about())
        )
        try:
            ring = Ring.create(path, header)
        except OSError as error:
            raise _no_memory(memory, config, error.strerror) from None
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            link.symlink_to(path)
        except OSError as error:
            path.unlink()
            raise UsageError(
                f"{directory}: recordings cannot be written there: {error.strerror}; expected a directory"
                " that"
                " this user may write to"
            ) from None
        recorder = cls(config, log_format, link, ring, starter)
        recorder._wait_for_writer()
        return recorder

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on start another writer where one ends; that holds the loop up for a millisecond or
        two."""
        self._loop = loop
        loop.add_reader(self._pidfd, self._writer_ended)

    def status(self) -> RecorderStatus:
        """As it is now."""
        ring = self._ring
        error = ring.words[RING_ERROR_WORD]
        return RecorderStatus(
            recording=os.fsencode(self._link.with_suffix("")).decode("utf-8", "replace"),
            requests=ring.requests - ring.dropped,
            dropped=ring.dropped,
            written_bytes=ring.head,
            stored_bytes=ring.words[RING_TAIL_WORD],
            paused_because=os.strerror(error) if error else "",
        )

    def close(self) -> None:
        """Nothing more is recorded. Waits a while for the writer to store the rest; what takes longer goes on
        alone."""
        self._closing = True
        self._unwatch()
        self._restarts.stop()
        self._ring.end()
        self._ring.close()
        self._let_go_of_writer()
        try:
            code = self._writer.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning(
                "the writer of %s is still storing, %d bytes are left; it ends by itself",
                self._link,
                self._ring.head - self._ring.words[RING_TAIL_WORD],
            )
            return
        if code:
            log.error("the writer of %s ended with %d: not all that was recorded is stored", self._link, code)

    # -- the writer --------------------------------------------------------------------------------------

    def _start_writer(self) -> tuple[subprocess.Popen[bytes], int]:
        self._ring.words[RING_KEEPER_WORD] = 0
        started = self._starter.start(
            "sigd.daemon.recording.writer",
            [
                str(self._link.parent),
                self._link.stem,
                str(self._config.total_bytes),
                str(self._config.sync_ms),
                self._log_format.value,
            ],
            # Its end is how the writer knows that this process has ended, however it did.
            stdin=subprocess.PIPE,
        )
        self._restarts.started()
        return started

    def _wait_for_writer(self) -> None:
        """Raises MissingDependency where it does not start."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._ring.words[RING_KEEPER_WORD]:
            code = self._writer.poll()
            if code is None and time.monotonic() < deadline_s:
                time.sleep(0.002)
                continue
            what = f"ended with {code}" if code is not None else f"was not ready in {START_TIMEOUT_S:g} s"
            self._unwatch()
            self._let_go_of_writer()
            self._writer.kill()
            self._writer.wait()
            self._link.resolve().unlink(missing_ok=True)
            self._link.unlink(missing_ok=True)
            raise MissingDependency(f"{self._link.parent}: the process that stores recordings there {what}")

    def _writer_ended(self) -> None:
        """The ring holds what is recorded until there is another one."""
        assert self._loop is not None
        self._unwatch()
        self._let_go_of_writer()
        self._restarts.ended(self._loop, how_it_ended(self._writer.wait()))

    def _start_again(self) -> None:
        assert self._loop is not None
        self._writer, self._pidfd = self._start_writer()
        self.watch(self._loop)

    def _let_go_of_writer(self) -> None:
        if self._writer.stdin is not None:
            self._writer.stdin.close()

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def start_recorder(config: Config, loop: asyncio.AbstractEventLoop, starter: Starter) -> Recorder | None:
    """The recorder that the configuration asks for, if any. Raises as `Recorder.start`."""
    if not config.recorder.directory:
        return None
    recorder = Recorder.start(config.recorder, config.log_format, starter)
    recorder.watch(loop)
    return recorder


def memory_in(environ: Mapping[str, str]) -> Path:
    """Where rings are made: the first of the service manager's directories, or MEMORY."""
    named = environ.get(MEMORY_VARIABLE, "").split(":")[0]
    return Path(named) if named else MEMORY


def check_recorder(config: RecorderConfig, memory: Path, made: Sequence[Path] = ()) -> None:
    """Whether it could record, as far as that can be told without doing it.

    Args:
        memory: where its ring would be; the nearest directory that is there stands for it.
        made: directories that the service manager makes for the daemon, and that may not be there yet.

    Raises:
        UsageError: recordings may not be written to their directory.
        MissingDependency: the ring does not fit into memory.
    """
    directory = Path(config.directory)
    existing = _existing(directory)
    to_be_made = any(directory.is_relative_to(place) and not place.exists() for place in made)
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    if not (writable or to_be_made):
        raise UsageError(
            f"{directory}: recordings cannot be written there: {existing} is no directory that this user may"
            " write to"
        )
    if memory == MEMORY and not memory.is_dir():
        raise _no_memory(memory, config, "No such file or directory")
    found = os.statvfs(_existing(memory))
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < RING_HEADER_BYTES + config.ring_bytes:
        raise _no_memory(memory, config, f"{free_bytes / 2**20:.1f} MiB are free")


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(step for step in (path.absolute(), *path.absolute().parents) if step.exists())


def _no_memory(memory: Path, config: RecorderConfig, reason: str | None) -> MissingDependency:
    if not memory.is_dir():
        cure = (
            f"mount memory there (mount -t tmpfs tmpfs {memory}; a container has it with --shm-size), or name"
            " a"
            f" directory of a tmpfs in {MEMORY_VARIABLE}"
        )
    else:
        cure = f"make room in {memory} (of a container: --shm-size), or make recorder.ring_mib smaller"
    return MissingDependency(
        f"{memory}: no {config.ring_mib} MiB of memory for what is recorded ({reason}): {cure}"
    )


def _about() -> About:
    runtimes = {}
    for package in _RUNTIMES:
        try:
            runtimes[package] = version(package)
        except PackageNotFoundError:
            continue
    return About(
        sigd=__version__,
        host=platform.node(),
        pid=os.getpid(),
        processor=instruction_sets(),
        runtimes=runtimes,
    )
