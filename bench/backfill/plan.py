"""The plan of a backfill: a TOML file that names the model, the inputs and how the features begin.

    model = "model.onnx"                       # default: the model that ships with sigd
    state = "converge"                         # or "handover"
    gaps = "refuse"                            # or "allow"
    horizon_ms = 500                           # default: what the model was trained for
    flat_bps = 0.0

    [[input]]
    format = "capture"
    path = "captures/{symbol}_{date}.gz"       # relative to the plan; {kind} too for tardis
    parsed = "parsed/{symbol}_{date}.parquet"  # parse once, read this in later runs
    symbols = ["btcusdt", "ethusdt"]
    dates = "2024-08-08..2024-08-31"           # or a list
    ticks = { btcusdt = "0.1" }                # default: from the first snapshot of the symbol's first file
    snapshot_levels = 1000                     # a snapshot's side with fewer levels is whole; default: not
    known

One symbol and date is one piece: one output file. The pieces of a symbol are in the order of `dates`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final, Literal

import msgspec

from sigd.bench.errors import BadRequest
from sigd.models.market.capture import units_e8
from sigd.models.market.tardis import KINDS

State = Literal["converge", "handover"]
Gaps = Literal["refuse", "allow"]
Format = Literal["capture", "dbn", "tardis", "parquet", "recording"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_DAYS_MAX: Final = 100_000


class Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Files of one format; one for each symbol and date."""

    path: str
    symbols: list[str]
    dates: list[str] | str
    format: Format = "capture"
    parsed: str = ""
    ticks: dict[str, str] = {}
    snapshot_levels: int = 0


class PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The plan as it is written."""

    input: list[Input]
    model: str | None = None
    backend: str = "auto"
    state: State = "converge"
    gaps: Gaps = "refuse"
    horizon_ms: float | None = None
    flat_bps: float | None = None


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One input and its output.

    Attributes:
        before: the id of the symbol's piece before this one; "" for its first.
        parsed: where its events are kept in Parquet once they are parsed; "" where they are not.
        tick_e8: the price step in 1e-8; 0 where the plan does not give it.
        snapshot_levels: how many levels a side of a snapshot has at most; 0 where the plan does not say.
    """

    symbol: str
    date: str
    format: Format
    path: str
    before: str = ""
    parsed: str = ""
    tick_e8: int = 0
    snapshot_levels: int = 0

    @property
    def id(self) -> str:
        """Unique in the plan; also the name of the output file, without its ending."""
        return f"{self.symbol}-{self.date}"

    @property
    def output(self) -> str:
        """The output file, relative to the output directory."""
        return f"symbol={self.symbol}/date={self.date}/{self.id}.parquet"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be scored. `model` is None for the one that ships with sigd."""

    pieces: tuple[Piece, ...]
    model: Path | None
    backend: str
    state: State
    gaps: Gaps
    horizon_ms: float | None
    flat_bps: float | None


def read_plan(path: Path) -> Plan:
    """Read a plan and list its pieces, the first dates of all symbols first.

    Raises:
        BadRequest: it cannot be read or contradicts itself.
    """
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=PlanFile)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise BadRequest(f"{path}: {error}; sigd backfill --help shows a plan") from None
    by_symbol: list[list[Piece]] = []
    seen: set[str] = set()
    for entry in file.input:
        for pieces in _pieces_of(path, entry):
            for piece in pieces:
                if piece.id in seen:
                    raise BadRequest(f"{path}: {piece.symbol} on {piece.date} is there twice, expected once")
                seen.add(piece.id)
            by_symbol.append(pieces)
    if not seen:
        raise BadRequest(f"{path}: no symbol has a date, expected [[input]] with symbols and dates")
    by_date = [
        pieces[number]
        for number in range(max(map(len, by_symbol)))
        for pieces in by_symbol
        if number < len(pieces)
    ]
    return Plan(
        pieces=tuple(by_date),
        model=None if file.model is None else path.parent / file.model,
        backend=file.backend,
        state=file.state,
        gaps=file.gaps,
        horizon_ms=file.horizon_ms,
        flat_bps=file.flat_bps,
    )


def _pieces_of(plan: Path, entry: Input) -> list[list[Piece]]:
    """For each symbol of an input its pieces in order."""
    dates = _dates(plan, entry.dates)
    for what, names in (("symbol", entry.symbols), ("date", dates)):
        for name in names:
            if not _NAME.fullmatch(name):
                raise BadRequest(
                    f"{plan}: the {what} {name!r} cannot name a directory, expected letters, digits and ._:-"
                )
        for pattern in filter(None, (entry.path, entry.parsed)):
            if len(names) > 1 and f"{{{what}}}" not in pattern:
                raise BadRequest(
                    f"{plan}: {pattern!r} is the same for {len(names)} {what}s, expected {{{what}}} in it"
                )
    if entry.format == "tardis" and "{kind}" not in entry.path:
        raise BadRequest(
            f"{plan}: {entry.path!r} names one file, expected {{kind}} in it: {', '.join(KINDS)}"
        )
    if entry.parsed and entry.format in ("parquet", "recording"):
        raise BadRequest(f"{plan}: format {entry.format} needs no parsing: leave out parsed")
    for symbol in entry.ticks:
        if symbol not in entry.symbols:
            raise BadRequest(f"{plan}: ticks has {symbol!r}, which is none of the symbols beside it")
    result = []
    for symbol in entry.symbols:
        before = ""
        pieces = []
        for day in dates:
            piece = Piece(
                symbol=symbol,
                date=day,
                format=entry.format,
                path=str(plan.parent.absolute() / _named(entry.path, symbol, day)),
                before=before,
                parsed=str(plan.parent.absolute() / _named(entry.parsed, symbol, day))
                if entry.parsed
                else "",
                tick_e8=_tick_e8(plan, symbol, entry.ticks.get(symbol)),
                snapshot_levels=entry.snapshot_levels,
            )
            pieces.append(piece)
            before = piece.id
        result.append(pieces)
    return result


def _named(pattern: str, symbol: str, day: str) -> str:
    return pattern.replace("{symbol}", symbol).replace("{date}", day)


def _tick_e8(plan: Path, symbol: str, tick: str | None) -> int:
    if tick is None:
        return 0
    try:
        tick_e8 = units_e8(tick)
    except ValueError as error:
        raise BadRequest(f"{plan}: the tick of {symbol}: {error}") from None
    if tick_e8 == 0:
        raise BadRequest(f"{plan}: the tick of {symbol} is 0, expected the price step, as '0.1'")
    return tick_e8


def _dates(plan: Path, dates: list[str] | str) -> list[str]:
    """A list as it is; "FIRST..LAST" as all days of it."""
    if not isinstance(dates, str):
        return dates
    first, dots, last = dates.partition("..")
    try:
        if not dots:
            raise ValueError
        day, end = date.fromisoformat(first), date.fromisoformat(last)
    except ValueError:
        raise BadRequest(
            f"{plan}: dates is {dates!r}, expected a list, or FIRST..LAST as '2024-08-01..2024-08-31'"
        ) from None
    days = (end - day).days + 1
    if not 0 < days <= _DAYS_MAX:
        raise BadRequest(f"{plan}: dates is {dates!r}, {days} days; expected the first day before the last")
    # The days are written as the plan writes them, with hyphens or without.
    return [
        text if "-" in first else text.replace("-", "")
        for text in ((day + timedelta(number)).isoformat() for number in range(days))
    ]
