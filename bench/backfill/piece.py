"""Scores one piece in whatever process it is given to, and commits its file.

What is wrong with an input comes back as a failed outcome, so that no engine runs it again and the others
finish.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sigd.bench.backfill.commit import NotTheSame, commit, commit_bytes, sha256_of, temporary
from sigd.bench.backfill.plan import Piece, State
from sigd.bench.backfill.score import Outcomes, Rows, score
from sigd.bench.backfill.stamp import Stamp, stamp_here
from sigd.bench.backfill.table import About, read_about, writing
from sigd.models.backend import Backend
from sigd.models.errors import ModelError
from sigd.models.features.catalogue import FEATURE_COUNT
from sigd.models.features.stream import FeatureStream
from sigd.models.market.capture import read_capture
from sigd.models.market.errors import MarketError
from sigd.models.market.events import UNITS_PER_ONE, MarketEvent
from sigd.models.registry import open_backend

FIRST: Final = "first"
CONVERGED: Final = "converged"
_ROWS_TOGETHER: Final = 4096


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What all pieces of a run have in common.

    Attributes:
        out: the output directory, absolute.
        model: the model's file, absolute.
        allow_gaps: whether a piece whose book broke is written all the same.
    """

    out: str
    model: str
    backend: str
    state: State
    stamp: Stamp
    allow_gaps: bool

    def state_file(self, piece_id: str) -> Path:
        """Where the state after a piece is kept."""
        return Path(self.out, "_state", f"{piece_id}.state")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a piece.

    Attributes:
        error: why it failed; "" where its file is committed.
        rows, events: in the file and in the input.
        elapsed_s: of this run; 0 where the file was found committed.
        sha256: of the file, in hex.
        input_mtime_ns: of the input when it was read.
    """

    piece: str
    error: str = ""
    rows: int = 0
    events: int = 0
    elapsed_s: float = 0.0
    sha256: str = ""
    input_mtime_ns: int = 0
    about: About | None = None


class _Refused(Exception):
    """The piece cannot be scored; the message says why."""


_backends: dict[tuple[str, str], Backend] = {}


def run_piece(job: Job, piece: Piece) -> Outcome:
    """Score and commit one piece. Never raises for what is wrong with the input, the model or the disk."""
    try:
        return _run(job, piece)
    except (_Refused, NotTheSame, MarketError, ModelError, ValueError) as error:
        return Outcome(piece=piece.id, error=str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Outcome(piece=piece.id, error=f"{where}{error.strerror or error}")


def _run(job: Job, piece: Piece) -> Outcome:
    started_ns = time.monotonic_ns()
    final = Path(job.out, piece.output)
    source = Path(piece.path)
    before = source.stat()
    if final.exists():
        return _found(job, piece, final, before.st_mtime_ns)
    backend = _open(job)
    input_sha256 = sha256_of(source)
    stream, begins = _begin(job, piece)
    outcomes = Outcomes(job.stamp.horizon_ns, job.stamp.flat_bps)
    events = _Counted(read_capture(source))
    with temporary(Path(job.out), piece.id) as path:
        with writing(path, piece.symbol, backend.spec.outputs) as table:
            for rows in rows_of_events(events, stream, converged_only=begins == CONVERGED):
                for columns in outcomes.add(score(backend, rows)):
                    table.write(columns)
            for columns in outcomes.end():
                table.write(columns)
            if stream.book_breaks and not job.allow_gaps:
                raise _Refused(
                    f"{source}: depth messages are missing, the book broke {stream.book_breaks} times,"
                    ' rows are missing too; to keep the rows that there are set gaps = "allow" in the plan'
                )
            after = source.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise _Refused(f"{source} changed while it was read: run it again once it is complete")
            about = About(
                stamp_sha256=job.stamp.sha256,
                input_sha256=input_sha256,
                input_bytes=before.st_size,
                begins=begins,
                tick_e8=stream.tick_size_e8,
                events=events.count,
                book_breaks=stream.book_breaks,
                events_ignored=stream.events_ignored,
            )
            table.finish(about)
        if job.state == "handover":
            commit_bytes(pickle.dumps(stream), Path(job.out), job.state_file(piece.id))
        digest = commit(path, final)
    return Outcome(
        piece=piece.id,
        rows=outcomes.rows,
        events=events.count,
        elapsed_s=(time.monotonic_ns() - started_ns) / 1e9,
        sha256=digest,
        input_mtime_ns=before.st_mtime_ns,
        about=about,
    )


def _found(job: Job, piece: Piece, final: Path, mtime_ns: int) -> Outcome:
    """The outcome of a piece that an earlier run committed."""
    about, rows = read_about(final)
    if about.stamp_sha256 != job.stamp.sha256:
        raise _Refused(f"{final} was written under another stamp than this run's: move it away")
    return Outcome(
        piece=piece.id,
        rows=rows,
        events=about.events,
        sha256=sha256_of(final),
        input_mtime_ns=mtime_ns,
        about=about,
    )


def _open(job: Job) -> Backend:
    """The model, open for the life of this process, after a check that it works here as it does for the
    others."""
    key = (job.stamp.sha256, job.model)
    backend = _backends.get(key)
    if backend is None:
        backend = open_backend(job.model, job.backend)
        here = stamp_here(
            backend, state=job.state, horizon_ns=job.stamp.horizon_ns, flat_bps=job.stamp.flat_bps
        )
        if differences := here.differences(job.stamp):
            raise _Refused(
                "this worker is not like the process that started the run (worker, run): "
                + "; ".join(differences)
            )
        if backend.spec.features != FEATURE_COUNT:
            raise _Refused(
                f"{job.model} takes {backend.spec.features} features, a market gives {FEATURE_COUNT}"
            )
        _backends[key] = backend
    return backend


def _begin(job: Job, piece: Piece) -> tuple[FeatureStream, str]:
    """The stream that a piece begins with, and how it begins."""
    if not piece.before or job.state == "converge":
        stream = FeatureStream(tick_size_e8=piece.tick_e8, snapshot_levels=piece.snapshot_levels)
        return stream, CONVERGED if piece.before else FIRST
    path = job.state_file(piece.before)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _Refused(
            f"the state after {piece.before} is not at {path}: it is written with that piece; move that"
            " piece's file away and those after it to have them written anew"
        ) from None
    stream = pickle.loads(content)
    assert isinstance(stream, FeatureStream)
    stream.book_breaks = stream.events_ignored = 0
    return stream, sha256_of(path)


class _Counted(Iterator[MarketEvent]):
    """Events, counted as they pass."""

    def __init__(self, events: Iterable[MarketEvent]) -> None:
        self._events = iter(events)
        self.count = 0

    def __next__(self) -> MarketEvent:
        event = next(self._events)
        self.count += 1
        return event


def rows_of_events(
    events: Iterable[MarketEvent], stream: FeatureStream, *, converged_only: bool = False
) -> Iterator[Rows]:
    """The samples of a market. `converged_only`: leave out those that a stream which began earlier may give
    otherwise."""
    features = np.empty((_ROWS_TOGETHER, FEATURE_COUNT), np.float32)
    times: list[int] = []
    mids: list[float] = []
    for event in events:
        if stream.on_event(event) and (not converged_only or stream.converged):
            features[len(times)] = stream.features
            times.append(event.receive_ns)
            mids.append(stream.mid_e8 / UNITS_PER_ONE)
            if len(times) == _ROWS_TOGETHER:
                yield Rows(np.array(times, np.int64), np.array(mids), features)
                times.clear()
                mids.clear()
    yield Rows(np.array(times, np.int64), np.array(mids), features[: len(times)])
