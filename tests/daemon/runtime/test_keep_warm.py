"""Who is kept warm, when, and what happens when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sigd.daemon.runtime.keep_warm import KeepWarm
from sigd.models.errors import BackendFailed


class FakeLoop:
    """Timers that run when they are told to."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], Any]]] = []

    def call_later(self, delay_s: float, call: Callable[..., Any], *arguments: Any) -> Any:
        timer = (delay_s, lambda: call(*arguments))
        self.due.append(timer)
        return SimpleNamespace(cancel=lambda: self.due.remove(timer))

    def run_due(self) -> None:
        due, self.due = self.due, []
        for _, call in due:
            call()


class Warmable:
    def __init__(self) -> None:
        self.warmed = 0
        self.failure: BackendFailed | None = None

    def keep_warm(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.warmed += 1


class Rig:
    def __init__(self, backend: Any, interval_s: float) -> None:
        self.loop = FakeLoop()
        self.work = SimpleNamespace(idle=True, backend=backend)
        self.fatal: list[BackendFailed] = []
        loop: Any = self.loop
        self.keep_warm = KeepWarm(loop, [self.work], interval_s, self.fatal.append)


def test_it_is_asked_again_and_again_while_nothing_runs() -> None:
    backend = Warmable()
    rig = Rig(backend, 0.002)
    rig.keep_warm.start()
    for idle, warmed in ((True, 1), (True, 2), (False, 2), (True, 3)):
        rig.work.idle = idle
        assert [delay for delay, _ in rig.loop.due] == [0.002]
        rig.loop.run_due()
        assert backend.warmed == warmed


def test_nothing_is_done_unless_asked_for() -> None:
    rig = Rig(Warmable(), 0.0)
    rig.keep_warm.start()
    assert rig.loop.due == []
    rig.keep_warm.stop()


def test_a_model_that_needs_none_is_left_alone_until_one_that_does_takes_over() -> None:
    rig = Rig(object(), 0.002)
    rig.keep_warm.start()
    rig.loop.run_due()
    rig.work.backend = backend = Warmable()
    rig.loop.run_due()
    assert backend.warmed == 1


def test_it_ends() -> None:
    rig = Rig(Warmable(), 0.002)
    rig.keep_warm.start()
    rig.keep_warm.stop()
    assert rig.loop.due == []


@pytest.mark.parametrize("fatal", [False, True])
def test_a_failure_is_said_and_a_fatal_one_passed_on(fatal: bool, caplog: pytest.LogCaptureFixture) -> None:
    backend = Warmable()
    backend.failure = BackendFailed("the GPU is gone", fatal=fatal)
    rig = Rig(backend, 0.002)
    rig.keep_warm.start()
    rig.loop.run_due()
    assert "keeping the device warm failed: the GPU is gone" in caplog.text
    assert rig.fatal == ([backend.failure] if fatal else [])
    assert bool(rig.loop.due) is not fatal


def test_it_runs_on_a_real_loop() -> None:
    async def warmed_up() -> int:
        backend: Any = Warmable()
        work = SimpleNamespace(idle=True, backend=backend)
        keep_warm = KeepWarm(asyncio.get_running_loop(), [work], 1e-4, lambda failure: None)
        keep_warm.start()
        while not backend.warmed:
            await asyncio.sleep(1e-4)
        keep_warm.stop()
        return int(backend.warmed)

    assert asyncio.run(warmed_up()) >= 1
