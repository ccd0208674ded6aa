"""What trading on signals of three classes would have come to, after a cost that is stated; how often each
stated probability came true; and both by the hour of the day.

It is arithmetic on mids: no queue, no fill and no impact is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sigd.bench.market.replay import Signals
from sigd.models.training.outcome import FLAT, UNKNOWN, UP, classes_of

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_NS_PER_HOUR = 3_600_000_000_000
_BINS = 10


@dataclass(frozen=True, slots=True)
class Trades:
    """One position at a time: in at a signal of up or down, out after the horizon, then the next signal.

    Attributes:
        entered_ns: int64, shape (trades,), on the capture's clock.
        net_bps: float64, of each: the move in the signal's direction, less the cost.
        cost_bps: of going in and out again.
    """

    entered_ns: Int64Array
    net_bps: Float64Array
    cost_bps: float

    @property
    def equity_bps(self) -> Float64Array:
        """What the trades came to, after each."""
        return np.cumsum(self.net_bps)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Signals by the probability of the class that they name, in tenths; an empty one is left out.

    Attributes:
        stated: float64, mean probability.
        came_true: float64, share whose class was the outcome.
        count: int64, signals.
    """

    stated: Float64Array
    came_true: Float64Array
    count: Int64Array


@dataclass(frozen=True, slots=True)
class Hour:
    """Signals and trades of one hour of the day (UTC): `hit_rate` of the signals, `net_bps` of the trades."""

    hour: int
    signals: int
    hit_rate: float
    trades: int
    net_bps: float


def trades_of(signals: Signals, horizon_ns: int, cost_bps: float) -> Trades:
    """The trades that the signals would have made.

    Args:
        cost_bps: of each trade, in and out together, in basis points.
    """
    moves, said = signals.moves_bps(horizon_ns), signals.classes
    tradable = np.flatnonzero((said != UNKNOWN) & (said != FLAT) & np.isfinite(moves))
    entered: list[int] = []
    free_ns = 0
    for at in tradable:
        if signals.receive_ns[at] >= free_ns:
            entered.append(int(at))
            free_ns = int(signals.receive_ns[at]) + horizon_ns
    chosen = np.array(entered, np.int64)
    side = np.where(said[chosen] == UP, 1.0, -1.0)
    return Trades(signals.receive_ns[chosen], side * moves[chosen] - cost_bps, cost_bps)


def probabilities(outputs: npt.NDArray[np.floating]) -> Float64Array:
    """Of each class, float64: the outputs where they are probabilities already, else their softmax.

    Args:
        outputs: shape (signals, classes).
    """
    values = np.asarray(outputs, np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-4):
        return values
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float64)


def calibration_of(signals: Signals, horizon_ns: int, flat_bps: float) -> Calibration:
    """How often signals came true, by how probable they were said to be."""
    outcomes, said = classes_of(signals.moves_bps(horizon_ns), flat_bps), signals.classes
    known = (outcomes != UNKNOWN) & (said != UNKNOWN)
    stated = probabilities(signals.answers["outputs"][known]).max(axis=1)
    hit = outcomes[known] == said[known]
    bins = np.minimum((stated * _BINS).astype(np.int64), _BINS - 1)
    filled = np.unique(bins)
    return Calibration(
        stated=np.array([stated[bins == one].mean() for one in filled]),
        came_true=np.array([hit[bins == one].mean() for one in filled]),
        count=np.array([(bins == one).sum() for one in filled], np.int64),
    )


def by_hour(signals: Signals, trades: Trades, horizon_ns: int, flat_bps: float) -> list[Hour]:
    """Each hour of the day with a signal whose outcome is known."""
    outcomes, said = classes_of(signals.moves_bps(horizon_ns), flat_bps), signals.classes
    known = (outcomes != UNKNOWN) & (said != UNKNOWN)
    hours = signals.receive_ns // _NS_PER_HOUR % 24
    trade_hours = trades.entered_ns // _NS_PER_HOUR % 24
    found = []
    for hour in np.unique(hours[known]):
        own = known & (hours == hour)
        net = trades.net_bps[trade_hours == hour]
        found.append(
            Hour(
                hour=int(hour),
                signals=int(own.sum()),
                hit_rate=float((outcomes[own] == said[own]).mean()),
                trades=int(net.size),
                net_bps=float(net.sum()),
            )
        )
    return found
