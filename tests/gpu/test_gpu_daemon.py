"""The daemon with an engine on this machine's GPU, from its own command line, and the benchmark of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sigd.bench.verdict import INCONCLUSIVE_EXIT_CODE
from sigd.models.oracle import OracleBackend
from sigd.models.spec import read_spec
from sigd.models.zoo import default_model_path
from sigd.wire.client import connect
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.gpu.conftest import EngineOf, Run

pytestmark = pytest.mark.gpu

RUNS = {
    "open loop": ("--rate", "10000"),
    "closed loop": ("--closed-loop", "--floor"),
    "throughput": ("--no-p99", "--closed-loop", "--connections", "4", "--in-flight", "64"),
}


@pytest.fixture
def socket(engine_of: EngineOf, tmp_path: Path) -> Iterator[Path]:
    """Where a daemon serves the engine; it must end well."""
    path = tmp_path / "sigd.sock"
    command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--socket", str(path), "--idle", "spin"]
    with subprocess.Popen(
        [*command, "--model", str(engine_of()), "--keep-warm-us", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stderr is not None
        line = daemon.stdout.readline()
        if not line.startswith("sigd ready: "):
            pytest.fail(daemon.stderr.read())
        try:
            yield path
            daemon.terminate()
            _, said = daemon.communicate(timeout=60)
        finally:
            daemon.kill()
        assert daemon.returncode == 0, said
        assert "Traceback" not in said
        assert "PyCUDA" not in said


def test_the_daemon_answers_as_the_oracle_does(socket: Path) -> None:
    spec = read_spec(default_model_path())
    features = np.random.default_rng(1).standard_normal((500, spec.features), np.float32)
    oracle = OracleBackend(spec, len(features))
    oracle.open()
    oracle.inputs[:] = features
    oracle.submit(len(features))
    with connect(socket, timeout_s=60.0) as client:
        client.send_many(features[:200])
        answers = client.receive_many(200)
        assert set(answers["status"].tolist()) == {Status.OK}
        allowed = 1e-4 * float(np.abs(oracle.outputs).max())
        np.testing.assert_allclose(answers["outputs"], oracle.outputs[:200], atol=allowed, rtol=0)
        for row in features[200:]:
            assert client.request(row).status is Status.OK


def test_a_reload_while_it_serves(socket: Path, engine_of: EngineOf, run: Run) -> None:
    """The new engine is captured and warmed up beside a loop that goes on launching."""
    spec = read_spec(default_model_path())
    features = np.random.default_rng(2).standard_normal(spec.features, np.float32)
    answers: list[tuple[int, int]] = []
    over = threading.Event()

    def ask() -> None:
        with connect(socket, timeout_s=60.0) as client:
            while not over.is_set():
                answer = client.request(features)
                answers.append((answer.status, answer.model_generation))

    with ThreadPoolExecutor(1) as asker:
        asking = asker.submit(ask)
        try:
            for precision in ("fp16", "fp32"):
                done = run("reload", "--socket", str(socket), "--model", str(engine_of(precision)))
                assert done.returncode == 0, done.stderr
        finally:
            over.set()
        asking.result()
    assert {status for status, _ in answers} == {Status.OK}
    generations = [generation for _, generation in answers]
    assert generations == sorted(generations)
    assert set(generations) >= {1, 2}


@pytest.mark.parametrize("name", list(RUNS))
def test_the_benchmark_is_reported(
    engine_of: EngineOf, run: Run, report: dict[str, Any], bench_seconds: int, tmp_path: Path, name: str
) -> None:
    """Over the budget or not: the figures are in the report, and no reply may be lost or wrong."""
    done = run(
        *("bench", "--model", str(engine_of()), "--backend", "tensorrt", "--idle", "spin"),
        *("--duration", str(bench_seconds), "--json", str(tmp_path / "bench.json"), *RUNS[name]),
    )
    # Passed, over the budget, or disturbed too much to judge.
    assert done.returncode in (0, 1, INCONCLUSIVE_EXIT_CODE), done.stderr
    (written,) = tmp_path.glob("bench*.json")
    report["bench"][name] = {
        "exit_code": done.returncode,
        "file": written.name,
        **json.loads(written.read_text()),
    }
