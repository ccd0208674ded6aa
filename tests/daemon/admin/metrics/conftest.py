"""Everything that is told, of a daemon that is not there: a batcher with its fakes, and watches that no
thread started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.daemon.admin.metrics.family import Source
from sigd.daemon.admin.metrics.gpu_watch import GpuWatch
from sigd.daemon.config.access import AccessConfig
from sigd.daemon.reload.remembered import RememberedModels
from sigd.daemon.runtime.loop_monitor import GarbageWatch, LoopWatch
from sigd.daemon.shadow.supervisor import Shadows
from sigd.daemon.transport.access_control import access_of
from sigd.daemon.transport.connections import Clients

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig

MakeSource = Callable[["Rig"], Source]


@pytest.fixture
def make_source() -> MakeSource:
    """Of a rig: Rig -> Source. To be called where a loop runs."""

    def make(rig: Rig) -> Source:
        return Source(
            [rig.batcher],
            Clients(rig.find_model, access_of(AccessConfig()), rig.limits, rig.client_counters, None),
            rig.client_counters,
            LoopWatch(asyncio.get_running_loop()),
            GarbageWatch(),
            GpuWatch(asyncio.get_running_loop(), lambda: [rig.backend], frozenset()),
            None,
            None,
            Shadows(),
            1_700_000_000.25,
            "spin",
            RememberedModels(Path("/nonexistent/served.json")),
            (),
        )

    return make
