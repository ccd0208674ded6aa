"""Fixtures for the tests of the Python client: daemons of a few lines, each of which plays one scene."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.wire.client.lines import PATIENCE_S, RingLine, StreamLine

from sigd.wire.client import Client, connect

Scene = Callable[[Any], None]
StartDaemon = Callable[[Scene], Path]
Dial = Callable[..., Client]


@pytest.fixture(autouse=True)
def _a_thread_that_spins_lets_others_run() -> Iterator[None]:
    """A client that spins has its daemon in a thread beside it here: let it give way after less than 5 ms."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before_s)


@pytest.fixture(params=["stream", "shared memory"])
def transport(request: pytest.FixtureRequest) -> str:
    """What both transports have in common is tested with both."""
    name: str = request.param
    return name


@pytest.fixture
def daemon(
    daemon: Callable[[Callable[[socket.socket], None]], Path], request: pytest.FixtureRequest
) -> StartDaemon:
    """As the wire's own, but a scene gets the line that goes with the test's `transport`, a StreamLine where
    it has none."""
    rings = "transport" in request.fixturenames and request.getfixturevalue("transport") == "shared memory"
    make_line = RingLine if rings else StreamLine

    def start(scene: Scene) -> Path:
        def play(connection: socket.socket) -> None:
            with contextlib.closing(make_line(connection)) as line:
                scene(line)

        return daemon(play)

    return start


@pytest.fixture
def dial(daemon: StartDaemon, transport: str) -> Dial:
    """dial(scene, ...): a client in conversation with a daemon that plays that scene; the rest is for
    connect()."""

    def connect_to(scene: Scene, **asked: Any) -> Client:
        return connect(
            daemon(scene), **{"shared_memory": transport == "shared memory", "timeout_s": PATIENCE_S, **asked}
        )

    return connect_to
