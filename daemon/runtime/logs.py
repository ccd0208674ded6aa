"""The log on standard error: words for a person, priorities for the journal, or JSON for a collector of logs.

    text     2026-01-31T09:30:00.123456Z sigd WARNING client 'engine' did not read its answers ...
    journal  <4>client 'engine' did not read its answers ...             see sd-daemon(3)
    json     {"time":"2026-01-31T09:30:00.123456Z","level":"warning","logger":"sigd.daemon","message":...}

A client chooses words that end up here, so no character of a message may begin a new line or move a
terminal's cursor; what follows a message (a traceback) is indented. Of one message a few come through, then
only their number: a client that fails a thousand times a second fills no disk. The reader of standard error
may have stopped to read: the loop does not wait for it; messages that it missed are counted, and the log says
    so later.
"""

from __future__ import annotations

import logging
import os
import select
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from sigd.daemon.config.choices import LogFormat
from sigd.daemon.errors import UsageError
from sigd.daemon.runtime.text import printable

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

FORMAT_VARIABLE: Final = "SIGD_LOG"
STANDARD_ERROR: Final = 2
BURST: Final = 5
"""So many of one message come through in each interval."""
INTERVAL_NS: Final = 10_000_000_000
OVERDUE_LOOK_S: Final = 1.0
KINDS_MAX: Final = 256
"""Messages that are watched at a time; past them all of one logger and level count as one."""
WRITE_BYTES: Final = select.PIPE_BUF
"""A pipe that can be written to takes so many bytes without a wait."""
LAST_WORDS_WAIT_MS: Final = 1000
"""How long a critical message, after which the process ends, waits for its reader."""


_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO + 1, 5),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
"""Lowest level of Python's to the priority of sd-daemon(3), worst first."""


class Entry(NamedTuple):
    """One record of the log, rendered.

    Attributes:
        template: the message before anything was put into it; the same for all of a kind.
        message: printable.
        trace: the lines of a traceback, printable.
    """

    level: int
    logger: str
    created_s: float
    template: str
    message: str
    trace: tuple[str, ...] = ()


def _utc(created_s: float) -> str:
    return datetime.fromtimestamp(created_s, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _as_text(entry: Entry) -> str:
    return "".join(
        (
            f"{_utc(entry.created_s)} sigd {logging.getLevelName(entry.level)} {entry.message}\n",
            *(f"  {line}\n" for line in entry.trace),
        )
    )


def _as_journal(entry: Entry) -> str:
    # Each line is a message of its own there, so each carries the priority.
    mark = f"<{priority(entry.level)}>"
    return "".join((f"{mark}{entry.message}\n", *(f"{mark}  {line}\n" for line in entry.trace)))


def _as_json(entry: Entry) -> str:
    fields = {
        "time": _utc(entry.created_s),
        "level": logging.getLevelName(entry.level).lower(),
        "logger": entry.logger,
        "message": entry.message,
        "template": entry.template,
    }
    if entry.trace:
        fields["traceback"] = "\n".join(entry.trace)
    return msgspec.json.encode(fields).decode() + "\n"


_RENDERERS: Final[Mapping[LogFormat, Callable[[Entry], str]]] = {
    LogFormat.TEXT: _as_text,
    LogFormat.JSON: _as_json,
    LogFormat.JOURNAL: _as_journal,
}


@dataclass(slots=True)
class _Kind:
    """How often one message has come since `since_ns`."""

    since_ns: int
    seen: int
    last: Entry


class RateLimit:
    """Lets `BURST` of each kind of message through in an interval and counts the others. No I/O."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def admit(self, entry: Entry, now_ns: int) -> bool:
        """Whether it comes through. Critical messages always do."""
        if entry.level >= logging.CRITICAL:
            return True
        key = (entry.logger, entry.level, entry.template)
        if key not in self._kinds and len(self._kinds) >= KINDS_MAX:
            key = (entry.logger, entry.level, "")
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(now_ns, 0, entry)
        kind.seen += 1
        kind.last = entry
        return kind.seen <= BURST

    def overdue(self, now_ns: int) -> list[Entry]:
        """What is to be said about intervals that are over; their kinds start anew."""
        notes = []
        for key, kind in list(self._kinds.items()):
            if now_ns - kind.since_ns >= INTERVAL_NS:
                del self._kinds[key]
                if kind.seen > BURST:
                    notes.append(_note(kind))
        return notes


def _note(kind: _Kind) -> Entry:
    last = kind.last
    words = f"suppressed {kind.seen - BURST} similar, the last: {last.message}"
    return last._replace(message=words, trace=())


class LineHandler(logging.Handler):
    """Writes records to a descriptor, as many as one may, and never waits for the reader.

    Args:
        log_format: any but AUTO.
        clock: CLOCK_MONOTONIC in ns.
    """

    def __init__(
        self,
        descriptor: int,
        log_format: LogFormat,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._render = _RENDERERS[log_format]
        self._clock = clock
        self._limit = RateLimit()
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            entry = _entry(record)
            now_ns = self._clock()
            for note in self._limit.overdue(now_ns):
                self._write(note)
            if self._limit.admit(entry, now_ns):
                self._write(entry)
        except Exception:  # noqa: BLE001  the log may not end what it tells of
            self.handleError(record)

    def say_overdue(self) -> None:
        """Say what was held back of intervals that are over."""
        self.acquire()
        try:
            for note in self._limit.overdue(self._clock()):
                self._write(note)
        finally:
            self.release()

    def close(self) -> None:
        """Say what has been held back."""
        for note in self._limit.overdue(self._clock() + INTERVAL_NS):
            self._write(note)
        super().close()

    def _write(self, entry: Entry) -> None:
        text = self._render(entry)
        if self._lost:
            words = f"{self._lost} messages were lost: standard error was not read"
            missed = Entry(logging.WARNING, __name__, entry.created_s, words, words)
            text = self._render(missed) + text
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        wait_ms = LAST_WORDS_WAIT_MS if entry.level >= logging.CRITICAL else 0
        while data:
            if not self._poll.poll(wait_ms):
                self._lost += 1
                return
            try:
                data = data[os.write(self._descriptor, data[:WRITE_BYTES]) :]
            except OSError:
                # Closed, or on a full disk: there is no one to tell.
                self._lost += 1
                return
        self._lost = 0


class Overdue:
    """Says what the log has held back though nothing more comes: a burst would else be counted hours later,
    or never."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        self._timer = self._loop.call_later(OVERDUE_LOOK_S, self._look)

    def stop(self) -> None:
        """End; `LineHandler.close` says the rest."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, LineHandler):
                handler.say_overdue()
        self.start()


def start_logging(level: int, asked: LogFormat, environ: Mapping[str, str]) -> None:
    """Log to standard error from now on, Python's warnings too.

    Raises:
        UsageError: SIGD_LOG names no format.
    """
    chosen = choose(asked, environ, STANDARD_ERROR)
    logging.basicConfig(level=level, handlers=[LineHandler(STANDARD_ERROR, chosen)], force=True)
    logging.captureWarnings(True)


def is_logging() -> bool:
    """Whether `start_logging` was called in this process."""
    return any(isinstance(handler, LineHandler) for handler in logging.getLogger().handlers)


def choose(asked: LogFormat, environ: Mapping[str, str], descriptor: int) -> LogFormat:
    """What was asked for; else what SIGD_LOG says; else what fits the other end of the descriptor.

    Raises:
        UsageError: SIGD_LOG names no format.
    """
    if asked is LogFormat.AUTO:
        named = environ.get(FORMAT_VARIABLE, "")
        try:
            asked = LogFormat(named or LogFormat.AUTO)
        except ValueError:
            known = ", ".join(log_format.value for log_format in LogFormat)
            raise UsageError(f"{FORMAT_VARIABLE}={named!r} names no format of the log: {known} do") from None
    if asked is LogFormat.AUTO:
        return LogFormat.JOURNAL if journal_reads(descriptor, environ) else LogFormat.TEXT
    return asked


def journal_reads(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether the journal is at the other end of the descriptor: JOURNAL_STREAM is its socket's
    "device:inode"."""
    try:
        connected = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{connected.st_dev}:{connected.st_ino}"


def priority(level: int) -> int:
    """The priority of sd-daemon(3) for a level of Python's: 2 is critical, 7 for debugging."""
    return next(syslog for least, syslog in _PRIORITIES if level >= least)


def _entry(record: logging.LogRecord) -> Entry:
    trace: list[str] = []
    if record.exc_info and record.exc_info[1] is not None:
        for part in traceback.format_exception(record.exc_info[1]):
            trace.extend(printable(line) for line in part.split("\n") if line)
    return Entry(
        record.levelno,
        record.name,
        record.created,
        printable(str(record.msg)),
        printable(record.getMessage()),
        tuple(trace),
    )
