"""Reloads on the GPU path: an engine is opened beside the loop, by another thread than the one that launches
it then."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.simcuda.test_daemon_faults import FEATURES, PATIENCE_S, WARM_ANSWERS, Daemon, Load

from sigd.wire.client import connect
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.simcuda.conftest import EngineMaker

Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a daemon on that model: (path, *flags, **environment) -> Daemon."""
    daemons: list[Daemon] = []

    def start(model: Path, *arguments: str, **variables: str) -> Daemon:
        daemon = Daemon(tmp_path, model, *arguments, **variables)
        daemons.append(daemon)
        assert daemon.process.stdout is not None
        assert daemon.process.stdout.readline().startswith(b"sigd ready: "), daemon.said()
        return daemon

    yield start
    for daemon in daemons:
        daemon.end()


@pytest.fixture
def engine(make_engine: EngineMaker) -> Path:
    """Doubles its features, as `cpu_model` does."""
    return make_engine()


@pytest.fixture
def another_engine(make_engine: EngineMaker, models: ModelMaker) -> Path:
    """The same on the GPU, from a file of its own."""
    return make_engine(models.doubled(FEATURES))


@pytest.fixture
def cpu_model(models: ModelMaker) -> Path:
    return models.doubled(FEATURES)


def reload(daemon: Daemon, model: Path) -> dict[str, Any]:
    """How it went, as `sigd reload --json` says."""
    command = [sys.executable, "-P", "-m", "sigd.daemon", "reload", "--json"]
    done = subprocess.run(
        [*command, "--socket", str(daemon.socket), "--model", str(model)],
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    (went,) = json.loads(done.stdout)["models"]
    assert done.returncode == (1 if went["error"] else 0)
    return dict(went)


def held(daemon: Daemon) -> tuple[int, ...]:
    """What the daemon has of the device."""
    control = daemon.control
    return control.device_bytes, control.pinned_bytes, control.streams, control.events, control.graphs


def test_from_one_engine_to_another_under_load(start: Start, engine: Path, another_engine: Path) -> None:
    daemon = start(engine)
    before = held(daemon)
    load = Load(daemon.socket)
    for number, path in enumerate([another_engine, engine] * 2, 2):
        load.until_answered(WARM_ANSWERS)
        went = reload(daemon, path)
        assert (went["error"], went["generation"], went["backend"]) == ("", number, "tensorrt")
    load.until_answered(WARM_ANSWERS)
    load.end()
    assert load.wrong == 0
    assert set(load.statuses) == {Status.OK}
    assert held(daemon) == before, "what the old ones had is given back"
    daemon.process.terminate()
    assert daemon.ended() == 0, daemon.said()
    assert held(daemon) == (0,) * 5
    assert "PyCUDA" not in daemon.said()


@pytest.mark.parametrize("flags", [(), ("--keep-warm-us", "500")], ids=["", "kept warm"])
def test_from_the_cpu_to_the_gpu_and_back_and_again(
    start: Start, cpu_model: Path, engine: Path, flags: tuple[str, ...]
) -> None:
    """The loop's thread has opened no engine itself, and outlives the context of the first."""
    daemon = start(cpu_model, "--idle", "block", *flags)
    with connect(daemon.socket, timeout_s=PATIENCE_S) as client:
        for number, path in enumerate([engine, cpu_model, engine, engine, cpu_model], 2):
            went = reload(daemon, path)
            assert (went["error"], went["generation"]) == ("", number)
            # On the CPU the quicker of two serves, as measured when the file is opened.
            assert went["backend"] in ({"tensorrt"} if path == engine else {"native", "onnxruntime"})
            # Long enough for a tick that keeps warm to come before the first request.
            time.sleep(0.01)
            answer = client.request([1.0] * FEATURES)
            assert (answer.status, answer.model_generation) == (Status.OK, number), daemon.said()
            assert answer.outputs.tolist() == [2.0] * FEATURES
            assert held(daemon) == (0,) * 5 or path == engine
    daemon.process.terminate()
    assert daemon.ended() == 0, daemon.said()
    assert "PyCUDA" not in daemon.said()
    assert "Traceback" not in daemon.said()


def test_a_card_that_is_full_refuses_the_new_engine_and_the_old_one_serves_on(
    start: Start, engine: Path, another_engine: Path
) -> None:
    daemon = start(engine)
    before = held(daemon)
    load = Load(daemon.socket)
    daemon.control.cotenant_bytes = daemon.control.total_bytes
    went = reload(daemon, another_engine)
    assert "MiB are free" in went["error"]
    assert went["generation"] == 1
    load.until_answered(WARM_ANSWERS)
    load.end()
    assert load.wrong == 0
    assert set(load.statuses) == {Status.OK}
    assert held(daemon) == before


def test_an_engine_for_another_shape_is_refused_and_gives_back_what_it_took(
    start: Start, engine: Path, make_engine: EngineMaker, models: ModelMaker
) -> None:
    daemon = start(engine)
    before = held(daemon)
    went = reload(daemon, make_engine(models.doubled(FEATURES + 1)))
    assert f"{FEATURES + 1} features" in went["error"]
    assert held(daemon) == before
    with connect(daemon.socket, timeout_s=PATIENCE_S) as client:
        assert client.request([1.0] * FEATURES).outputs.tolist() == [2.0] * FEATURES


@pytest.mark.parametrize("trouble", ["kernel_fault", "hang"])
def test_a_card_that_dies_over_the_new_engine_ends_the_daemon_with_the_reason(
    start: Start, engine: Path, another_engine: Path, trouble: str
) -> None:
    """It is the card of the old engine too, and nothing on it works any more."""
    daemon = start(engine, "--device-timeout-ms", "100", "--idle", "block")
    setattr(daemon.control, trouble, 700)
    went = reload(daemon, another_engine)
    assert "GPU 0 failed at start" in went["error"]
    assert daemon.ended() == 1
    assert "stopped: the model's device failed" in daemon.said()
    assert "Traceback" not in daemon.said()


def test_a_stop_while_an_engine_is_opened_does_not_wait_for_the_card(
    start: Start, engine: Path, another_engine: Path
) -> None:
    daemon = start(engine, "--idle", "block", "--device-timeout-ms", "60000")
    streams = daemon.control.streams
    daemon.control.hang = 1
    command = [sys.executable, "-P", "-m", "sigd.daemon", "reload", "--socket", str(daemon.socket)]
    with subprocess.Popen([*command, "--model", str(another_engine)], stderr=subprocess.PIPE) as asked:
        deadline_s = time.monotonic() + PATIENCE_S
        while daemon.control.streams == streams:
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
        daemon.process.terminate()
        assert daemon.ended() == 0, daemon.said()
        assert asked.stderr is not None
        assert b"the daemon is stopping" in asked.stderr.read()
        assert asked.wait(PATIENCE_S) != 0
