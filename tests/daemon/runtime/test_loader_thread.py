"""Work on a thread beside a loop: what comes back, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from sigd.daemon.runtime.loader_thread import Loader
from sigd.models.errors import BackendFailed, ModelError, ModelRefused


def with_loader(work: Callable[[Loader], Awaitable[None]]) -> None:
    async def main() -> None:
        await work(Loader(asyncio.get_running_loop(), os.sched_getaffinity(0)))

    uvloop.run(main())


def test_it_is_another_thread_and_the_loop_goes_on() -> None:
    go_on = threading.Event()

    async def work(loader: Loader) -> None:
        asyncio.get_running_loop().call_later(0.01, go_on.set)
        waiting = asyncio.ensure_future(loader.run(lambda: (go_on.wait(60), threading.get_ident())))
        await asyncio.sleep(0)
        assert loader.busy
        there, ident = await waiting
        assert there
        assert ident != threading.get_ident()
        assert not loader.busy

    with_loader(work)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ModelRefused("no such file"), ModelRefused, "no such file"),
        (BackendFailed("the device is gone", fatal=True), BackendFailed, "the device is gone"),
        (MemoryError(), ModelRefused, "out of memory"),
        (KeyError("x"), ModelRefused, "KeyError: 'x'"),
    ],
)
def test_what_fails_is_told(
    error: Exception, kind: type[ModelError], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    async def work(loader: Loader) -> None:
        with pytest.raises(kind, match=said) as caught:
            await loader.run(fail)
        assert getattr(caught.value, "fatal", None) is getattr(error, "fatal", None)
        assert not loader.busy
        assert await loader.run(lambda: 1) == 1, "and the next one runs"

    with_loader(work)
    assert ("loading a model" in caplog.text) is isinstance(error, KeyError), "unforeseen"


def test_nothing_of_a_failure_is_left_without_the_collector() -> None:
    class Large:
        """What was being loaded."""

    kept: list[weakref.ref[Large]] = []

    def fail() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise ModelRefused("no")

    async def work(loader: Loader) -> None:
        try:
            await loader.run(fail)
        except ModelRefused:
            pass

    gc.collect()
    gc.disable()
    try:
        with_loader(work)
        assert [reference() for reference in kept] == [None]
    finally:
        gc.enable()


def test_who_is_cancelled_waits_no_longer_and_the_work_goes_on() -> None:
    go_on = threading.Event()

    async def work(loader: Loader) -> None:
        waiting = asyncio.ensure_future(loader.run(lambda: go_on.wait(60)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert loader.busy, "the process may not wait for it"
        go_on.set()
        while loader.busy:
            await asyncio.sleep(0.001)

    with_loader(work)


def test_a_loop_that_ends_meanwhile_is_no_error() -> None:
    go_on, ending = threading.Event(), threading.Event()
    loaders: list[Loader] = []

    def slow() -> None:
        go_on.wait(60)

    async def work(loader: Loader) -> None:
        waiting = asyncio.ensure_future(loader.run(slow))
        await asyncio.sleep(0.01)
        waiting.cancel()
        assert loader.busy, "the process may not wait for it"
        loaders.append(loader)

    with_loader(work)
    (loader,) = loaders
    # The end of its thread, which nothing outside is told of.
    original = loader._work

    def watched() -> None:
        original(slow, None)  # type: ignore[arg-type]
        ending.set()

    go_on.set()
    threading.Thread(target=watched).start()
    assert ending.wait(60)
