"""Scores one piece in whatever process it is given to, and commits its file.

What is wrong with an input comes back as a failed outcome, so that no engine runs it again and the others
finish.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from sigd.bench.backfill.commit import (
    TEMPORARY,
    NotTheSame,
    commit,
    commit_bytes,
    sha256_of,
    temporary,
)
from sigd.bench.backfill.plan import Piece, State
from sigd.bench.backfill.score import Outcomes, Rows, score
from sigd.bench.backfill.sources import Files, files_of, market_batches, recorded_rows
from sigd.bench.backfill.stamp import Stamp, stamp_here
from sigd.bench.backfill.table import About, read_about, writing
from sigd.models.backend import Backend
from sigd.models.errors import ModelError
from sigd.models.features import FeatureStream
from sigd.models.features.catalogue import FEATURE_COUNT
from sigd.models.market.batch import DIFF
from sigd.models.market.errors import MarketError
from sigd.models.market.events import UNITS_PER_ONE
from sigd.models.registry import open_backend
from sigd.wire.errors import WireError

FIRST: Final = "first"
CONVERGED: Final = "converged"


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


_backends: dict[tuple[str, str, int], Backend] = {}


def run_piece(job: Job, piece: Piece) -> Outcome:
    """Score and commit one piece. Never raises for what is wrong with the input, the model or the disk."""
    try:
        return _run(job, piece)
    except (
        _Refused,
        NotTheSame,
        MarketError,
        ModelError,
        WireError,
        ValueError,
        OverflowError,
        ImportError,
    ) as error:
        return Outcome(piece=piece.id, error=str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Outcome(piece=piece.id, error=f"{where}{error.strerror or error}")


def _run(job: Job, piece: Piece) -> Outcome:
    started_ns = time.monotonic_ns()
    files = files_of(piece)
    final = Path(job.out, piece.output)
    if final.exists():
        return _found(job, piece, final, files.mtime_ns)
    backend = _open(job)
    out = Path(job.out)
    work = _Work(job, piece, files.sha256())
    with temporary(out / TEMPORARY, piece.id) as path:
        with writing(path, piece.symbol, backend.spec.outputs) as table:
            outcomes = Outcomes(job.stamp.horizon_ns, job.stamp.flat_bps)
            for rows in work.rows(backend.spec.features):
                for columns in outcomes.add(score(backend, rows)):
                    table.write(columns)
            for columns in outcomes.end():
                table.write(columns)
            about = work.about(files)
            if files_of(piece) != files:
                raise _Refused(f"{piece.path} changed while it was read: run it again once it is complete")
            table.finish(about)
        if job.state == "handover" and work.stream is not None:
            commit_bytes(pickle.dumps(work.stream), out, job.state_file(piece.id))
        digest = commit(path, final)
    return Outcome(
        piece=piece.id,
        rows=outcomes.rows,
        events=about.events,
        elapsed_s=(time.monotonic_ns() - started_ns) / 1e9,
        sha256=digest,
        input_mtime_ns=files.mtime_ns,
        about=about,
    )


class _Work:
    """The rows of a piece, and what there is to say of its input.

    Attributes:
        stream: of the features; None for a recording, which has them already.
    """

    def __init__(self, job: Job, piece: Piece, input_sha256: str) -> None:
        self._job = job
        self._piece = piece
        self._input_sha256 = input_sha256
        self._events = 0
        self.stream: FeatureStream | None = None
        self._begins = FIRST
        self._breaks_before = self._ignored_before = 0
        if piece.format != "recording":
            self.stream, self._begins = _begin(job, piece)
            self._breaks_before, self._ignored_before = self.stream.book_breaks, self.stream.events_ignored

    def rows(self, features: int) -> Iterator[Rows]:
        """In the order of time, as many features as the model takes."""
        if self.stream is None:
            for rows in recorded_rows(self._piece):
                if rows.features.shape[1] != features:
                    raise _Refused(f"{self._job.model} takes {features} features, the recording has others")
                self._events += len(rows.features)
                yield rows
            return
        if features != FEATURE_COUNT:
            raise _Refused(f"{self._job.model} takes {features} features, a market gives {FEATURE_COUNT}")
        has_depth = False
        for batch in market_batches(self._piece, self._input_sha256):
            self._events += len(batch.events)
            has_depth = has_depth or bool((batch.events["kind"] >= DIFF).any())
            samples = self.stream.on_batch(batch, converged_only=self._begins == CONVERGED)
            times = batch.events["receive_ns"][samples.event]
            yield Rows(times, samples.mid_e8 / UNITS_PER_ONE, samples.features)
        if self._events and not has_depth:
            raise _Refused(
                f"{self._piece.path} has no depth messages, only the touch or trades: the features need the"
                " book"
            )

    def about(self, files: Files) -> About:
        """Of what has been read.

        Raises:
            _Refused: the book broke and the plan does not allow it.
        """
        breaks = ignored = tick_e8 = 0
        if self.stream is not None:
            breaks = self.stream.book_breaks - self._breaks_before
            ignored = self.stream.events_ignored - self._ignored_before
            tick_e8 = self.stream.tick_size_e8
        if breaks and not self._job.allow_gaps:
            raise _Refused(
                f"{self._piece.path}: depth messages are missing, the book broke {breaks} times, rows are"
                ' missing too; to keep the rows that there are set gaps = "allow" in the plan'
            )
        return About(
            stamp_sha256=self._job.stamp.sha256,
            input_sha256=self._input_sha256,
            input_bytes=files.size,
            begins=self._begins,
            tick_e8=tick_e8,
            events=self._events,
            book_breaks=breaks,
            events_ignored=ignored,
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
    """The model, open for the life of this thread, after a check that it works here as it does for the
    others."""
    key = (job.stamp.sha256, job.model, threading.get_ident())
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
    handed_over: FeatureStream = pickle.loads(content)
    return handed_over, sha256_of(path)
