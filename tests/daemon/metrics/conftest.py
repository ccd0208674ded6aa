"""Everything that is told, of a daemon that is not there: a batcher with its fakes, and watches that nobody started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from sigd.daemon.access import AccessConfig, access_of
from sigd.daemon.clients import Clients
from sigd.daemon.health import GarbageWatch, LoopWatch
from sigd.daemon.metrics.family import Source
from sigd.daemon.metrics.gpu_watch import GpuWatch
from sigd.daemon.shadow.supervisor import Shadows

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
        )

    return make
