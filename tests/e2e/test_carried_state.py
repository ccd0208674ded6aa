"""A state that a real daemon carries: answers are those of a client that carries it itself, across a reload
and a replay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.e2e.test_reload import reload
from tests.e2e.test_replay_recording import told

from sigd.wire.errors import Rejected
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

FEATURES, HIDDEN = 4, 6
Float32Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def model(models: ModelMaker) -> Path:
    return models.carried(FEATURES, hidden=HIDDEN)


def rows(count: int) -> Float32Array:
    return np.random.default_rng(0).standard_normal((count, FEATURES)).astype(np.float32)


def serve(model: Path, *more: str) -> tuple[str, ...]:
    return ("--model", str(model), "--backend", "onnxruntime", *more)


@pytest.mark.parametrize("shared_memory", [False, True], ids=["stream", "rings"])
def test_daemon_carries_what_a_client_would(
    start_daemon: StartDaemon, model: Path, tmp_path: Path, shared_memory: bool
) -> None:
    plain = start_daemon(*serve(model), folder=tmp_path / "plain")
    kept = start_daemon(*serve(model, "--history-instruments", "2"), folder=tmp_path / "kept")
    assert f"({FEATURES} -> 2)" in kept.ready, "of a step, without the states"
    (served,) = kept.status().models
    assert (served.features, served.outputs) == (FEATURES, 2)
    with (
        plain.connect() as own,
        kept.connect(features=FEATURES, outputs=2, history=True, shared_memory=shared_memory) as client,
    ):
        # The row is h_in, features, c_in; the answer c_out, logits, h_out.
        zeros = np.zeros(HIDDEN, np.float32)
        state: dict[int, tuple[Float32Array, Float32Array]] = {0: (zeros, zeros), 1: (zeros, zeros)}
        for number, row in enumerate(rows(30)):
            instrument, reset = number % 2, number in (10, 17)
            h, c = (zeros, zeros) if reset else state[instrument]
            whole = own.request(np.concatenate([h, row, c])).outputs
            state[instrument] = whole[-HIDDEN:], whole[:HIDDEN]
            answer = client.step(instrument, row, reset=reset)
            assert (answer.status, answer.outputs.tolist()) == (Status.OK, whole[HIDDEN:-HIDDEN].tolist())
        assert client.step(2, rows(1)[0]).status is Status.BUSY
        client.give_up(0)
        assert client.step(2, rows(1)[0]).status is Status.OK
        with pytest.raises(Rejected, match="this model carries a state: ask for history"):
            kept.connect()


def test_recording_of_a_carried_state_replays_to_the_bit(
    start_daemon: StartDaemon, model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "recordings"
    config = tmp_path / "sigd.toml"
    config.write_text(
        f'''model = "{model}"
backend = "onnxruntime"
history = {{warm_up_steps = 3, states = {{h_in = "h_out", c_in = "c_out"}}}}
'''
    )
    daemon = start_daemon("--config", str(config), "--record", str(directory))
    copy = tmp_path / "again.onnx"
    copy.write_bytes(model.read_bytes())
    steps = rows(60)
    with daemon.connect(history=True) as client, daemon.connect(history=True) as other:
        for number, row in enumerate(steps[:40]):
            client.step(number % 2, row, reset=number == 20)
            if number == 30:
                assert reload(daemon, "--model", copy).returncode == 0
        other.fill(1, steps[:5])
        # Several steps of an instrument at once run one after the other.
        other.send_many(steps[40:], instrument_id=np.arange(20) % 4)
        many = other.receive_many(20)["status"]
        assert np.bincount(many)[[Status.OK, Status.WARMING_UP]].tolist() == [14, 6]
    assert daemon.stop() == 0
    report = told("replay", directory)
    assert report["passed"], report
    # Two instruments at the start, one after its reset, two after the reload, three of the other client.
    assert report["left_out"] == {"WARMING_UP": 2 * (2 + 1 + 2) + 6, "STORED": 5}
    ok = report["by_status"]["OK"]
    assert (report["replayed"], sum(one["equal"] for one in report["models"])) == (ok, ok)
    assert ok == 40 - 10 + 14
    assert len(report["models"]) == 2


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "sigd.daemon", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_check_and_inspect_say_what_is_carried(model: Path) -> None:
    good = run("serve", "--check", *serve(model, "--history-instruments", "2"))
    assert good.returncode == 0, good.stderr
    told = (
        "carries a state, h_in -> h_out [6], c_in -> c_out [2, 3]: 48 bytes for each instrument of a client"
    )
    assert told in good.stdout
    seen = run("inspect", model)
    assert "a state, h_in -> h_out, c_in -> c_out, beside steps of 4 features: 48 bytes" in seen.stdout
    history = json.loads(run("inspect", model, "--json").stdout)["history"]
    assert history["states"] == {"h_in": "h_out", "c_in": "c_out"}
    assert (history["features"], history["outputs"], history["steps"]) == (4, 2, 0)
