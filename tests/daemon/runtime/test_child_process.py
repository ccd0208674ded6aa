"""Processes beside the loop: what they begin with, and how long they are not started again."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from tests.conftest import children_of

from sigd.daemon.runtime.child_process import PAUSE_S, PAUSE_S_MAX, Pauses, Restarts, Starter

WAITS = "code"
"""A module that waits for its standard input."""


def test_child_process_begins_beside_a_loop_that_is_pinned_and_at_real_time_priority() -> None:
    """Not once its Python runs: it is looked at as soon as it is there."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")

    def work() -> None:
        os.sched_setaffinity(0, {cores[0]})
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            pytest.skip("needs the right to real-time priority")
        process, pidfd = Starter({cores[1]}).start(WAITS, [], subprocess.PIPE)
        os.close(pidfd)
        try:
            assert os.sched_getaffinity(process.pid) == {cores[1]}
            assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER
            assert os.sched_getscheduler(0) == os.SCHED_FIFO, "the loop itself stays what it is"
        finally:
            process.kill()
            process.communicate()

    # What is done to its thread shall not stay with the tests.
    with ThreadPoolExecutor(1) as loop:
        loop.submit(work).result()


def test_what_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(OSError, match="temporarily"):
        Starter(os.sched_getaffinity(0)).start(WAITS, [], subprocess.DEVNULL)


def test_a_process_whose_end_could_not_be_seen_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", full)
    before = children_of(os.getpid())
    with pytest.raises(OSError, match="Too many"):
        Starter(os.sched_getaffinity(0)).start(WAITS, [], subprocess.DEVNULL)
    assert children_of(os.getpid()) == before


def test_each_pause_is_longer_until_one_has_run_for_long() -> None:
    now_s = 1000.0
    pauses = Pauses(lambda: now_s)
    assert [pauses.next_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, PAUSE_S_MAX, PAUSE_S_MAX]
    pauses.started()
    now_s += PAUSE_S_MAX - 1
    assert pauses.next_s() == PAUSE_S_MAX
    pauses.started()
    now_s += PAUSE_S_MAX
    assert [pauses.next_s(), pauses.next_s()] == [PAUSE_S, 2 * PAUSE_S], (
        "also where the next one does not start"
    )


class FakeLoop:
    """Keeps what is to be called, and when."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[..., None], tuple[object, ...]]] = []

    def call_later(
        self, delay_s: float, call: Callable[..., None], *arguments: object
    ) -> asyncio.TimerHandle:
        self.due.append((delay_s, call, arguments))
        return cast("asyncio.TimerHandle", self)

    def cancel(self) -> None:
        self.due.clear()

    def run(self) -> float:
        """Call what is due next; after how many seconds."""
        delay_s, call, arguments = self.due.pop()
        call(*arguments)
        return delay_s


def test_process_that_cannot_be_started_is_tried_with_growing_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As for the validator, the shadow and the writer of recordings alike."""
    fake, started = FakeLoop(), 0

    def start() -> None:
        nonlocal started
        started += 1
        if started < 4:
            raise BlockingIOError(11, "Resource temporarily unavailable")

    loop = cast("asyncio.AbstractEventLoop", fake)
    restarts = Restarts("the writer of X", "the ring holds", start, Pauses(lambda: 0.0))
    assert restarts.ended(loop, "was ended by SIGKILL") == 1
    assert [fake.run() for _ in range(4)] == [1, 2, 4, 8]
    assert (started, restarts.count, fake.due) == (4, 4, [])
    assert caplog.messages[0].startswith("the writer of X was ended by SIGKILL and is started again in 1 s")
    assert "the writer of X cannot be started: [Errno 11]" in caplog.messages[1]
    restarts.ended(loop, "ended with 1")
    restarts.stop()
    assert fake.due == []
