"""The log: what its lines look like, what cannot be forged in them, how many of one kind come through, who is
not waited for."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from sigd.daemon.config.choices import LogFormat
from sigd.daemon.errors import UsageError
from sigd.daemon.runtime import logs
from sigd.daemon.runtime.logs import BURST, INTERVAL_NS, KINDS_MAX, Entry, LineHandler, Overdue, RateLimit
from sigd.daemon.runtime.text import printable

TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (?=sigd )")
CUT_OFF = "client %r did not read its answers"


class Pipe:
    """A log that goes into a pipe, with a clock that stands still."""

    def __init__(self, log_format: LogFormat) -> None:
        self.now_ns = 0
        self.reading, self.writing = os.pipe()
        self.handler = LineHandler(self.writing, log_format, lambda: self.now_ns)
        self.logger = logging.getLogger("sigd.test")
        self.logger.handlers = [self.handler]
        self.logger.propagate = False
        self.logger.setLevel(logging.DEBUG)

    def lines(self) -> list[str]:
        """What has come since; of a text log, without the times."""
        os.set_blocking(self.reading, False)
        text = b""
        try:
            while part := os.read(self.reading, 1 << 20):
                text += part
        except BlockingIOError:
            pass
        assert text == b"" or text.endswith(b"\n")
        return [TIME.sub("", line) for line in text.decode().splitlines()]


@pytest.fixture
def pipe() -> Iterator[Callable[[LogFormat], Pipe]]:
    made: list[Pipe] = []

    def make(log_format: LogFormat) -> Pipe:
        made.append(Pipe(log_format))
        return made[-1]

    yield make
    for one in made:
        one.logger.handlers = []
        for descriptor in (one.reading, one.writing):
            os.close(descriptor)


def fail(logger: logging.Logger, words: str) -> None:
    try:
        raise RuntimeError(words)
    except RuntimeError:
        logger.exception("it failed")


def test_words_for_people(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.TEXT)
    log.logger.warning(CUT_OFF, "engine")
    fail(log.logger, "no luck")
    said = log.lines()
    assert said[:3] == [
        "sigd WARNING client 'engine' did not read its answers",
        "sigd ERROR it failed",
        "  Traceback (most recent call last):",
    ]
    assert said[-1] == "  RuntimeError: no luck"


@pytest.mark.parametrize(
    ("level", "mark"), [("critical", 2), ("error", 3), ("warning", 4), ("info", 6), ("debug", 7)]
)
def test_priorities_for_the_journal(pipe: Callable[[LogFormat], Pipe], level: str, mark: int) -> None:
    log = pipe(LogFormat.JOURNAL)
    getattr(log.logger, level)("words")
    assert log.lines() == [f"<{mark}>words"]
    assert logs.priority(logging.INFO + 5) == 5, "notice"


def test_every_line_of_a_traceback_has_its_priority(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.JOURNAL)
    fail(log.logger, "first\n<0>forged")
    said = log.lines()
    assert len(said) > 4
    assert all(line.startswith("<3>") for line in said)
    assert all(line.startswith("<3>  ") for line in said[1:])


def test_objects_for_programs(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.JSON)
    log.logger.warning(CUT_OFF, "engine\n")
    fail(log.logger, "no luck")
    first, second = map(json.loads, log.lines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "warning",
        "logger": "sigd.test",
        "message": "client 'engine\\n' did not read its answers",
        "template": CUT_OFF,
    }
    assert second["traceback"].endswith("RuntimeError: no luck")


@pytest.mark.parametrize("log_format", [LogFormat.TEXT, LogFormat.JOURNAL, LogFormat.JSON])
@pytest.mark.parametrize("words", ["a\nb", "a\rb", "a\x1b[2Jb", "a\u2028b", "a\x85b", "a\x00b", "a\udc80b"])
def test_no_character_forges_a_line(
    pipe: Callable[[LogFormat], Pipe], log_format: LogFormat, words: str
) -> None:
    log = pipe(log_format)
    log.logger.error("client %s", words)
    (line,) = log.lines()
    assert line.isprintable()
    assert "a\\" in line


def test_what_is_printable_stays_as_it_is() -> None:
    assert printable("Größe 5 µs") == "Größe 5 µs"


def test_a_few_of_each_kind_then_their_number(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.TEXT)
    for number in range(BURST + 7):
        log.logger.warning(CUT_OFF, f"engine-{number}")
    log.logger.warning("something else")
    said = log.lines()
    assert [line for line in said if "engine" in line] == [
        f"sigd WARNING client 'engine-{number}' did not read its answers" for number in range(BURST)
    ]
    assert said[-1] == "sigd WARNING something else"
    log.now_ns += INTERVAL_NS
    log.logger.info("another day")
    assert log.lines() == [
        f"sigd WARNING suppressed 7 similar, the last: client 'engine-{BURST + 6}' did not read its answers",
        "sigd INFO another day",
    ]
    log.logger.warning(CUT_OFF, "engine-0")
    assert log.lines() == ["sigd WARNING client 'engine-0' did not read its answers"], "it starts anew"


def test_what_was_held_back_is_said_though_nothing_more_comes(
    pipe: Callable[[LogFormat], Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "OVERDUE_LOOK_S", 0.001)
    log = pipe(LogFormat.TEXT)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler(), log.handler])
    for _ in range(BURST + 2):
        log.logger.error("again")
    assert log.lines() == ["sigd ERROR again"] * BURST

    async def main() -> list[str]:
        overdue = Overdue(asyncio.get_running_loop())
        overdue.start()
        await asyncio.sleep(0.01)
        assert log.lines() == [], "its interval is not over"
        log.now_ns += INTERVAL_NS
        while not (said := log.lines()):
            await asyncio.sleep(0.001)
        overdue.stop()
        return said

    assert asyncio.run(main()) == ["sigd ERROR suppressed 2 similar, the last: again"]


def test_what_was_held_back_is_said_in_the_end(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.JOURNAL)
    for _ in range(BURST + 1):
        log.logger.error("again")
    log.handler.close()
    assert log.lines() == ["<3>again"] * BURST + ["<3>suppressed 1 similar, the last: again"]
    log.handler.close()
    assert log.lines() == []


def test_critical_messages_always_come_through(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.TEXT)
    for _ in range(BURST * 3):
        log.logger.critical("the end")
    assert len(log.lines()) == BURST * 3


def test_no_number_of_kinds_grows_the_memory() -> None:
    limit = RateLimit()
    admitted = sum(
        limit.admit(Entry(logging.ERROR, "asyncio", 0.0, f"kind {number}", ""), 0)
        for number in range(KINDS_MAX * 10)
    )
    assert admitted == KINDS_MAX + BURST
    assert len(limit.overdue(INTERVAL_NS)) == 1
    assert limit.overdue(INTERVAL_NS) == []


def test_a_reader_that_stopped_is_not_waited_for(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.TEXT)
    room_bytes = fcntl.fcntl(log.writing, fcntl.F_SETPIPE_SZ, 4096)
    sent = 3 * room_bytes // 1000
    for number in range(sent):
        log.logger.error("message %d %s", number, "x" * 1000)
        log.now_ns += INTERVAL_NS
    arrived = len(log.lines())
    assert 0 < arrived < sent
    log.logger.error("there is room again")
    assert log.lines() == [
        f"sigd WARNING {sent - arrived} messages were lost: standard error was not read",
        "sigd ERROR there is room again",
    ]


def test_a_long_message_to_a_reader_that_stopped(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.TEXT)
    log.logger.error("x" * (1 << 20))
    os.read(log.reading, 1 << 21)
    log.logger.error("there is room again")
    assert log.lines()[-2:] == [
        "sigd WARNING 1 messages were lost: standard error was not read",
        "sigd ERROR there is room again",
    ]


def test_a_reader_that_is_gone(pipe: Callable[[LogFormat], Pipe]) -> None:
    log = pipe(LogFormat.TEXT)
    os.close(log.reading)
    log.logger.error("no one hears it")
    log.logger.critical("nor this")
    log.reading = os.open(os.devnull, os.O_RDONLY)


def test_record_that_cannot_be_rendered_harms_no_other(
    pipe: Callable[[LogFormat], Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log = pipe(LogFormat.TEXT)
    log.logger.error("%d", "no number")
    log.logger.error("the next one")
    assert log.lines() == ["sigd ERROR the next one"]


def test_who_decides_on_the_format() -> None:
    ours, other = socket.socketpair()
    with ours, other:
        status = os.fstat(ours.fileno())
        journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

        def chosen(asked: LogFormat, **environ: str) -> LogFormat:
            return logs.choose(asked, environ, ours.fileno())

        assert chosen(LogFormat.AUTO) is LogFormat.TEXT
        assert chosen(LogFormat.AUTO, **journal) is LogFormat.JOURNAL
        assert chosen(LogFormat.AUTO, JOURNAL_STREAM="1:2") is LogFormat.TEXT, "of another process"
        assert chosen(LogFormat.AUTO, SIGD_LOG="json", **journal) is LogFormat.JSON
        assert chosen(LogFormat.AUTO, SIGD_LOG="journal") is LogFormat.JOURNAL
        assert chosen(LogFormat.AUTO, SIGD_LOG="", **journal) is LogFormat.JOURNAL
        assert chosen(LogFormat.TEXT, SIGD_LOG="json", **journal) is LogFormat.TEXT
        with pytest.raises(
            UsageError, match="SIGD_LOG='syslog' names no format of the log: auto, text, json"
        ):
            chosen(LogFormat.AUTO, SIGD_LOG="syslog")
    assert logs.choose(LogFormat.AUTO, journal, -1) is LogFormat.TEXT


PROGRAM = """
import logging, os, sys, warnings
import click
from sigd.daemon import cli
from sigd.daemon.config.choices import LogFormat; from sigd.daemon.runtime.logs import start_logging
start_logging(logging.INFO, LogFormat(sys.argv[1]), os.environ)
logging.getLogger("sigd").debug("not asked for")
warnings.warn("old ways")
def fail(*_): raise RuntimeError("it ends")
cli.LazyGroup.get_command = fail
sys.argv = ["sigd", "serve"]
cli.main()
"""


@pytest.mark.parametrize(("log_format", "starts"), [("text", "2"), ("journal", "<"), ("json", '{"time":')])
def test_warnings_and_the_last_error_are_part_of_the_log(
    log_format: str, starts: str, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-P", str(script), log_format],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 70
    assert "old ways" in done.stderr
    assert "RuntimeError: it ends" in done.stderr
    assert "not asked for" not in done.stderr
    assert all(line.startswith((starts, "  ")) for line in done.stderr.splitlines()), done.stderr


def test_text_log_has_the_time_and_the_journal_has_none(pipe: Callable[[LogFormat], Pipe]) -> None:
    """The journal stamps each line itself."""
    for log_format, expected in (
        (LogFormat.TEXT, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z sigd WARNING at last\n"),
        (LogFormat.JOURNAL, r"<4>at last\n"),
    ):
        log = pipe(log_format)
        log.logger.warning("at last")
        assert re.fullmatch(expected, os.read(log.reading, 4096).decode())
