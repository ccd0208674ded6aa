"""The plan that comparisons begin with: what a daemon that is there serves, asked for with random rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.bench.daemon_process import ask_welcome
from sigd.bench.load import requests
from sigd.bench.load.contract import LoadPlan
from sigd.daemon.admin.client import ask_status
from sigd.daemon.config.config import admin_path_of
from sigd.daemon.errors import DaemonError
from sigd.models.onnx.columns import Columns
from sigd.wire.messages import Hello, Welcome

_PATIENCE_S: Final = 5.0


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
        frames=random_frames(socket_path, welcome, seed=1),
        outputs=welcome.outputs,
    )
    return plan, welcome


def random_frames(socket_path: str, welcome: Welcome, seed: int) -> npt.NDArray[np.uint8]:
    """Requests that the model of a Welcome takes, integers where it reads some, over a few instruments."""
    columns = served_columns(socket_path, welcome.model_name)
    return requests.random_frames(welcome.features, seed, columns=columns)


def served_columns(socket_path: str, model: str) -> tuple[Columns, ...]:
    """The inputs of a model that is served, as the daemon's admin socket tells them. Without that socket, as
    at the near end of a tunnel, none: then all are taken for floats."""
    try:
        models = ask_status(admin_path_of(Path(socket_path)), _PATIENCE_S).models
    except DaemonError:
        return ()
    return tuple(
        Columns(one.name, one.dtype, (one.width,), first=one.first, table=one.table)
        for served in models
        if served.name == model
        for one in served.inputs
    )
