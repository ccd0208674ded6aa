"""The writer: a process that takes what is recorded from the ring and stores it, for as long as there is a
daemon.

    python -m sigd.daemon.recording.writer DIRECTORY NAME TOTAL_BYTES SYNC_MS LOG_FORMAT

The daemon holds the other end of its standard input. When that ends, however the daemon ended, what is left
in the ring is stored, and the ring is removed. Signals that are meant for the daemon, and reach the whole
group, do not end it.

It holds no lock that another process waits for, and promises the daemon one thing: the ring says what is
stored. So it may be killed at any time, and the next one goes on where it stopped.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns
from typing import Final

from sigd.daemon.config.choices import LogFormat
from sigd.daemon.recording.segments import Segments
from sigd.daemon.runtime.child_process import ignore_signals_to_the_daemon
from sigd.daemon.runtime.logs import start_logging
from sigd.wire.errors import RecordingDamaged
from sigd.wire.recording.format import (
    BLOCK_RECORDS_BYTES,
    RECORD_HEADER_BYTES,
    RING_DROPPED_WORD,
    RING_ERROR_WORD,
    RING_HEAD_WORD,
    RING_HEADER_BYTES,
    RING_KEEPER_WORD,
    RING_SUFFIX,
    RING_TAIL_WORD,
    RingHeader,
    cut_records,
    stretches,
)

log = logging.getLogger(__name__)

LOOK_MS: Final = 50
"""How often it looks at the ring."""
RETRY_NS: Final = 1_000_000_000
LAST_TRIES_NS: Final = 4_000_000_000
"""How long it goes on trying to store once the daemon has ended."""


class Writer:
    """One ring and where it is stored.

    Args:
        sync_ns: how often what is written is forced to the disk; 0 never does.
        clock: CLOCK_MONOTONIC in ns.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        segments: Segments,
        header: RingHeader,
        sync_ns: int,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._view = memoryview(memory)
        self._words = self._view[:RING_HEADER_BYTES].cast("Q")
        self._segments = segments
        self._header = header
        self._sync_ns = sync_ns
        self._clock = clock
        self._seen = self._words[RING_TAIL_WORD]
        self._stored = False
        self._synced_ns = clock()
        self._retry_ns = 0

    @property
    def behind_bytes(self) -> int:
        """What is in the ring and not stored."""
        return self._words[RING_HEAD_WORD] - self._words[RING_TAIL_WORD]

    @property
    def empty(self) -> bool:
        """True where nothing is to be stored, but perhaps the daemon's end."""
        return self._words[RING_HEAD_WORD] <= RECORD_HEADER_BYTES

    def look(self) -> None:
        """Store what there was at the last look: by now every processor sees all of it, in whatever order it
        was written."""
        seen, self._seen = self._seen, self._words[RING_HEAD_WORD]
        self.store(seen)

    def store(self, end: int) -> None:
        """Store the stream up to position `end`. An error is said once, and tried again after `RETRY_NS`."""
        now_ns = self._clock()
        if now_ns < self._retry_ns:
            return
        try:
            self._store(end)
            if self._stored and self._sync_ns and now_ns - self._synced_ns >= self._sync_ns:
                self._segments.sync()
                self._synced_ns = now_ns
                self._stored = False
        except OSError as error:
            self._pause(error, now_ns)
        else:
            self._go_on()

    def ready(self) -> None:
        """Tell the daemon."""
        self._words[RING_KEEPER_WORD] = os.getpid()

    def finish(self) -> bool:
        """The daemon has ended: store all there is. Whether that could be done."""
        self.store(self._words[RING_HEAD_WORD])
        return not self.behind_bytes

    def close(self) -> None:
        """Let the ring go."""
        self._words.release()
        self._view.release()

    def _store(self, end: int) -> None:
        header, words = self._header, self._words
        # Before there is anything to store: whether there is room is better known at once.
        self._segments.open(words[RING_TAIL_WORD])
        for start, stop in stretches(words[RING_TAIL_WORD], end, header.capacity_bytes, header.stretch_bytes):
            start = min(self._segments.open(start), stop)
            if start < stop:
                offset = header.offset(start)
                with self._view[offset : offset + stop - start] as records:
                    for piece in cut_records(records, BLOCK_RECORDS_BYTES):
                        with piece:
                            self._segments.write(piece, start)
                            start += len(piece)
                self._stored = True
            words[RING_TAIL_WORD] = stop

    def _pause(self, error: OSError, now_ns: int) -> None:
        if not self._words[RING_ERROR_WORD]:
            log.error(
                "recording pauses, and goes on when it can: %s; until then what does not fit into the ring is"
                " lost",
                str(error),
            )
        self._words[RING_ERROR_WORD] = error.errno or errno.EIO
        self._retry_ns = now_ns + RETRY_NS

    def _go_on(self) -> None:
        if self._words[RING_ERROR_WORD]:
            self._words[RING_ERROR_WORD] = 0
            self._retry_ns = 0
            log.warning(
                "recording goes on; %d requests were not recorded since the daemon's start",
                self._words[RING_DROPPED_WORD],
            )


class RingFile:
    """A ring as the writer finds it: the link in the directory, the file in memory.

    Attributes:
        memory: the file, mapped.
    """

    def __init__(self, link: Path, lock: int) -> None:
        """
        Args:
            lock: fcntl.LOCK_SH, as the daemon and its writer have it; LOCK_EX is to be had when both are
                gone.

        Raises:
            BlockingIOError: it is not to be had.
            OSError: the ring is not there, or may not be opened.
            RecordingDamaged: it is no ring.
        """
        self._link = link
        self._descriptor = os.open(link, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, lock | fcntl.LOCK_NB)
            self.header = RingHeader.decode(os.pread(self._descriptor, RING_HEADER_BYTES, 0))
            self.memory = mmap.mmap(self._descriptor, RING_HEADER_BYTES + self.header.capacity_bytes)
        except BaseException:
            os.close(self._descriptor)
            raise

    def remove(self) -> None:
        """Remove the ring: all of it is stored."""
        self._link.resolve().unlink(missing_ok=True)
        self._link.unlink(missing_ok=True)

    def close(self) -> None:
        """Let it go."""
        self.memory.close()
        os.close(self._descriptor)


def keep(directory: Path, name: str, total_bytes: int, sync_ms: int) -> int:
    """Keep that recording until the daemon has ended; the exit code."""
    link = directory / (name + RING_SUFFIX)
    try:
        ring = RingFile(link, fcntl.LOCK_SH)
    except (OSError, RecordingDamaged) as error:
        log.error("%s: there is no ring to be stored: %s", link, error)
        return 1
    segments = Segments(directory, name, ring.header, total_bytes)
    writer = Writer(ring.memory, segments, ring.header, sync_ms * 1_000_000)
    writer.look()
    writer.ready()
    recover(directory, name, total_bytes)
    daemon = select.poll()
    daemon.register(sys.stdin.fileno(), select.POLLIN)
    while not daemon.poll(LOOK_MS):
        writer.look()
    return _end(link, ring, writer, segments)


def recover(directory: Path, but: str, total_bytes: int) -> None:
    """Store what daemons left behind that were killed together with their writers: every ring `but` that
    one."""
    for link in sorted(directory.glob("*" + RING_SUFFIX)):
        if link.stem == but:
            continue
        try:
            ring = RingFile(link, fcntl.LOCK_EX)
        except BlockingIOError:
            continue
        except FileNotFoundError:
            log.warning("%s: what was in its ring is lost: this machine has been started anew since", link)
            link.unlink(missing_ok=True)
            continue
        except (OSError, RecordingDamaged) as error:
            log.error("%s: what is in its ring cannot be stored: %s", link, error)
            continue
        segments = Segments(directory, link.stem, ring.header, total_bytes)
        writer = Writer(ring.memory, segments, ring.header, 0)
        behind_bytes = writer.behind_bytes
        if _end(link, ring, writer, segments) == 0:
            log.info("%s: stored %d bytes that a killed daemon left there", link, behind_bytes)


def _end(link: Path, ring: RingFile, writer: Writer, segments: Segments) -> int:
    """Store all there is, and let the ring go where that could be done; 0 then."""
    deadline_ns = monotonic_ns() + LAST_TRIES_NS
    while not writer.finish() and monotonic_ns() < deadline_ns:
        time.sleep(LOOK_MS / 1000)
    behind_bytes, empty = writer.behind_bytes, writer.empty
    writer.close()
    try:
        segments.close(discard=empty)
    except OSError as error:
        log.error("%s: its last segment could not be ended: %s", link, error)
    if behind_bytes:
        log.error(
            "%s: %d bytes are not stored; the next daemon that records there stores them",
            link,
            behind_bytes,
        )
    else:
        ring.remove()
    ring.close()
    return 1 if behind_bytes else 0


def go_before_the_daemon() -> None:
    """Have the kernel end the writer before the daemon where memory runs out, as far as it may ask."""
    adjust = Path("/proc/self/oom_score_adj")
    with suppress(OSError):
        adjust.write_text(str(max(int(adjust.read_text()), 0)))


def main(arguments: list[str]) -> int:
    """See the module."""
    directory, name, total_bytes, sync_ms, log_format = arguments
    ignore_signals_to_the_daemon()
    start_logging(logging.INFO, LogFormat(log_format), os.environ)
    go_before_the_daemon()
    return keep(Path(directory), name, int(total_bytes), int(sync_ms))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
