"""Nothing that a client leaves behind needs the garbage collector, which is off while a daemon serves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvloop

from sigd.daemon.config.config import Config
from sigd.daemon.config.models import ShadowTable
from sigd.daemon.config.recorder import RecorderConfig
from sigd.daemon.runtime.child_process import Starter
from sigd.daemon.runtime.sd_notify import Notifier
from sigd.daemon.service import Service
from sigd.daemon.shadow.supervisor import start_shadows
from sigd.models.registry import open_backend
from sigd.wire.messages import Goodbye, Heartbeat, Hello

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.daemon.conftest import Rig

pytestmark = pytest.mark.usefixtures("each_fast_path")

TIMES = 20

SAID: dict[str, list[bytes]] = {
    "nothing": [],
    "half a Hello": [Hello().encode()[:40]],
    "Hello": [Hello().encode()],
    "Hello and Goodbye": [Hello().encode() + Goodbye().encode()],
    "another model": [Hello(model_name="other").encode()],
    "garbage": [b"x" * 80],
    "garbage after Hello": [Hello().encode(), b"x" * 80],
    "heartbeats": [Hello().encode() + Heartbeat(1).encode() * 100],
    "requests": [],
    "requests that are recorded": [],
    "requests that are recorded and compared": [],
    "requests that fail": [],
    "a single request that fails": [],
    "requests and no answer taken": [],
    "a question": [b'{"op": "status"}\n'],
    "half a question": [b'{"op"'],
    "no question": [b"x\n"],
    "too long a question": [b"x" * 10_000],
    "a question about metrics": [b"GET /metrics HTTP/1.1\r\n\r\n"],
    "a question for another page": [b"GET / HTTP/1.1\r\n\r\n"],
    "half a question for a page": [b"GET /metrics HTTP/1.1\r\nHost: x\r\n"],
}


@pytest.fixture
def _collector() -> Iterator[None]:
    """As it was before, whatever the service did to it."""
    gc.collect()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.unfreeze()
    gc.enable()
    gc.collect()


def come_and_go(path: Path, said: list[bytes], *, reads: bool) -> None:
    """Say it, piece by piece, take what comes until nothing more does, and leave."""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(60)
        connection.connect(str(path))
        for piece in said:
            connection.sendall(piece)
            if reads and len(said) > 1:
                connection.recv(1 << 16)
        if reads:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass


@pytest.mark.usefixtures("_collector")
@pytest.mark.parametrize("what", SAID)
def test_it_is_freed_by_reference_counts(
    what: str, models: ModelMaker, make_rig: type[Rig], tmp_path: Path
) -> None:
    hello, good, bad = Hello().encode(), make_rig.request(1), make_rig.request(2, 99)
    said = {
        **SAID,
        "requests": [hello, good, good, good + good + bad[:20]],
        "requests that are recorded": [hello, good, good, good + good + bad[:20]],
        "requests that are recorded and compared": [hello, good, good, good + good + bad[:20]],
        "requests that fail": [hello, bad + good, bad + bad],
        "a single request that fails": [hello, good, good, bad],
        "requests and no answer taken": [hello + good * 5000],
    }[what]
    recorder = RecorderConfig(directory=str(tmp_path / "recordings") if "recorded" in what else "")
    config = Config(socket=str(tmp_path / "s"), lock_memory=False, unsent_bytes_max=4096, recorder=recorder)
    path = config.admin_socket_path if "question" in what else config.socket_path
    left: Counter[str] = Counter()

    async def main() -> int:
        service = asyncio.create_task(
            Service(config, [backend], Notifier(), {}, starter, shadows=shadows).run()
        )
        while not path.exists():
            await asyncio.sleep(0.001)
        for times in (2, TIMES):
            # The first few may leave behind what is made once: imports, caches.
            gc.collect()
            gc.set_debug(gc.DEBUG_SAVEALL)
            for _ in range(times):
                await asyncio.to_thread(come_and_go, path, said, reads="taken" not in what)
            await asyncio.sleep(0.02)
            gc.collect()
            gc.set_debug(0)
            left.clear()
            left.update(type(item).__qualname__ for item in gc.garbage)
            gc.garbage.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        return await service

    starter = Starter(os.sched_getaffinity(0))
    path_of_model = models.failing(4, 2)
    backend = open_backend(path_of_model)
    if "compared" in what:
        config = msgspec.structs.replace(config, shadow=ShadowTable(path=str(path_of_model)))
    shadows = start_shadows(config, [backend], starter)
    assert uvloop.run(main()) == 0
    assert {name: count for name, count in left.items() if count >= TIMES} == {}
