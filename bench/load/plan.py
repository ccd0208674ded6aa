"""The plan that comparisons begin with: what a daemon that is there serves, asked for with random rows."""

from __future__ import annotations

from dataclasses import replace

from sigd.bench.daemon_process import ask_welcome
from sigd.bench.load import requests
from sigd.bench.load.contract import LoadPlan
from sigd.wire.messages import Hello, Welcome


def plan_for(socket_path: str, hello: Hello) -> tuple[LoadPlan, Welcome]:
    """A closed loop with one request unanswered, and what the daemon grants.

    Raises:
        ConnectFailed: no daemon listens there.
        PeerFailed: a process listens, but gives no Welcome.
    """
    welcome = ask_welcome(socket_path, hello)
    plan = LoadPlan(
        socket_path=socket_path,
        hello=replace(
            hello, features=welcome.features, outputs=welcome.outputs, ring_slots=welcome.ring_slots
        ),
        frames=requests.random_frames(welcome.features, seed=1),
        outputs=welcome.outputs,
    )
    return plan, welcome
