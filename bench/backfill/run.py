"""The driver: which pieces are left, what may run now, and how each ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sigd.bench.backfill.engines import Engine
from sigd.bench.backfill.piece import Outcome
from sigd.bench.backfill.plan import Piece, State
from sigd.bench.backfill.store import Store

_WAIT_S = 0.5


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Attributes:
        pieces: of the plan.
        found: that earlier runs had committed.
        done: committed by this run.
        events, rows: of those.
        empty: those of them without a row.
        failed: the reason by the piece's id.
        elapsed_s: since the first piece was given out.
    """

    pieces: int
    found: int = 0
    done: int = 0
    events: int = 0
    rows: int = 0
    empty: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def left(self) -> int:
        """Pieces that are neither committed nor failed."""
        return self.pieces - self.found - self.done - len(self.failed)

    @property
    def events_per_s(self) -> float:
        """Of this run; 0 before its first piece."""
        return self.events / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def left_s(self) -> float | None:
        """Time left at the rate so far; None before the first piece."""
        finished = self.done + len(self.failed)
        return self.elapsed_s / finished * self.left if finished else None


def run(
    store: Store,
    pieces: tuple[Piece, ...],
    state: State,
    engine: Engine,
    on_progress: Callable[[Progress], None],
) -> Progress:
    """Run every piece that is not committed. In "handover" a piece waits for the one before it."""
    progress = Progress(len(pieces))
    ready: deque[Piece] = deque()
    after: dict[str, Piece] = {}
    done: set[str] = set()
    for piece in pieces:
        if store.is_done(piece):
            done.add(piece.id)
        elif state == "handover" and piece.before and piece.before not in done:
            after[piece.before] = piece
        else:
            ready.append(piece)
    progress.found = len(done)
    on_progress(progress)
    in_flight = 0
    started_ns = time.monotonic_ns()
    while ready or in_flight:
        while ready and in_flight < engine.in_flight_max:
            engine.submit(ready.popleft())
            in_flight += 1
        outcomes = engine.wait(_WAIT_S)
        progress.elapsed_s = (time.monotonic_ns() - started_ns) / 1e9
        for outcome in outcomes:
            in_flight -= 1
            _take(outcome, store, progress, ready, after)
        on_progress(progress)
    return progress


def _take(
    outcome: Outcome, store: Store, progress: Progress, ready: deque[Piece], after: dict[str, Piece]
) -> None:
    """Note how a piece ended, and start the piece that waits for it."""
    following = after.pop(outcome.piece, None)
    if not outcome.error:
        store.note(outcome)
        progress.done += 1
        progress.events += outcome.events
        progress.rows += outcome.rows
        progress.empty += outcome.rows == 0
        if following is not None:
            ready.appendleft(following)
        return
    progress.failed[outcome.piece] = outcome.error
    failed = outcome.piece
    while following is not None:
        progress.failed[following.id] = f"it begins with the state after {failed}, which failed"
        failed = following.id
        following = after.pop(failed, None)
