"""`sigd serve --shadow`: a second model runs the same rows, and no client can tell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import helper
from tests.conftest import children_of

from sigd.daemon.shadow.status import ShadowStatus
from sigd.wire.recording.reader import Exchanges, open_recordings
from sigd.wire.ring import why_not_here
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

FEATURES, OUTPUTS = 5, 3
PATIENCE_S = 60.0
Float32Array = npt.NDArray[np.float32]


def rows_of(count: int, seed: int = 0, features: int = FEATURES) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((count, features)).astype(np.float32)


def ask(daemon: Daemon, rows: Float32Array, **asked: Any) -> list[bytes]:
    """The outputs of one row after the other, to the bit."""
    with daemon.connect(**asked) as client:
        answers = [client.request(row) for row in rows]
    assert {answer.status for answer in answers} == {Status.OK}
    return [answer.outputs.tobytes() for answer in answers]


def shadow_of(daemon: Daemon) -> ShadowStatus:
    shadow = daemon.status().models[0].shadow
    assert shadow is not None
    return shadow


def until(daemon: Daemon, condition: Callable[[ShadowStatus], object]) -> ShadowStatus:
    """Ask for the status until the shadow's is as wanted."""

    def holds(shadow: ShadowStatus | None) -> bool:
        assert shadow is not None
        return bool(condition(shadow))

    shadow = daemon.until(lambda status: holds(status.models[0].shadow)).models[0].shadow
    assert shadow is not None
    return shadow


def process_of(daemon: Daemon) -> int:
    """The shadow's process id: of the daemon's children the one of that name."""
    children = children_of(daemon.process.pid)
    (found,) = [child for child in children if Path(f"/proc/{child}/comm").read_text() == "sigd-shadow\n"]
    return found


def serve(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", *arguments]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=timeout
    )


@pytest.fixture
def model(models: ModelMaker) -> Path:
    return models.mlp(FEATURES, (8,), OUTPUTS)


@pytest.fixture
def other(models: ModelMaker) -> Path:
    return models.mlp(FEATURES, (8,), OUTPUTS, seed=1)


@pytest.mark.parametrize("shared_memory", [False, True])
def test_answers_are_the_same_to_the_bit_and_all_are_compared(
    start_daemon: StartDaemon,
    model: Path,
    other: Path,
    oracle: Callable[[Path, Float32Array], Float32Array],
    shared_memory: bool,
) -> None:
    if shared_memory and why_not_here():
        pytest.skip(why_not_here())
    rows = rows_of(300)
    alone = start_daemon("--model", str(model))
    expected = ask(alone, rows, shared_memory=shared_memory)
    daemon = start_daemon("--model", str(model), "--shadow", str(other))
    assert ask(daemon, rows, shared_memory=shared_memory) == expected
    shadow = until(daemon, lambda shadow: shadow.statistics.compared == len(rows))
    served, shadowed = oracle(model, rows), oracle(other, rows)
    apart = np.abs(shadowed - served).max(axis=1)
    statistics = shadow.statistics
    assert (shadow.running, shadow.restarts, shadow.skipped, statistics.failed) == (True, 0, 0, 0)
    assert statistics.agreed == int((served.argmax(axis=1) == shadowed.argmax(axis=1)).sum())
    assert 0 < statistics.agreed < len(rows)
    assert statistics.difference_sum == pytest.approx(float(apart.sum()), rel=1e-4)
    assert statistics.difference_max == pytest.approx(float(apart.max()), rel=1e-4)
    drifts = [output.drift for output in statistics.outputs]
    expected_drifts = (shadowed.mean(axis=0) - served.mean(axis=0)) / served.std(axis=0)
    assert drifts == pytest.approx(expected_drifts.tolist(), abs=0.05)


def test_many_at_once_while_everything_is_recorded_too(
    start_daemon: StartDaemon, model: Path, tmp_path: Path
) -> None:
    rows = rows_of(640)
    daemon = start_daemon(
        "--model", str(model), "--shadow", str(model), "--record", str(tmp_path / "recordings")
    )
    with daemon.connect() as client:
        for first in range(0, len(rows), 128):
            client.send_many(rows[first : first + 128])
            assert set(client.receive_many(128)["status"].tolist()) == {Status.OK}
    shadow = until(daemon, lambda shadow: shadow.statistics.compared == len(rows))
    assert shadow.statistics.agreed == len(rows)
    assert shadow.statistics.difference_max < 1e-5
    assert daemon.stop() == 0
    (recording,) = open_recordings(tmp_path / "recordings")
    found = [item for item in recording.read() if isinstance(item, Exchanges)]
    assert np.array_equal(np.concatenate([item.requests["features"] for item in found]), rows)


def test_it_is_told_in_the_metrics_and_to_people(start_daemon: StartDaemon, model: Path, other: Path) -> None:
    daemon = start_daemon("--model", str(model), "--shadow", str(other))
    ask(daemon, rows_of(20))
    shadow = until(daemon, lambda shadow: shadow.statistics.compared == 20)
    metrics = daemon.metrics()
    name = model.stem
    info = f'sigd_shadow_info{{backend="{shadow.backend}",model="{name}",sha256="{shadow.sha256}"}} 1'
    assert info in metrics
    assert f'sigd_shadow_running{{model="{name}"}} 1' in metrics
    assert f'sigd_shadow_rows_total{{model="{name}",outcome="compared"}} 20' in metrics
    assert f'sigd_shadow_agreements_total{{model="{name}"}} {shadow.statistics.agreed}' in metrics
    assert f'sigd_shadow_difference_count{{model="{name}"}} 20' in metrics
    assert len(re.findall(r"^sigd_shadow_drift\{.*\} -?[0-9.e-]+$", metrics, re.MULTILINE)) == OUTPUTS
    command = [sys.executable, "-P", "-m", "sigd.daemon", "status", "--socket", str(daemon.socket)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    told = f"shadow {other}, sha256 {shadow.sha256[:16]} on {shadow.backend}: 20 rows compared, 0 skipped"
    assert told in said


def test_of_several_models_each_is_compared_with_its_own_in_its_sample(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    config = tmp_path / "sigd.toml"
    config.write_text(
        f'[[model]]\nname = "one"\npath = "{models.doubled(4)}"\n'
        f'[model.shadow]\npath = "{models.copied(4)}"\nsample = 0.25\n'
        f'[[model]]\nname = "two"\npath = "{models.copied(4)}"\n'
        f'[[model]]\nname = "three"\npath = "{models.copied(4)}"\n'
        f'[model.shadow]\npath = "{models.scaled(3.0)}"\n'
    )
    daemon = start_daemon("--config", str(config))
    for name in ("one", "two", "three"):
        ask(daemon, np.ones((40, 4), np.float32), model_name=name)
    status = daemon.until(
        lambda status: (
            [
                model.shadow and (model.shadow.statistics.compared, model.shadow.statistics.left_out)
                for model in status.models
            ]
            == [(10, 30), None, (40, 0)]
        )
    )
    one, _, three = (model.shadow for model in status.models)
    assert one is not None
    assert three is not None
    assert (one.statistics.difference_max, three.statistics.difference_max) == (1.0, 2.0)


def test_a_shadow_that_is_killed_is_started_again_and_serving_does_not_notice(
    start_daemon: StartDaemon, model: Path, other: Path
) -> None:
    daemon = start_daemon("--model", str(model), "--shadow", str(other))
    with daemon.connect() as client:
        rows = rows_of(30)
        for row in rows:
            client.request(row)
        until(daemon, lambda shadow: shadow.statistics.compared == 30)
        os.kill(process_of(daemon), signal.SIGKILL)
        until(daemon, lambda shadow: not shadow.running)
        assert f'sigd_shadow_running{{model="{model.stem}"}} 0' in daemon.metrics()
        for row in rows:
            assert client.request(row).status is Status.OK
        shadow = until(daemon, lambda shadow: shadow.running and shadow.skipped == 30)
        assert (shadow.restarts, shadow.statistics.compared) == (1, 30)
        # The same session, which the process that runs now has not seen coming.
        for row in rows:
            client.request(row)
        until(daemon, lambda shadow: shadow.statistics.compared == 60)
    assert "was ended by SIGKILL and is started again in 1 s" in daemon.said()
    assert "runs again" in daemon.said()


def test_a_shadow_that_hangs_costs_rows_and_nothing_else(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.copied(4000)), "--shadow", str(models.copied(4000)))
    rows = rows_of(1, features=4000)
    with daemon.connect() as client:
        client.request(rows[0])
        until(daemon, lambda shadow: shadow.statistics.compared == 1)
        pid = process_of(daemon)
        os.kill(pid, signal.SIGSTOP)
        try:
            # Each takes 32 KB of the ring's 8 MiB.
            for _ in range(600):
                assert client.request(rows[0]).outputs.tobytes() == rows[0].tobytes()
            skipped = shadow_of(daemon).skipped
            assert 300 < skipped < 400
        finally:
            os.kill(pid, signal.SIGCONT)
        until(daemon, lambda shadow: shadow.statistics.compared == 601 - skipped)
        client.request(rows[0])
        until(daemon, lambda shadow: shadow.statistics.compared == 602 - skipped)


def test_a_shadow_that_fails_or_gives_no_number_is_counted(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    root = models.graph([helper.make_node("Sqrt", ["features"], ["logits"])], ["N", 4], ["N", 4])
    daemon = start_daemon("--model", str(models.copied(4)), "--shadow", str(root))
    ask(daemon, np.array([[1, 4, 9, 16], [-1, 4, 9, 16], [0, 0, 0, 0]], np.float32))
    shadow = until(daemon, lambda shadow: shadow.statistics.compared + shadow.statistics.failed == 3)
    assert (shadow.statistics.compared, shadow.statistics.failed, shadow.statistics.difference_max) == (
        2,
        1,
        12,
    )

    daemon = start_daemon("--model", str(models.mlp(4, (8,), 2)), "--shadow", str(models.failing(4, 2)))
    ask(daemon, np.array([[99, 0, 0, 0]], np.float32))
    until(daemon, lambda shadow: shadow.statistics.failed == 1)
    ask(daemon, np.array([[1, 0, 0, 0]], np.float32))
    shadow = until(daemon, lambda shadow: shadow.statistics.compared == 1)
    assert shadow.restarts == 0
    assert "the shadow failed on a batch" in daemon.said()


def test_after_a_reload_it_is_compared_with_the_model_that_is_served_now(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    shadow_file = models.scaled(3.0)
    daemon = start_daemon("--model", str(models.copied(4)), "--shadow", str(shadow_file))
    rows = np.ones((10, 4), np.float32)
    with daemon.connect() as client:
        for row in rows:
            client.request(row)
        before = until(daemon, lambda shadow: shadow.statistics.compared == 10).statistics
        assert (before.generation, before.difference_max, before.difference_sum) == (1, 2.0, 20.0)
        command = [sys.executable, "-P", "-m", "sigd.daemon", "reload", "--socket", str(daemon.socket)]
        subprocess.run([*command, "--model", str(shadow_file)], check=True, capture_output=True, timeout=120)
        for row in rows:
            client.request(row)
        after = until(daemon, lambda shadow: shadow.statistics.compared == 20).statistics
        assert (after.generation, after.difference_sum, after.differences[0]) == (2, 20.0, 10)
        assert after.outputs[0].served_mean == after.outputs[0].shadow_mean == 3


def test_after_a_reload_with_another_shape_its_rows_are_skipped(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), "--shadow", str(models.doubled(4)))
    ask(daemon, np.ones((3, 4), np.float32))
    until(daemon, lambda shadow: shadow.statistics.compared == 3)
    command = [sys.executable, "-P", "-m", "sigd.daemon", "reload", "--socket", str(daemon.socket)]
    wider = [*command, "--model", str(models.copied(6)), "--allow-new-shape"]
    subprocess.run(wider, check=True, capture_output=True, timeout=120)
    ask(daemon, np.ones((4, 6), np.float32))
    shadow = until(daemon, lambda shadow: shadow.skipped == 4)
    assert (shadow.running, shadow.statistics.compared) == (True, 3)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_killed_daemon_leaves_no_process_and_no_memory(
    start_daemon: StartDaemon, model: Path, other: Path, hangs: bool
) -> None:
    before = set(Path("/dev/shm").iterdir())
    daemon = start_daemon("--model", str(model), "--shadow", str(other))
    pid = process_of(daemon)
    if hangs:
        os.kill(pid, signal.SIGSTOP)
    daemon.stop(signal.SIGKILL)
    deadline_s = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline_s, "it goes on"
        time.sleep(0.01)
    assert {path for path in set(Path("/dev/shm").iterdir()) - before if "shadow" in path.name} == set()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_are_meant_for_the_daemon_do_not_end_it(
    start_daemon: StartDaemon, model: Path, other: Path, how: signal.Signals
) -> None:
    daemon = start_daemon("--model", str(model), "--shadow", str(other))
    os.kill(process_of(daemon), how)
    ask(daemon, rows_of(5))
    assert until(daemon, lambda shadow: shadow.statistics.compared == 5).restarts == 0


def test_it_runs_in_idle_time_beside_the_daemons_core(
    start_daemon: StartDaemon, model: Path, other: Path
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    daemon = start_daemon("--model", str(model), "--shadow", str(other), "--cpu", str(cores[0]))
    pid = process_of(daemon)
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert cores[0] not in os.sched_getaffinity(pid)


@pytest.mark.parametrize("check", [["--check"], []])
def test_what_cannot_be_a_shadow_is_refused_at_the_start(
    models: ModelMaker, model: Path, tmp_path: Path, check: list[str]
) -> None:
    socket = tmp_path / "sigd.sock"
    wider = models.mlp(FEATURES + 1, (8,), OUTPUTS)
    for file, words in (
        (wider, f"{FEATURES + 1} features -> {OUTPUTS} outputs, expected {FEATURES} -> {OUTPUTS}"),
        (models.mlp(FEATURES, (8,), OUTPUTS + 1), f"{FEATURES} features -> {OUTPUTS + 1} outputs, expected"),
        (tmp_path / "missing.onnx", "missing.onnx: no such file"),
        (models.mixing(FEATURES), "the answer for a row changes with the other rows"),
    ):
        done = serve("--model", model, "--shadow", file, "--socket", socket, *check)
        assert done.returncode == 2, done
        assert words in done.stderr
        assert str(file) in done.stderr
        assert done.stderr.count(" ERROR ") == 1, done.stderr
        assert not socket.exists()


def test_a_check_says_what_it_would_be_compared_with(model: Path, other: Path, tmp_path: Path) -> None:
    done = serve("--model", model, "--shadow", other, "--socket", tmp_path / "sigd.sock", "--check")
    assert done.returncode == 0
    backend = "(native|onnxruntime)"
    wanted = f"runs on {backend}, compared with {re.escape(str(other))} on {backend}; it would serve"
    assert re.search(wanted, done.stdout)


def test_a_shadow_that_others_could_change_is_refused(
    models: ModelMaker, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    file = folder / "shadow.onnx"
    file.write_bytes(model.read_bytes())
    done = serve("--model", model, "--shadow", file, "--socket", tmp_path / "sigd.sock", "--check")
    assert done.returncode == 2
    assert "others can change it" in done.stderr
    insecure = serve(
        "--model", model, "--shadow", file, "--socket", tmp_path / "s", "--check", "--allow-insecure-files"
    )
    assert insecure.returncode == 0, insecure.stderr
