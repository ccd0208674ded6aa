"""Answers of a real daemon over its socket, against the model's own."""

from __future__ import annotations

import math
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from sigd.wire.fields import SIGNAL_REQUEST
from sigd.wire.layout import frame_dtype, header_word, response_frame_bytes
from sigd.wire.messages import Hello
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

Float32Array = npt.NDArray[np.float32]
Oracle = Callable[[Path, Float32Array], Float32Array]

FEATURES = 8
OUTPUTS = 3
ROUNDING = 2e-6
"""ONNX Runtime adds in another order than the reference; outputs are near 1."""


def rows_of(seed: int, count: int) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def test_the_ready_line_says_what_is_served(start_daemon: StartDaemon, models: ModelMaker) -> None:
    model = models.mlp(FEATURES)
    daemon = start_daemon("--model", str(model), "--idle", "block")
    said = re.fullmatch(
        r"sigd ready: socket=(\S+) model=(\S+) \((\d+) -> (\d+)\) sha256=([0-9a-f]{16}) backend=(\w+)"
        r" idle=(\w+)\n",
        daemon.ready,
    )
    assert said
    status = daemon.status()
    assert said.groups() == (
        str(daemon.socket),
        model.stem,
        "8",
        "3",
        status.models[0].sha256[:16],
        status.models[0].backend,
        "block",
    )
    assert status.models[0].backend in ("native", "onnxruntime")
    with daemon.connect() as client:
        assert client.welcome.model_sha256.hex() == status.models[0].sha256
        assert client.welcome.daemon_pid == status.pid == daemon.process.pid
        assert client.welcome.model_name == model.stem


@pytest.mark.parametrize("idle", ["spin", "backoff", "block"])
def test_every_idle_strategy_answers_what_the_model_says(
    start_daemon: StartDaemon, models: ModelMaker, oracle: Oracle, idle: str
) -> None:
    model = models.mlp(FEATURES)
    daemon = start_daemon("--model", str(model), "--idle", idle, config={"backoff_spin_us": 2_000})
    rows = rows_of(1, 300)
    expected = oracle(model, rows)
    with daemon.connect() as client:
        lone = [client.request(row) for row in rows[:50]]
        for index in range(50, 60):  # long enough apart for "backoff" to fall asleep
            time.sleep(0.005)
            lone.append(client.request(rows[index]))
        sequences = client.send_many(rows[60:])
        answers = client.receive_many(240)
    assert all(answer.status == Status.OK for answer in lone)
    assert np.abs(np.array([answer.outputs for answer in lone]) - expected[:60]).max() < ROUNDING
    assert np.array_equal(answers["sequence"], sequences)
    assert (answers["status"] == Status.OK).all()
    assert np.abs(answers["outputs"] - expected[60:]).max() < ROUNDING
    assert daemon.status().models[0].answers["OK"] == 300


def test_a_row_gets_the_same_bits_alone_and_in_company(start_daemon: StartDaemon, models: ModelMaker) -> None:
    """Of a model that only copies: nothing on the way may touch a bit that the contract lets through."""
    daemon = start_daemon("--model", str(models.copied(4)))
    rows = np.array([[1e38, -3.4e38, 1.1754944e-38, -0.0], [0.1, 1 / 3, 7e-7, -1e30]], np.float32)
    with daemon.connect() as client:
        alone = [client.request(row) for row in rows for _ in range(3)]
        client.send_many(np.tile(rows, (40, 1)))
        together = client.receive_many(80)
    assert [answer.outputs.tobytes() for answer in alone] == [row.tobytes() for row in rows for _ in range(3)]
    assert together["outputs"].tobytes() == np.tile(rows, (40, 1)).tobytes()


@pytest.mark.parametrize("idle", ["spin", "block"])
def test_several_clients_at_once_each_get_their_own(
    start_daemon: StartDaemon, models: ModelMaker, oracle: Oracle, idle: str
) -> None:
    model = models.mlp(FEATURES)
    daemon = start_daemon("--model", str(model), "--idle", idle)
    failures: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            rows = rows_of(number, 600)
            expected = oracle(model, rows)
            with daemon.connect(client_name=f"client-{number}") as client:
                for first in range(0, 600, 60):
                    sent = client.send_many(rows[first : first + 60], instrument_id=number)
                    answers = client.receive_many(60)
                    assert np.array_equal(answers["sequence"], sent)
                    assert (answers["instrument_id"] == number).all()
                    assert (answers["status"] == Status.OK).all()
                    assert np.abs(answers["outputs"] - expected[first : first + 60]).max() < ROUNDING
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    (served,) = daemon.until(lambda status: status.connections_open == 0).models
    assert served.answers["OK"] == 3600
    assert sum(rows * count for rows, count in served.batches_by_rows.items()) == 3600


def test_times_and_stamps_are_what_they_say(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.mlp(FEATURES)))
    with daemon.connect() as client:
        for _ in range(3):
            before_ns = time.monotonic_ns()
            client.send(rows_of(0, 1)[0], client_time_ns=77, instrument_id=5, sequence=2**64 - 1)
            answer = client.receive()
            after_ns = time.monotonic_ns()
            assert (answer.sequence, answer.client_time_ns, answer.instrument_id) == (2**64 - 1, 77, 5)
            assert before_ns <= answer.receive_time_ns < answer.send_time_ns <= after_ns
            assert 0 < answer.infer_ns <= answer.send_time_ns - answer.receive_time_ns
            assert (answer.batch_rows, answer.model_generation) == (1, 1)


def test_statuses_over_the_wire(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.failing(4, 2, entries=4)), "--in-flight-max", "16")
    good = [1.0, 0, 0, 0]
    with daemon.connect() as client:
        for _ in range(2):  # the full way, then the short one
            assert client.request(good).outputs.tolist() == [2.0, 3.0]
            expired = client.request(good, deadline_ns=time.monotonic_ns() - 1)
            assert expired.status == Status.EXPIRED
            assert np.isnan(expired.outputs).all()
            assert client.request(good, deadline_ns=time.monotonic_ns() + 10**12).status == Status.OK
            assert client.request([1.0, math.nan, 0, 0]).status == Status.BAD_INPUT
            assert client.request([9.0, 0, 0, 0]).status == Status.MODEL_ERROR
            assert client.request(good).status == Status.OK
        client.send_many([good] * 200)
        statuses = client.receive_many(200)["status"]
        assert set(statuses) <= {Status.OK, Status.BUSY}
        assert (statuses[:16] == Status.OK).all()
    answers = daemon.status().models[0].answers
    assert answers["EXPIRED"] == answers["BAD_INPUT"] == answers["MODEL_ERROR"] == 2
    assert "failed on a row" in daemon.said()


def test_denormals_are_taken_for_zero(start_daemon: StartDaemon, models: ModelMaker) -> None:
    """Times 2 to the 60th even the smallest of them would show."""
    daemon = start_daemon("--model", str(models.scaled(2.0**60, 4)))
    denormals = np.array([1, 1 << 10, 0x007F_FFFF, 0x8000_0001], np.uint32).view(np.float32)
    with daemon.connect() as client:
        for _ in range(3):
            alone = client.request(denormals)
            assert alone.status == Status.OK
            assert not alone.outputs.any()
        client.send_many(np.tile(denormals, (50, 1)))
        assert not client.receive_many(50)["outputs"].any()
        assert client.request([1.0, 2.0, 0, 0]).outputs[1] == 2.0**61


def test_requests_in_the_same_write_as_hello(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    frames = np.zeros(5, frame_dtype(SIGNAL_REQUEST, 4))
    frames.view(np.uint64).reshape(5, -1)[:, 0] = header_word(10, frames.itemsize)
    frames["sequence"] = range(5)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.socket))
        connection.sendall(Hello().encode() + frames.tobytes())
        connection.shutdown(socket.SHUT_WR)
        assert len(_read_all(connection)) == 128 + 5 * response_frame_bytes(4)


def test_a_client_that_closes_its_way_out_gets_all_its_answers(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.slow(4, 2, layers=50)))
    frames = np.zeros(100, frame_dtype(SIGNAL_REQUEST, 4))
    frames.view(np.uint64).reshape(100, -1)[:, 0] = header_word(10, frames.itemsize)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.socket))
        connection.sendall(Hello().encode() + frames.tobytes() + frames.tobytes()[:21])
        connection.shutdown(socket.SHUT_WR)
        assert len(_read_all(connection)) == 128 + 100 * response_frame_bytes(2)


def _read_all(connection: socket.socket) -> bytes:
    connection.settimeout(60)
    received = bytearray()
    while part := connection.recv(1 << 16):
        received += part
    return bytes(received)


def test_the_sockets_permissions_are_as_configured_whatever_the_umask(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), preexec_fn=lambda: os.umask(0))
    for name, mode in (("sigd.sock", 0o660), ("sigd.sock.admin", 0o600)):
        assert stat.S_IMODE(daemon.socket.with_name(name).stat().st_mode) == mode


@pytest.mark.slow
def test_a_thousand_clients(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    clients = [daemon.connect() for _ in range(1000)]
    try:
        for _ in range(2):
            for number, client in enumerate(clients):
                client.send([number, 0, 0, 0])
            for number, client in enumerate(clients):
                assert client.receive().outputs[0] == number
        assert daemon.status().connections_open == 1000
    finally:
        for client in clients:
            client.close()
    daemon.until(lambda status: status.connections_open == 0)


def _serves(daemon: Daemon) -> None:
    with daemon.connect() as client:
        assert client.request(np.zeros(client.welcome.features)).status == Status.OK


def test_the_shipped_model_is_the_default(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    (model,) = daemon.status().models
    assert (model.name, model.features, model.outputs) == ("lob-mlp", 64, 3)
    _serves(daemon)
