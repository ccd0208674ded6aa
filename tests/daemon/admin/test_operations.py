"""What a daemon is asked to do by a signal or on its admin socket, with a reloader that the test decides
for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import uvloop

from sigd.daemon.admin.messages import RELOAD_S, AdminRequest, DrainAnswer, ReloadAnswer, Status
from sigd.daemon.admin.operations import Operations
from sigd.daemon.errors import DaemonError
from sigd.daemon.reload.reloader import Reloaded, Reloader
from sigd.daemon.reload.validation import TIMEOUT_S
from sigd.daemon.serving.models import ServedModels

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig


class FakeReloader:
    """Ends when `go_on` is set, with `failure` where there is one."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.failure: Exception | None = None
        self.asked: list[tuple[str, Path | None, bool]] = []
        self.ended = 0

    async def reload(
        self, name: str = "", path: Path | None = None, *, allow_new_shape: bool = False
    ) -> list[Reloaded]:
        self.asked.append((name, path, allow_new_shape))
        await self.go_on.wait()
        self.ended += 1
        if self.failure is not None:
            raise self.failure
        return [Reloaded("fake", path or Path("fake.onnx"), 1.5, 2, "")]


async def _status() -> Status:
    raise AssertionError("not asked")


def with_operations(
    rig: Rig, work: Callable[[Operations, FakeReloader, list[str]], Awaitable[None]]
) -> list[float]:
    """What time the service manager was asked for meanwhile."""
    needed: list[float] = []

    async def main() -> None:
        reloader = FakeReloader()
        stopped: list[str] = []
        operations = Operations(
            ServedModels([rig.batcher]),
            cast("Reloader", reloader),
            _status,
            lambda: stopped.append("stopped"),
            needed.append,
        )
        await work(operations, reloader, stopped)

    uvloop.run(main())
    return needed


def test_what_a_sighup_began_lives_until_it_has_ended(make_rig: type[Rig]) -> None:
    async def work(operations: Operations, reloader: FakeReloader, _: list[str]) -> None:
        operations.hang_up()
        await asyncio.sleep(0)
        # The loop holds no task: one without another holder may go with the next collection.
        # Only the set itself shows what keeps the task alive.
        assert len(operations._hung_up) == 1
        reloader.go_on.set()
        while not reloader.ended:
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        assert reloader.asked == [("", None, False)]
        assert operations._hung_up == set(), "and no longer"

    with_operations(make_rig(), work)


def test_a_sighup_that_is_refused_is_in_the_log(
    make_rig: type[Rig], caplog: pytest.LogCaptureFixture
) -> None:
    async def work(operations: Operations, reloader: FakeReloader, _: list[str]) -> None:
        reloader.failure = DaemonError("a reload is under way")
        reloader.go_on.set()
        operations.hang_up()
        # A refusal ends in the log alone: the set says when it was written.
        while operations._hung_up:
            await asyncio.sleep(0)

    with_operations(make_rig(), work)
    assert "SIGHUP: nothing is reloaded: a reload is under way" in caplog.text


def test_a_reload_is_told_as_it_went(make_rig: type[Rig]) -> None:
    async def work(operations: Operations, reloader: FakeReloader, _: list[str]) -> None:
        reloader.go_on.set()
        answer = await operations.ops["reload"](AdminRequest("reload", "fake", "/m/new.onnx", True))
        assert reloader.asked == [("fake", Path("/m/new.onnx"), True)]
        assert isinstance(answer, ReloadAnswer)
        (went,) = answer.models
        assert (went.name, went.error, went.seconds, went.withdrawn) == ("fake", "", 1.5, 2)
        assert (went.generation, went.features, went.outputs, went.backend) == (1, 4, 2, "fake")

    assert RELOAD_S == 2 * TIMEOUT_S
    assert with_operations(make_rig(), work) == [RELOAD_S], (
        "`systemctl reload` waits as long as the daemon does"
    )


def test_drain_waits_for_the_end_also_when_another_one_goes_away(make_rig: type[Rig]) -> None:
    async def work(operations: Operations, _: FakeReloader, stopped: list[str]) -> None:
        first, second = (
            asyncio.ensure_future(operations.ops["drain"](AdminRequest("drain"))) for _ in range(2)
        )
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        assert not second.done()
        operations.ended(1)
        assert await second == DrainAnswer(1)
        assert stopped == ["stopped"] * 2

    with_operations(make_rig(), work)
