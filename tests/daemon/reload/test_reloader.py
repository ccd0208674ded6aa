"""What a reload does in which order, and every way in which it ends before the old model has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvloop

from sigd.daemon.config.config import Config
from sigd.daemon.errors import DaemonError
from sigd.daemon.reload import reloader as reload
from sigd.daemon.reload.reloader import Reloader
from sigd.daemon.reload.remembered import RememberedModels
from sigd.daemon.reload.validation import Passed, Task, received, validate
from sigd.daemon.reload.validator import Validator
from sigd.daemon.runtime.loader_thread import Loader
from sigd.daemon.serving.models import ServedModels
from sigd.models.errors import BackendFailed, ModelError, ModelRefused
from sigd.wire.messages import Goodbye
from sigd.wire.status import GoodbyeCode

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.daemon.conftest import FakeBackend, Rig

    from sigd.daemon.serving.batcher import Batcher
    from sigd.models.backend import Backend

NEW = Path("new.onnx")
TIMEOUT_S = 0.02


class FakeLoader:
    """Does it at once, or waits until it is cancelled."""

    def __init__(self) -> None:
        self.hangs = False
        self.works = 0

    async def run(self, work: Callable[[], Any]) -> Any:
        self.works += 1
        if self.hangs:
            await asyncio.Event().wait()
        return work()


class FakeValidator:
    """Examines in this process, or refuses, or leaves it to the daemon."""

    def __init__(self, refuses: str = "", *, here: bool = True) -> None:
        self.refuses = refuses
        self.here = here
        self.tasks: list[Task] = []

    async def validate(self, task: Task) -> object:
        self.tasks.append(task)
        if self.refuses:
            raise ModelRefused(self.refuses)
        if not self.here:
            return None
        verdict, descriptor = validate(task)
        assert isinstance(verdict, Passed)
        return received(verdict, descriptor)


class Bench:
    """A reloader of the models of some rigs; what it opens is `opens`.

    Attributes:
        opened: the paths that were opened in this process.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, rigs: list[Rig], validator: FakeValidator | None = None
    ) -> None:
        monkeypatch.setattr(reload, "PAUSE_SHARE", 0)
        monkeypatch.setattr(reload, "DRAIN_GRACE_S", TIMEOUT_S)
        monkeypatch.setattr(reload, "open_backend", self._open)
        self.opens: FakeBackend | Exception = rigs[0].backend
        self.opened: list[Path] = []
        self.fatal: list[BackendFailed] = []
        self.loader = FakeLoader()
        self.models = ServedModels([rig.batcher for rig in rigs])
        self.successor: Batcher | None = None
        (config,) = Config().models()
        self.remembered = RememberedModels(Path("/nonexistent/served.json"))
        self.reloader = Reloader(
            self.models,
            {rig.batcher.name: config for rig in rigs},
            cast("Validator | None", validator),
            cast("Loader", self.loader),
            self._make_batcher,
            self.fatal.append,
            TIMEOUT_S,
            self.remembered,
        )

    def _open(self, path: Path, *_: object) -> FakeBackend:
        self.opened.append(path)
        if isinstance(self.opens, Exception):
            raise self.opens
        return self.opens

    def _make_batcher(self, before: Batcher, backend: Backend) -> Batcher:
        assert self.successor is not None
        assert self.successor.backend is backend
        return self.successor


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(monkeypatch: pytest.MonkeyPatch) -> MakeBench:
    """Makes a reloader with its fakes: (rigs, validator=None) -> Bench."""
    return lambda rigs, validator=None: Bench(monkeypatch, rigs, validator)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    uvloop.run(main())


def another(make_rig: type[Rig], rig: Rig) -> FakeBackend:
    return make_rig(synchronous=rig.backend.synchronous).backend


def test_the_new_one_serves_before_the_old_one_is_closed(
    make_bench: MakeBench, make_rig: type[Rig], rig: Rig
) -> None:
    bench = make_bench([rig])
    bench.opens = new = another(make_rig, rig)
    client = rig.connect()
    client.say(rig.request(1, 10))

    async def work() -> None:
        rig.batcher.poll()
        going = asyncio.ensure_future(bench.reloader.reload(path=NEW))
        await asyncio.sleep(TIMEOUT_S)
        # A batch that is under way on a device is finished by the model that began it.
        assert rig.backend.closed is rig.backend.synchronous
        rig.run()
        (went,) = await going
        assert (went.name, went.path, went.error, went.withdrawn) == ("fake", NEW, "", 0)

    run(work)
    assert rig.batcher.backend is new
    assert (rig.backend.closed, new.closed) == (True, False)
    assert (rig.batcher.generation, rig.counters.reloads, rig.counters.reloads_refused) == (2, 1, 0)
    assert bench.opened == [NEW]
    assert bench.loader.works == (2 if rig.backend.synchronous else 3), (
        "a device may keep who closes it waiting"
    )


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (ModelRefused("no model"), False),
        (BackendFailed("a batch failed"), False),
        (BackendFailed("the card is dead", fatal=True), True),
    ],
)
def test_what_cannot_be_opened_changes_nothing(
    make_bench: MakeBench,
    make_rig: type[Rig],
    caplog: pytest.LogCaptureFixture,
    error: ModelError,
    fatal: bool,
) -> None:
    rig = make_rig()
    bench = make_bench([rig])
    bench.opens = error

    async def work() -> None:
        (went,) = await bench.reloader.reload(path=NEW)
        assert went.error == str(error)

    run(work)
    assert bench.fatal == ([error] if fatal else []), "only a device that is dead ends the daemon"
    assert (rig.batcher.generation, rig.backend.closed) == (1, False)
    assert (rig.counters.reloads, rig.counters.reloads_refused) == (0, 1)
    assert f"model fake is not reloaded, generation 1 serves on: {error}" in caplog.text


def test_an_error_of_the_daemons_own_is_told_counted_and_in_the_log(
    make_bench: MakeBench, make_rig: type[Rig], caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    bench = make_bench([rig])
    bench.opens = KeyError("weights")

    async def work() -> None:
        (went,) = await bench.reloader.reload(path=NEW)
        assert went.error == "an error of the daemon itself: KeyError: 'weights'"
        bench.opens = another(make_rig, rig)
        (went,) = await bench.reloader.reload(path=NEW)
        assert went.error == ""

    run(work)
    assert (rig.counters.reloads, rig.counters.reloads_refused) == (1, 1)
    assert "Traceback" in caplog.text


def test_another_shape_is_closed_again(make_bench: MakeBench, make_rig: type[Rig], rig: Rig) -> None:
    bench = make_bench([rig])
    bench.opens = new = another(make_rig, rig)
    new.spec = replace(new.spec, features=5)

    async def work() -> None:
        (went,) = await bench.reloader.reload(path=NEW)
        assert "new.onnx: 5 features -> 2 outputs, and clients of 'fake' were promised 4 -> 2" in went.error

    run(work)
    assert (new.closed, rig.backend.closed) == (True, False)


def test_a_shape_that_is_allowed_withdraws_the_old_one(make_bench: MakeBench, make_rig: type[Rig]) -> None:
    rig, later = make_rig(), make_rig()
    later.backend.spec = replace(later.backend.spec, features=5)
    bench = make_bench([rig])
    bench.opens, bench.successor = later.backend, later.batcher
    stays = rig.connect()

    async def work() -> None:
        (went,) = await bench.reloader.reload(path=NEW, allow_new_shape=True)
        assert (went.error, went.withdrawn) == ("", 1)

    run(work)
    goodbyes = [message.code for message in stays.received() if isinstance(message, Goodbye)]
    assert goodbyes == [GoodbyeCode.MODEL_WITHDRAWN]
    assert stays.finished, "who does not go is cut off"
    assert bench.models.find("") is later.batcher
    assert (rig.backend.closed, later.backend.closed) == (True, False)
    assert bench.models.pending_rows == 0


def test_which_models(make_bench: MakeBench, make_rig: type[Rig]) -> None:
    rigs = [make_rig(), make_rig()]
    for rig, name in zip(rigs, "ab", strict=True):
        rig.batcher.name = name
    bench = make_bench(rigs)
    bench.opens = ModelRefused("no")

    async def work() -> None:
        reload = bench.reloader.reload
        own = rigs[0].backend.spec.path
        asked: list[tuple[dict[str, Any], list[tuple[str, Path]]]] = [
            ({}, [("a", own), ("b", own)]),
            ({"path": NEW}, [("a", NEW)]),
            ({"name": "b"}, [("b", own)]),
            ({"name": "b", "path": NEW}, [("b", NEW)]),
        ]
        for arguments, expected in asked:
            assert [(went.name, went.path) for went in await reload(**arguments)] == expected
        with pytest.raises(DaemonError, match="no model is called 'c', expected one of 'a', 'b'"):
            await reload("c")

    run(work)


def test_one_at_a_time_and_none_once_it_is_stopped(make_bench: MakeBench, make_rig: type[Rig]) -> None:
    rig = make_rig()
    bench = make_bench([rig])
    bench.loader.hangs = True

    async def work() -> None:
        first = asyncio.ensure_future(bench.reloader.reload(path=NEW))
        await asyncio.sleep(TIMEOUT_S)
        with pytest.raises(DaemonError, match="a reload is under way"):
            await bench.reloader.reload()
        bench.reloader.stop()
        with pytest.raises(DaemonError, match="the daemon is stopping"):
            await first
        with pytest.raises(DaemonError, match="the daemon is stopping"):
            await bench.reloader.reload()

    run(work)
    assert (rig.backend.closed, rig.counters.reloads, rig.counters.reloads_refused) == (False, 0, 0)


def test_an_admin_client_that_goes_takes_nothing_along(make_bench: MakeBench, make_rig: type[Rig]) -> None:
    """And the next one is not told that a reload is under way for ever."""
    rig = make_rig()
    bench = make_bench([rig])
    bench.opens = another(make_rig, rig)

    async def work() -> None:
        first = asyncio.ensure_future(bench.reloader.reload(path=NEW))
        await asyncio.sleep(0)
        first.cancel()
        while rig.batcher.generation == 1:
            await asyncio.sleep(0.001)
        await asyncio.sleep(TIMEOUT_S)
        bench.opens = another(make_rig, rig)
        await bench.reloader.reload(path=NEW)

    run(work)
    assert rig.batcher.generation == 3


def test_what_was_validated_is_what_is_loaded_and_never_opened_here(
    make_bench: MakeBench, make_rig: type[Rig], models: ModelMaker
) -> None:
    rig = make_rig()
    validator = FakeValidator()
    bench = make_bench([rig], validator)
    path = models.mlp(4, (8,), 2)

    async def work() -> None:
        (went,) = await bench.reloader.reload(path=path)
        assert went.error == ""

    run(work)
    assert rig.batcher.backend.name in ("native", "onnxruntime")
    assert rig.batcher.spec.path == path
    assert bench.opened == []
    (task,) = validator.tasks
    assert (task.path, task.name) == (str(path).encode(), "fake")
    rig.batcher.backend.close()


@pytest.mark.parametrize("here", [True, False])
def test_the_validators_word_is_the_last(make_bench: MakeBench, make_rig: type[Rig], here: bool) -> None:
    rig = make_rig()
    bench = make_bench([rig], FakeValidator("crashed" if here else "", here=here))
    bench.opens = another(make_rig, rig)

    async def work() -> None:
        (went,) = await bench.reloader.reload(path=NEW)
        assert went.error == ("crashed" if here else "")

    run(work)
    assert bench.opened == ([] if here else [NEW]), "what only the daemon can open is opened there"
