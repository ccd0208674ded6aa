"""Replay: every sample becomes one signal, in order, beside what the market then did."""

from __future__ import annotations

import csv
import socket
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sigd.bench.errors import BadRequest
from sigd.bench.market.demo import run_demo, softmax
from sigd.bench.market.replay import Replayer, Signals, worth_of
from sigd.bench.market.signal_file import check_out, columns_of, write_table
from sigd.bench.market.synthetic import SyntheticMarket
from sigd.models.features import FeatureStream
from sigd.wire import fields
from sigd.wire.client import Client, connect
from sigd.wire.inbox import RequestInbox
from sigd.wire.layout import frame_dtype
from sigd.wire.messages import Welcome
from sigd.wire.outbox import ResponseOutbox

MS = 1_000_000


def serve(listener: socket.socket) -> None:
    """A daemon in a thread: outputs are the first feature times (-1, 0, 1)."""
    connection, _ = listener.accept()
    with connection:
        assert len(connection.recv(80)) == 80
        connection.sendall(Welcome(64, 3, 32, 1, 1, 1, bytes(32), "first-feature").encode())
        inbox, outbox = RequestInbox(64, 64), ResponseOutbox(3, 64, 1)
        while count := connection.recv_into(inbox.writable()):
            inbox.arrived(count)
            frame = inbox.scan(1)
            while inbox.rows:
                rows = min(inbox.rows, 64)
                outputs = inbox.row_features(0, rows)[:, :1] * np.array([-1, 0, 1], np.float32)
                connection.sendall(
                    outbox.encode(
                        inbox.row_words(0, rows), outputs, None, send_time_ns=2, infer_ns=1, batch_rows=rows
                    )
                )
                inbox.answered(rows)
                frame = inbox.scan(1)
            if frame is not None:
                return


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with connect(path) as connected:
            yield connected
        thread.join(10)
        assert not thread.is_alive()


def expected_rows(events: int) -> tuple[list[int], list[float], list[float]]:
    stream = FeatureStream()
    times, mids, firsts = [], [], []
    for event in islice(SyntheticMarket(3).events(), events):
        if stream.on_event(event):
            times.append(event.receive_ns)
            mids.append(stream.mid_e8 / 1e8)
            firsts.append(float(stream.features[0]))
    return times, mids, firsts


def test_every_sample_becomes_one_signal_in_order(client: Client) -> None:
    reports: list[tuple[int, int]] = []
    signals = Replayer(client, None).run(
        islice(SyntheticMarket(3).events(), 5_000), lambda *counts: reports.append(counts)
    )
    times, mids, firsts = expected_rows(5_000)
    assert len(times) > 1000
    assert signals.receive_ns.tolist() == times
    assert signals.mid.tolist() == mids
    assert signals.answers["outputs"][:, 2].tolist() == firsts
    assert signals.by_status["OK"] == len(times)
    assert signals.events == 5_000
    assert reports[-1] == (5_000, len(times))
    assert (signals.latency_ns > 0).all()


def test_paced_replay_keeps_the_markets_time(client: Client) -> None:
    events = list(islice(SyntheticMarket(3).events(), 3_500))
    signals = Replayer(client, 40.0).run(events, lambda *_: None)
    assert signals.elapsed_s >= (events[-1].receive_ns - events[0].receive_ns) / 40e9


def test_a_market_without_features_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="features"):
        Replayer(client, None).run(islice(SyntheticMarket(3).events(), 10), lambda *_: None)


def signals_of(mids: list[float], said: list[int], statuses: list[int] | None = None) -> Signals:
    answers = np.zeros(len(mids), frame_dtype(fields.SIGNAL_RESPONSE, 1, 3))
    answers["outputs"] = np.eye(3)[said]
    if statuses is not None:
        answers["status"] = statuses
    return Signals(
        np.arange(len(mids), dtype=np.int64) * MS,
        np.array(mids),
        answers,
        np.ones(len(mids), np.int64),
        9,
        1.0,
    )


def test_moves_look_exactly_the_horizon_ahead() -> None:
    moves = signals_of([100.0, 101.0, 100.0, 100.0], [0, 0, 0, 0]).moves_bps(2 * MS)
    assert moves[0] == pytest.approx(0.0)
    assert moves[1] == pytest.approx(-99.0099, abs=1e-3)
    assert np.isnan(moves[2:]).all()


def test_worth_counts_outcomes_against_signals() -> None:
    # Moves one ahead: up, down, flat, unknown.
    worth = worth_of(signals_of([100.0, 101.0, 100.0, 100.0], [2, 2, 1, 0]), MS, 0.1)
    assert worth is not None
    assert worth.confusion.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert worth.accuracy == pytest.approx(2 / 3)
    assert worth.balanced_accuracy == pytest.approx(2 / 3)
    assert worth.always_flat_accuracy == pytest.approx(1 / 3)
    assert np.isnan(worth.mean_move_bps[0])
    assert worth.mean_move_bps[1] == pytest.approx(0.0)


def test_answers_that_are_not_ok_are_no_signals() -> None:
    signals = signals_of([100.0, 101.0, 102.0], [2, 2, 2], [0, 1, 0])
    assert signals.classes.tolist() == [2, -1, 2]
    worth = worth_of(signals, MS, 0.1)
    assert worth is not None
    assert worth.confusion.sum() == 1
    assert worth_of(signals_of([100.0], [1]), MS, 0.1) is None


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_is_written_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"signals{suffix}"
    check_out(path)
    write_table(path, columns_of(signals_of([100.0, 101.0, 100.0], [2, 0, 1]), MS, 0.1))
    if suffix == ".csv":
        with path.open() as stream:
            rows = list(csv.DictReader(stream))
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
        rows = parquet.read_table(path).to_pylist()
    assert [float(row["mid"]) for row in rows] == [100.0, 101.0, 100.0]
    assert [int(row["signal"]) for row in rows] == [2, 0, 1]
    assert [int(row["outcome"]) for row in rows] == [2, 0, -1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"\.csv"):
        check_out(tmp_path / "signals.xlsx")
    with pytest.raises(BadRequest, match="does not exist"):
        check_out(tmp_path / "nowhere" / "signals.csv")


def test_softmax() -> None:
    assert softmax(np.array([0, 0, 0], np.float32)).tolist() == pytest.approx([1 / 3] * 3)
    assert softmax(np.array([1000, 0, 0], np.float32)).tolist() == pytest.approx([1, 0, 0])
    assert np.isnan(softmax(np.array([np.nan, 0, 0], np.float32))).all()


def test_demo_times_every_signal(client: Client) -> None:
    pictures: list[int] = []
    state = run_demo(client, SyntheticMarket(3).events(), 0.5, lambda shown: pictures.append(shown.signals))
    assert state.signals == state.by_status[0] == int(state.latencies.sum()) > 0
    assert pictures[-1] == state.signals
    assert state.percentiles_us((50.0,))[0] > 0
    assert len(state.probabilities) == 3
