"""History kept by a real daemon: steps answer as whole windows do, across a kill, a reload and a replay."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from tests.e2e.test_reload import reload
from tests.e2e.test_replay_recording import told

from sigd.daemon.runtime.process import resident_bytes
from sigd.models.history import Window
from sigd.models.native.backend import kernels_are_built
from sigd.wire.client import Client
from sigd.wire.errors import Rejected, SessionError, ShapeError, StepsNotStored
from sigd.wire.status import RequestFlag, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

STEPS, FEATURES = 5, 4
MIB = 1 << 20
NEEDS_KERNELS = pytest.mark.skipif(not kernels_are_built(), reason="the native kernels are not built")
Float32Array = npt.NDArray[np.float32]
Whole = Callable[[Float32Array], list[float]]


@pytest.fixture(scope="module")
def model(models: ModelMaker) -> Path:
    return models.lstm(STEPS, FEATURES)


@pytest.fixture(scope="module")
def whole(model: Path) -> Whole:
    """What ONNX Runtime itself answers to one window."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(window: Float32Array) -> list[float]:
        answer: list[float] = session.run(None, {"features": window[None]})[0][0].tolist()
        return answer

    return run


def rows(count: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def serve(model: Path, *more: str) -> tuple[str, ...]:
    return ("--model", str(model), "--backend", "onnxruntime", "--history-instruments", "2", *more)


@pytest.mark.parametrize("shared_memory", [False, True], ids=["stream", "rings"])
def test_steps_answer_as_whole_windows_do(
    start_daemon: StartDaemon, model: Path, whole: Whole, shared_memory: bool
) -> None:
    daemon = start_daemon(*serve(model))
    steps = rows(20)
    with daemon.connect(features=FEATURES, history=True, shared_memory=shared_memory) as client:
        assert (client.welcome.history_steps, client.welcome.history_instruments_max) == (STEPS, 2)
        for newest, row in enumerate(steps, start=1):
            answer = client.step(7, row)
            if newest < STEPS:
                assert answer.status is Status.WARMING_UP
            else:
                assert (answer.status, answer.outputs.tolist()) == (
                    Status.OK,
                    whole(steps[newest - STEPS : newest]),
                )
        assert client.step(7, steps[0], reset=True).status is Status.WARMING_UP
        client.fill(8, steps[:4])
        assert client.step(8, steps[4]).outputs.tolist() == whole(steps[:5])
        with pytest.raises(StepsNotStored, match="instrument 9 was answered BUSY"):
            client.fill(9, steps[:4])
        scrape = daemon.metrics()
        assert 'sigd_history_instruments{model="' in scrape
        assert re.search(r"^sigd_history_instruments_warming_up\{.*\} 1$", scrape, re.MULTILINE)
        client.give_up(8)
        client.fill(9, steps[:4])


@NEEDS_KERNELS
@pytest.mark.parametrize("shared_memory", [False, True], ids=["stream", "rings"])
@pytest.mark.parametrize("kept", ["states of its windows", "columns of its layers"])
def test_native_steps_run_from_what_was_kept_and_answer_as_whole_windows_do(
    start_daemon: StartDaemon, models: ModelMaker, model: Path, kept: str, shared_memory: bool
) -> None:
    model = model if kept.startswith("states") else models.tcn(STEPS, FEATURES)
    daemon = start_daemon("--model", str(model), "--backend", "native", "--history-instruments", "3")
    steps = rows(60)
    with (
        daemon.connect(features=FEATURES, history=True, shared_memory=shared_memory) as client,
        daemon.connect(features=STEPS * FEATURES) as other,
    ):
        told: dict[int, list[Float32Array]] = {1: [], 2: [], 3: []}
        for number, row in enumerate(steps):
            instrument = 1 + number * 7 % 3
            told[instrument].append(row)
            answer = client.step(instrument, row)
            if len(told[instrument]) >= STEPS:
                window = np.stack(told[instrument][-STEPS:])
                assert answer.outputs.tolist() == other.request(window).outputs.tolist()
            if number == 40:
                assert reload(daemon, "--model", model).returncode == 0
    assert f"native runs each step from the {kept}" in daemon.said()


def test_engine_fills_its_windows_again_after_a_kill(
    start_daemon: StartDaemon, model: Path, whole: Whole
) -> None:
    steps = rows(STEPS + 3)
    daemon = start_daemon(*serve(model))
    with daemon.connect(history=True) as client:
        for row in steps[: STEPS + 1]:
            client.step(1, row)
        daemon.stop(signal.SIGKILL)
        with pytest.raises(SessionError):
            client.step(1, steps[STEPS + 1])
    again = start_daemon(*serve(model))
    with again.connect(history=True) as client:
        client.fill(1, steps[2 : STEPS + 1])
        assert client.step(1, steps[STEPS + 1]).outputs.tolist() == whole(steps[2 : STEPS + 2])


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("native", marks=NEEDS_KERNELS)])
@pytest.mark.parametrize("shared_memory", [False, True], ids=["stream", "rings"])
def test_recording_of_steps_replays_to_the_bit(
    start_daemon: StartDaemon, model: Path, tmp_path: Path, backend: str, shared_memory: bool
) -> None:
    directory = tmp_path / "recordings"
    daemon = start_daemon(*serve(model, "--backend", backend, "--record", str(directory)))
    copy = tmp_path / "again.onnx"
    copy.write_bytes(model.read_bytes())
    steps = rows(40)
    with (
        daemon.connect(history=True, shared_memory=shared_memory) as client,
        daemon.connect() as other,
    ):
        for number, row in enumerate(steps):
            client.step(number % 2, row, reset=number == 20)
            if number == 30:
                assert reload(daemon, "--model", copy).returncode == 0
        client.send_many(steps[:6], instrument_id=1)
        many = client.receive_many(6)
        assert (many["status"] == Status.OK).all()
        other.request(steps[:STEPS])
    assert daemon.stop() == 0
    report = told("replay", directory)
    ok = report["by_status"]["OK"]
    assert report["passed"]
    assert report["left_out"] == {"WARMING_UP": 12}
    assert (report["replayed"], sum(one["equal"] for one in report["models"])) == (ok, ok)
    assert ok == 40 - 12 + 6 + 1
    assert len(report["models"]) == 2


def test_thousand_instruments_take_the_memory_that_is_stated(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    steps, features, instruments = 50, 100, 1000
    model = models.lstm(steps, features)
    daemon = start_daemon(
        "--model", str(model), "--backend", "echo", "--history-instruments", str(instruments)
    )
    stated = Window(steps, features).memory_bytes(instruments)
    assert stated == 8 * steps * features * instruments
    each = np.random.default_rng(0).standard_normal((instruments, features)).astype(np.float32)
    ids = np.arange(instruments)

    def step(client: Client, times: int, flags: RequestFlag) -> None:
        at_once = min(client.welcome.in_flight_max, instruments)
        for _ in range(times):
            for first in range(0, instruments, at_once):
                part = slice(first, first + at_once)
                sent = client.send_many(each[part], instrument_id=ids[part], flags=flags)
                statuses = client.receive_many(len(sent))["status"]
                assert (statuses == (Status.STORED if flags else Status.OK)).all()

    with daemon.connect(history=True) as client:
        before = resident_bytes(daemon.process.pid)
        step(client, steps, RequestFlag.STORE_ONLY)
        step(client, 1, RequestFlag.NONE)
        full = resident_bytes(daemon.process.pid)
        assert full - before < stated + 8 * MIB
        step(client, 40, RequestFlag.NONE)
        assert resident_bytes(daemon.process.pid) - full < 2 * MIB


def test_client_that_keeps_its_own_windows_has_no_steps(start_daemon: StartDaemon, model: Path) -> None:
    daemon = start_daemon(*serve(model))
    with daemon.connect(features=STEPS * FEATURES) as client:
        assert client.request(rows(STEPS)).ok
        for call in (
            lambda: client.step(1, rows(1)[0]),
            lambda: client.send(rows(STEPS), flags=RequestFlag.RESET),
            lambda: client.send_many(rows(STEPS)[None], flags=RequestFlag.RESET),
        ):
            with pytest.raises(ShapeError, match=r"connect\(history=True\)"):
                call()


def test_model_without_the_table_keeps_none(start_daemon: StartDaemon, model: Path) -> None:
    daemon = start_daemon("--model", str(model))
    with pytest.raises(Rejected, match=r"configure \[model.history\]"):
        daemon.connect(history=True)


@NEEDS_KERNELS
def test_check_says_that_native_keeps_columns(models: ModelMaker) -> None:
    model = models.tcn(20, FEATURES)
    command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--check", "--model", str(model)]
    command += ["--backend", "native", "--history-instruments", "2"]
    good = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    told = "for 2 instruments of each client native runs each step from the columns of its layers"
    assert f"{told}, which take 128 bytes more" in good.stdout


def test_check_proves_that_steps_answer_as_windows_do(model: Path, tmp_path: Path) -> None:
    def check(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--check", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    good = check(*serve(model))
    assert good.returncode == 0, good.stderr
    assert "keeps history: 5 steps of 4 features, 160 bytes for each instrument of a client" in good.stdout
    assert "for 2 instruments of each client onnxruntime runs the whole window of each step" in good.stdout
    (tmp_path / "sigd.toml").write_text(f'model = "{model}"\nhistory = {{steps = 6}}\n')
    seen = subprocess.run(
        [sys.executable, "-P", "-m", "sigd.daemon", "inspect", str(model)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "history       5 steps of 4 features along axis 1: 160 bytes for each instrument" in seen.stdout
    assert "steps         native " in seen.stdout
    wrong = check("--config", tmp_path / "sigd.toml")
    assert wrong.returncode == 2
    assert "looks at 5 steps, and the history table says 6" in wrong.stderr
