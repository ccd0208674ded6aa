"""A share of the rows by other means: features in Python, answers from a real daemon, bits compared.

Whatever made the files, native features and batches in this process, is checked against what it must equal.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sigd.bench.backfill.piece import CONVERGED, Job
from sigd.bench.backfill.plan import Piece
from sigd.bench.backfill.score import Rows
from sigd.bench.backfill.sources import files_of, market_batches, recorded_rows
from sigd.bench.backfill.store import Store
from sigd.bench.backfill.table import require_pyarrow
from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.models.backend import Float32Array
from sigd.models.features import FeatureStream, PythonFeatureStream
from sigd.models.market.events import UNITS_PER_ONE
from sigd.wire.client import Client, connect
from sigd.wire.status import Status

_ANSWER_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Verified:
    """What a verification has found.

    Attributes:
        rows, pieces: that were compared.
        different: for each piece that is not what it must be, the first row and what it has.
    """

    rows: int = 0
    pieces: int = 0
    different: dict[str, str] = field(default_factory=dict)


def verify(
    store: Store, job: Job, pieces: tuple[Piece, ...], share: float, on_piece: Callable[[str], None]
) -> Verified:
    """Compare at least `share` of all rows: whole pieces in the order of a digest, the last one in part.

    Raises:
        BenchError: no daemon can be started.
        MarketError: an input cannot be read any more.
    """
    committed = [piece for piece in pieces if piece.id in store.committed]
    wanted = math.ceil(share * sum(store.committed[piece.id].rows for piece in committed))
    verified = Verified()
    if not wanted:
        return verified
    order = sorted(
        committed, key=lambda piece: hashlib.sha256(f"{job.stamp.sha256} {piece.id}".encode()).digest()
    )
    options = ServeOptions(model=job.model, backend=None if job.backend == "auto" else job.backend)
    with OwnDaemon(options) as daemon, connect(daemon.socket_path, client_name="sigd backfill") as client:
        for piece in order:
            if verified.rows >= wanted:
                break
            if not store.committed[piece.id].rows:
                continue
            on_piece(piece.id)
            rows, difference = _compare(client, store, job, piece, wanted - verified.rows)
            verified.rows += rows
            verified.pieces += 1
            if difference:
                verified.different[piece.id] = difference
    return verified


def _compare(client: Client, store: Store, job: Job, piece: Piece, rows_max: int) -> tuple[int, str]:
    """How many rows were compared, and the first difference."""
    _, parquet = require_pyarrow()
    table = parquet.read_table(store.out / piece.output, partitioning=None)
    count = min(table.num_rows, rows_max)
    times = table["receive_ns"].to_numpy()
    status = table["status"].to_numpy()
    names = [name for name in table.column_names if name.startswith("output_")]
    outputs = np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32)
    at = 0
    for rows in _rows(store, job, piece):
        size = min(len(rows.receive_ns), count - at)
        if not size:
            continue
        answers = _answers(client, rows.features[:size])
        same = (times[at : at + size] == rows.receive_ns[:size]) & (
            status[at : at + size] == answers["status"]
        )
        good = answers["status"] == Status.OK
        bits = outputs[at : at + size].view(np.uint32) == answers["outputs"].view(np.uint32)
        same &= bits.all(axis=1) | ~good
        if not same.all():
            row = int(np.argmin(same))
            return at + size, (
                f"row {at + row}: the file has {outputs[at + row].tolist()} with status {status[at + row]} at"
                f" {times[at + row]}, a daemon answers {answers['outputs'][row].tolist()} with status"
                f" {answers['status'][row]} at {rows.receive_ns[row]}"
            )
        at += size
        if at == count:
            return count, ""
    return at, f"the file has more than the {at} rows that its input gives"


def _rows(store: Store, job: Job, piece: Piece) -> Iterator[Rows]:
    """The rows of a piece with the features in Python."""
    if piece.format == "recording":
        yield from recorded_rows(piece)
        return
    about = store.committed[piece.id].about
    assert about is not None
    converged_only = about.begins == CONVERGED
    stream = PythonFeatureStream(tick_size_e8=piece.tick_e8, snapshot_levels=piece.snapshot_levels)
    if job.state == "handover" and piece.before:
        handed_over: FeatureStream = pickle.loads(Path(job.state_file(piece.before)).read_bytes())
        stream = PythonFeatureStream.from_state(handed_over.state())
    for batch in market_batches(piece, files_of(piece).sha256()):
        samples = stream.on_batch(batch, converged_only=converged_only)
        times = batch.events["receive_ns"][samples.event]
        yield Rows(times, samples.mid_e8 / UNITS_PER_ONE, samples.features)


def _answers(client: Client, features: Float32Array) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """The daemon's answers, one a row, in order."""
    answers = []
    for row in features:
        while client.unanswered >= client.welcome.in_flight_max:
            answers.append(client.receive_many(timeout_s=_ANSWER_TIMEOUT_S))
        client.send(row)
    while client.unanswered:
        answers.append(client.receive_many(timeout_s=_ANSWER_TIMEOUT_S))
    joined: np.ndarray[tuple[int], np.dtype[np.void]] = np.concatenate(answers)
    return joined
