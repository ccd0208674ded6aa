"""A real daemon with a lane: the same answers as without, through reloads, lost clients and its end."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.daemon.serving import native_lane
from sigd.daemon.transport.lane_status import LaneStatus
from sigd.wire.client import Client
from sigd.wire.ring import why_not_here
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

pytestmark = [
    pytest.mark.skipif(bool(why_not_here()), reason=why_not_here()),
    pytest.mark.skipif(not native_lane.is_built(), reason="lanes are not built: python hatch_build.py"),
]

FEATURES, OUTPUTS = 8, 3
CORE = max(os.sched_getaffinity(0))
ROWS = np.random.default_rng(0).standard_normal((64, FEATURES)).astype(np.float32)


def lane_of(daemon: Daemon) -> LaneStatus:
    (lane,) = daemon.status().lanes
    return lane


def until_lent(daemon: Daemon, clients: int) -> None:
    daemon.until(lambda status: status.lanes[0].lent == clients)


def start(start_daemon: StartDaemon, model: Path, *arguments: str, idle: str = "backoff") -> Daemon:
    lane = ("--lane-cpu", str(CORE), "--lane-idle", idle)
    return start_daemon("--model", str(model), "--backend", "native", *lane, *arguments)


def ask(client: Client, rows: npt.NDArray[np.float32], together: int) -> list[tuple[Any, ...]]:
    """Sequence, status and outputs, as bytes, of each answer."""
    got: list[tuple[Any, ...]] = []
    for first in range(0, len(rows), together):
        client.send_many(rows[first : first + together])
        while client.unanswered:
            got += [
                (int(one["sequence"]), int(one["status"]), one["outputs"].tobytes())
                for one in client.receive_many()
            ]
    return got


@pytest.mark.parametrize("idle", ["spin", "backoff", "block"])
def test_answers_are_those_of_a_daemon_without_a_lane(
    start_daemon: StartDaemon, models: ModelMaker, idle: str
) -> None:
    model = models.mlp(FEATURES, (16,), OUTPUTS)
    rows = ROWS.copy()
    rows[10, 3] = math.nan
    rows[40, 0] = 2e38
    got = []
    for daemon in (start_daemon("--model", str(model)), start(start_daemon, model, idle=idle)):
        with daemon.connect(shared_memory=True) as client, daemon.connect() as stream:
            got.append([ask(client, rows, together) for together in (1, 5, 20)])
            assert ask(stream, rows[:1], 1)[0][2] == got[-1][0][0][2]
    assert got[0] == got[1]
    assert got[0][0][10][1] == Status.BAD_INPUT
    assert f" lanes={CORE}" in daemon.ready
    status = daemon.status()
    assert lane_of(daemon).handed_over["features"] >= 2
    assert 0 < lane_of(daemon).requests < 3 * 64
    assert f'sigd_lane_requests_total{{core="{CORE}"}} {lane_of(daemon).requests}' in daemon.metrics()
    assert status.models[0].answers["OK"] == 3 * 63 + 1
    assert sum(count for _, count in status.models[0].total.bins) >= 3 * 63 + 1


def test_reloads_and_lost_clients_under_load_cost_no_answer(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    files = [models.mlp(FEATURES, (16,), OUTPUTS, seed=seed) for seed in (1, 2, 3)]
    daemon = start(start_daemon, files[0])
    stop = threading.Event()
    seen: list[list[int]] = [[], []]
    failures: list[BaseException] = []

    def pump(generations: list[int], in_flight: int) -> None:
        try:
            with daemon.connect(shared_memory=True) as client:
                answered = 0
                while not stop.is_set():
                    client.send_many(ROWS[:in_flight])
                    while client.unanswered:
                        answers = client.receive_many()
                        assert (answers["status"] == Status.OK).all()
                        assert answers["sequence"].tolist() == list(range(answered, answered + len(answers)))
                        answered += len(answers)
                        generations += answers["model_generation"].tolist()
        except BaseException as error:
            failures.append(error)
            raise

    pumps = [threading.Thread(target=pump, args=(seen[i], (1, 30)[i])) for i in (0, 1)]
    for thread in pumps:
        thread.start()
    until_lent(daemon, 2)
    daemon.until(lambda _status: all(seen))
    dying = (
        "import os, sys; from sigd.wire.client import connect; import numpy as np\n"
        "c = connect(sys.argv[1], shared_memory=True)\n"
        f"c.send_many(np.ones((100, {FEATURES}), np.float32)); os._exit(0)"
    )
    for number in range(3):
        subprocess.run([sys.executable, "-P", "-c", dying, str(daemon.socket)], check=True, timeout=60)
        command = [sys.executable, "-P", "-m", "sigd.daemon", "reload", "--socket", str(daemon.socket)]
        subprocess.run([*command, "--model", str(files[1 + number % 2])], check=True, timeout=60)
    daemon.until(lambda _status: bool(failures) or all(generations[-1] == 4 for generations in seen))
    stop.set()
    for thread in pumps:
        thread.join()
    assert failures == []
    for generations in seen:
        assert all(before <= after for before, after in pairwise(generations))
        assert {1, 4} <= set(generations)
    daemon.until(lambda status: status.connections_open == 0 and status.lanes[0].sessions == 0)


@pytest.mark.parametrize("idle", ["spin", "backoff"])
def test_stop_while_busy_answers_all_that_was_accepted(
    start_daemon: StartDaemon, models: ModelMaker, idle: str
) -> None:
    daemon = start(start_daemon, models.mlp(FEATURES, (16,), OUTPUTS), idle=idle)
    with daemon.connect(shared_memory=True) as client:
        ask(client, ROWS, 8)
        until_lent(daemon, 1)
        client.send_many(ROWS)
        daemon.process.send_signal(signal.SIGTERM)
        answers = client.goodbye()
    assert set(answers["status"].tolist()) <= {Status.OK, Status.DRAINING}
    assert daemon.process.wait(60) == 0


def test_start_says_what_no_lane_serves(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon(
        "--model", str(models.copied(4)), "--backend", "onnxruntime", "--lane-cpu", str(CORE)
    )
    with daemon.connect(shared_memory=True) as client:
        assert client.request([1, 2, 3, 4]).outputs.tolist() == [1, 2, 3, 4]
    assert lane_of(daemon).sessions == 0
    assert "is served by the loop, not in a lane: it runs on onnxruntime" in daemon.said()


def test_core_that_is_not_there_is_refused(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), "--lane-cpu", "1023", ready=False)
    assert daemon.process.wait(60) == 2
    assert "lane_cpu 1023 is not one that this process may run on" in daemon.said()


HOLDS_THE_LOCK = """
import ctypes, os, sys, threading, time
if "serve" in sys.orig_argv:
    def hold(folder=os.path.dirname(__file__)):
        while not os.path.exists(folder + "/hold"):
            time.sleep(0.01)
        open(folder + "/held", "x").close()
        ctypes.PyDLL(None).usleep(900_000)  # with the interpreter's lock
        open(folder + "/released", "x").close()
    threading.Thread(target=hold, daemon=True).start()
"""


def test_requests_are_answered_while_python_s_lock_is_held(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLDS_THE_LOCK)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    lane = ("--lane-cpu", str(CORE), "--lane-idle", "backoff")
    model = str(models.mlp(FEATURES, (16,), OUTPUTS))
    daemon = start_daemon(
        "--model", model, "--backend", "native", *lane, env=os.environ | {"PYTHONPATH": path}
    )
    with daemon.connect(shared_memory=True) as client:
        client.request(ROWS[0])
        until_lent(daemon, 1)
        (tmp_path / "hold").touch()
        while not (tmp_path / "held").exists():
            client.request(ROWS[0])
        answered = 0
        while not (tmp_path / "released").exists():
            assert client.request(ROWS[0]).status == Status.OK
            answered += 1
    assert answered > 1, "one may have waited for the lock"
