"""The memory of a GPU, where there is one, read beside the loop."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic_ns, sleep
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.models.gpu.test_memory import MIB, FakeNvml

from sigd.daemon.admin.metrics import gpu_watch
from sigd.daemon.admin.metrics.exposition import Exposition
from sigd.daemon.admin.metrics.families import FAMILIES
from sigd.daemon.admin.metrics.family import Series
from sigd.daemon.admin.metrics.gpu_watch import OLD_NS, GpuWatch
from sigd.models.gpu.memory import Memory

if TYPE_CHECKING:
    from tests.daemon.admin.metrics.conftest import MakeSource
    from tests.daemon.conftest import Rig

CARD = "0000:01:00.0"
CORES = os.sched_getaffinity(0)
THREAD = "sigd-gpu-memory"


class Reader:
    """Stands for NVML; `failing` is raised by the next question."""

    failing: Exception | None = None
    own: int | None = 30

    def __init__(self) -> None:
        self.read_once = threading.Event()
        self.read_on: set[int] = set()

    def read(self, card: str) -> Memory:
        self.read_on = os.sched_getaffinity(0)
        self.read_once.set()
        if self.failing is not None:
            raise self.failing
        return Memory(100, 60, self.own)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    made = Reader()
    monkeypatch.setattr(gpu_watch, "MemoryReader", lambda: made)
    monkeypatch.setattr(gpu_watch, "EVERY_S", 0.001)
    yield made
    wait_for_the_end()


def wait_for_the_end() -> None:
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(60)
            assert not thread.is_alive()


def on_gpu(card: str = CARD) -> Any:
    return SimpleNamespace(pci_bus_id=card)


def watch_of(backends: Callable[[], list[Any]], clock: Callable[[], int] = monotonic_ns) -> GpuWatch:
    """One whose loop is of no account: it is never turned."""
    return GpuWatch(cast("asyncio.AbstractEventLoop", FakeLoop()), backends, {min(CORES)}, clock)


class FakeLoop:
    """Keeps what is to be called later."""

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []

    def call_later(self, _delay_s: float, call: Callable[[], None]) -> FakeLoop:
        self.later.append(call)
        return self

    def cancel(self) -> None:
        self.later.clear()


def told(watch: GpuWatch) -> list[Series]:
    (family,) = (family for family in FAMILIES if family.name == "sigd_gpu_memory_bytes")
    return list(family.read(SimpleNamespace(gpu=watch)))  # type: ignore[arg-type]


def test_total_free_and_its_own(reader: Reader) -> None:
    now_ns = 1
    watch = watch_of(lambda: [on_gpu(), on_gpu()], lambda: now_ns)
    assert told(watch) == []
    watch.start()
    while not watch.memory():
        assert reader.read_once.wait(60)
    watch.stop()
    wait_for_the_end()
    assert told(watch) == [((CARD, "total"), (100,)), ((CARD, "free"), (60,)), ((CARD, "daemon"), (30,))]
    now_ns += OLD_NS
    assert told(watch) == [], "it is too old"


def test_from_nvml_to_prometheus(
    make_rig: type[Rig], make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml({os.getpid(): 500 * MIB})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)

    async def main() -> str:
        source = make_source(make_rig())
        watch = watch_of(lambda: [on_gpu()])
        watch.start()
        while not watch.memory():
            await asyncio.sleep(0.001)
        watch.stop()
        return (await Exposition(replace(source, gpu=watch)).scrape()).decode()

    text = asyncio.run(main())
    wait_for_the_end()
    for part, mib in (("total", 24576), ("free", 812), ("daemon", 500)):
        line = f'sigd_gpu_memory_bytes{{gpu="{CARD}",part="{part}"}} '
        assert float(text.partition(line)[2].partition("\n")[0]) == mib * MIB
    assert set(nvml.asked) == {CARD}


def test_what_nvml_does_not_tell_is_left_out(reader: Reader) -> None:
    reader.own = None
    watch = watch_of(lambda: [on_gpu()])
    watch.start()
    while not watch.memory():
        sleep(0.001)
    watch.stop()
    wait_for_the_end()
    assert [labels for labels, _ in told(watch)] == [(CARD, "total"), (CARD, "free")]


def test_without_a_gpu_there_is_no_thread(make_rig: type[Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_watch, "MemoryReader", pytest.fail)
    watch = watch_of(lambda: [make_rig().backend, on_gpu("")])
    watch.start()
    assert all(thread.name != THREAD for thread in threading.enumerate())
    watch.stop()
    assert told(watch) == []


def test_a_model_that_comes_to_a_gpu_with_a_reload_is_looked_at(make_rig: type[Rig], reader: Reader) -> None:
    loop = FakeLoop()
    backends: list[Any] = [make_rig().backend]
    watch = GpuWatch(cast("asyncio.AbstractEventLoop", loop), lambda: backends, CORES)
    watch.start()
    backends[:] = [on_gpu()]
    (look,) = loop.later
    look()
    assert reader.read_once.wait(60)
    watch.stop()


def test_the_thread_runs_beside_the_loop(reader: Reader) -> None:
    watch = watch_of(lambda: [on_gpu()])
    watch.start()
    assert reader.read_once.wait(60)
    watch.stop()
    assert reader.read_on == {min(CORES)}


def test_a_driver_that_cannot_be_asked_is_said_once_counted_and_asked_again(
    reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    reader.failing = RuntimeError("GPU is lost")
    watch = watch_of(lambda: [on_gpu()])
    with caplog.at_level(logging.WARNING):
        watch.start()
        while watch.failures < 3:
            sleep(0.001)
    assert [record.getMessage() for record in caplog.records] == [
        "the memory of the GPU is not told to Prometheus until it can be read: GPU is lost"
    ]
    assert told(watch) == []
    reader.failing = None
    while not watch.memory():
        sleep(0.001)
    watch.stop()
