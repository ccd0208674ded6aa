"""From a plan to what its workers are told: the model's stamp, the question to the market, each symbol's
tick."""

from __future__ import annotations

from math import gcd
from pathlib import Path

import msgspec

from sigd.bench.backfill.piece import Job
from sigd.bench.backfill.plan import Piece, Plan
from sigd.bench.backfill.sources import market_events
from sigd.bench.backfill.stamp import stamp_here
from sigd.bench.backfill.table import require_pyarrow
from sigd.bench.errors import BadRequest
from sigd.models.market.batch import batches_of, events_of
from sigd.models.market.errors import MarketError
from sigd.models.market.events import DepthSnapshot
from sigd.models.market.parquet import read_batches
from sigd.models.registry import open_backend
from sigd.models.training.outcome import outcome_of_model
from sigd.models.zoo import default_model_path


def job_of(plan: Plan, out: Path) -> Job:
    """What all pieces have in common.

    Raises:
        BadRequest: the plan does not say what is asked of the market, nor does the model.
        MissingDependency: pyarrow is not installed.
        ModelError: the model cannot be opened.
    """
    require_pyarrow()
    model = (plan.model or default_model_path()).absolute()
    if not model.is_file():
        raise BadRequest(f"{model}: there is no such model; see model in the plan")
    trained = outcome_of_model(model) if model.suffix == ".onnx" else None
    if trained is None and (plan.horizon_ms is None or plan.flat_bps is None):
        raise BadRequest(
            f"{model} does not say what it was trained for: set horizon_ms and flat_bps in the plan"
        )
    horizon_ns = trained.horizon_ns if trained is not None else 0
    flat_bps = trained.flat_bps if trained is not None else 0.0
    backend = open_backend(model, plan.backend)
    try:
        stamp = stamp_here(
            backend,
            state=plan.state,
            horizon_ns=horizon_ns if plan.horizon_ms is None else int(plan.horizon_ms * 1e6),
            flat_bps=flat_bps if plan.flat_bps is None else plan.flat_bps,
        )
    finally:
        backend.close()
    return Job(
        out=str(out),
        model=str(model),
        backend=plan.backend,
        state=plan.state,
        stamp=stamp,
        allow_gaps=plan.gaps == "allow",
    )


def with_ticks(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The pieces, each with its symbol's tick: the plan's, or that of the first snapshot of the symbol's
    first file. Where that file cannot be read it stays 0, and its pieces will say why."""
    ticks: dict[str, int] = {}
    for piece in pieces:
        if piece.symbol not in ticks:
            known = piece.tick_e8 or piece.format == "recording"
            ticks[piece.symbol] = piece.tick_e8 if known else _first_tick_e8(piece)
    return tuple(msgspec.structs.replace(piece, tick_e8=ticks[piece.symbol]) for piece in pieces)


def _first_tick_e8(piece: Piece) -> int:
    try:
        if piece.format == "parquet":
            batches = read_batches(Path(piece.path))
        else:
            batches = batches_of(market_events(piece), 64)
        for batch in batches:
            for event in events_of(batch):
                if isinstance(event, DepthSnapshot):
                    return gcd(*[price for price, _ in event.bids + event.asks])
    except (MarketError, ImportError):
        pass
    return 0
