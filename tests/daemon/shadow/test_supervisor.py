"""What a shadow is refused for before its process is started."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

import pytest
import uvloop
from tests.conftest import children_of

from sigd.daemon.config.config import Config
from sigd.daemon.config.models import ShadowTable
from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.runtime.child_process import Starter
from sigd.daemon.shadow import supervisor
from sigd.daemon.shadow.messages import Task
from sigd.daemon.shadow.supervisor import Shadow, Shadows, start_shadows
from sigd.models.errors import ModelRefused
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.daemon.conftest import Rig

STARTER = Starter({0})


def test_where_none_is_asked_for_there_is_none(make_rig: type[Rig]) -> None:
    shadows = start_shadows(Config(), [make_rig().backend], STARTER)
    assert list(shadows) == []
    assert shadows.taps("fake") is None
    assert shadows.status("fake") is None
    Shadows().close()


def test_a_backend_that_does_not_exist(make_rig: type[Rig]) -> None:
    config = Config(shadow=ShadowTable(path="b.onnx", backend="tensorflow"))
    with pytest.raises(UsageError, match=r"no backend is called 'tensorflow'.*for the shadow of fake"):
        start_shadows(config, [make_rig().backend], STARTER)


def test_an_engine_on_a_gpu_that_serves(make_rig: type[Rig]) -> None:
    backend = make_rig().backend
    backend.pci_bus_id = "0000:01:00.0"  # type: ignore[attr-defined]
    config = Config(gpu=1, shadow=ShadowTable(path="b.engine", backend="tensorrt"))
    with pytest.raises(UsageError, match="would run on GPU 1, which serves fake"):
        start_shadows(config, [backend], STARTER)


def test_without_memory_it_says_how_much_it_wants(
    make_rig: type[Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(supervisor, "make_memory", full)
    with pytest.raises(MissingDependency, match=r"b.onnx: no 8 MiB of memory .*No space left"):
        start_shadows(Config(shadow=ShadowTable(path="b.onnx")), [make_rig().backend], STARTER)


def test_one_that_does_not_open_in_time_is_refused_and_leaves_nothing(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "OPEN_TIMEOUT_S", 0.001)
    children = children_of(os.getpid())
    path = models.copied(4)
    backend = open_backend(path)
    try:
        with pytest.raises(ModelRefused, match=r"opening it took longer than 0\.001 s"):
            start_shadows(Config(shadow=ShadowTable(path=str(path))), [backend], STARTER)
    finally:
        backend.close()
    assert children_of(os.getpid()) == children


class Lingering(Starter):
    """What it starts lets go of its channel and does not end."""

    def start(
        self, module: str, arguments: Sequence[str], stdin: int, pass_fds: Sequence[int] = ()
    ) -> tuple[subprocess.Popen[bytes], int]:
        program = "import os, time; os.read(0, 1); os.close(0); time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", program], stdin=stdin)
        return process, os.pidfd_open(process.pid)


def test_the_loop_does_not_wait_for_a_process_that_takes_long_to_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does whose driver hangs."""
    monkeypatch.setattr(supervisor, "END_TIMEOUT_S", 0.5)
    task = Task(
        path=b"b.onnx", backend="auto", name="fake", batch_rows_max=8, gpu=0, mapped_io=False,
        device_timeout_ms=1000, served="a.onnx", features=4, outputs=2, sample=1.0, cores=[0], in_hurry=True,
        demand_trust=False, log_format="text",
    )  # fmt: skip
    shadow = Shadow("fake", task, Lingering({0}))
    shadow.start()
    longest_s = 0.0

    async def main() -> None:
        nonlocal longest_s
        shadow.watch(asyncio.get_running_loop())
        while "is started again" not in caplog.text:
            before_s = monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, monotonic() - before_s)

    try:
        uvloop.run(main())
    finally:
        shadow.close()
    assert "the process of the shadow of fake was ended by SIGKILL and is started again in 1 s" in caplog.text
    assert longest_s < 0.4
