"""The report of `sigd replay` on a market capture: what the signals were worth."""

from __future__ import annotations

import numpy as np

from sigd.bench.market.replay import Signals, Worth
from sigd.bench.market.trades import Float64Array, Int64Array, by_hour, calibration_of, trades_of
from sigd.bench.page import figures
from sigd.bench.page.figures import Curve, number
from sigd.bench.page.html import Page, Section, Table
from sigd.models.training.outcome import CLASSES

_POINTS_MAX = 2000


def replay_page(
    signals: Signals, worth: Worth, horizon_ns: int, flat_bps: float, cost_bps: float, source: str
) -> Page:
    """Equity after costs, calibration, by hour, confusion matrix."""
    trades = trades_of(signals, horizon_ns, cost_bps)
    return Page(
        "What the signals were worth",
        f"{source}: {len(signals.answers):,} signals; outcomes {horizon_ns / 1e6:g} ms later, within"
        f" {flat_bps:g} bps is flat",
        [
            Section(
                "Equity after costs",
                [
                    f"{len(trades.net_bps):,} trades, one at a time, each held {horizon_ns / 1e6:g} ms.",
                    f"Each costs {cost_bps:g} bps, in and out together: set it with --cost-bps.",
                    "This is arithmetic on mids: no queue, no fill and no impact is in it.",
                ],
                _equity(signals, trades.entered_ns, trades.equity_bps),
                [Table(("", ""), _sums(trades.net_bps))],
            ),
            _calibration(signals, horizon_ns, flat_bps),
            Section(
                "By hour of the day, UTC",
                (),
                (),
                [
                    Table(
                        ("hour", "signals", "hit rate", "trades", "net, bps"),
                        [
                            (
                                f"{one.hour:02}:00",
                                f"{one.signals:,}",
                                f"{one.hit_rate:.1%}",
                                f"{one.trades:,}",
                                f"{one.net_bps:+,.1f}",
                            )
                            for one in by_hour(signals, trades, horizon_ns, flat_bps)
                        ],
                    )
                ],
            ),
            Section(
                "Outcomes and signals",
                [
                    f"Balanced accuracy {worth.balanced_accuracy:.3f} (a guess: 0.333).",
                    f"Accuracy {worth.accuracy:.3f} (always flat: {worth.always_flat_accuracy:.3f}).",
                ],
                (),
                [
                    Table(
                        ("the market then went", *(f"said {name}" for name in CLASSES)),
                        [
                            (name, *(f"{count:,}" for count in row))
                            for name, row in zip(CLASSES, worth.confusion, strict=True)
                        ],
                    )
                ],
            ),
        ],
    )


def _equity(signals: Signals, entered_ns: Int64Array, equity_bps: Float64Array) -> list[str]:
    if not equity_bps.size:
        return []
    kept = np.unique(np.linspace(0, equity_bps.size - 1, _POINTS_MAX).astype(np.int64))
    minutes = (entered_ns[kept] - signals.receive_ns[0]) / 60e9
    curve = Curve("after costs", minutes, equity_bps[kept])
    return [figures.lines("sum of the trades", "minutes", "bps", [curve])]


def _sums(net_bps: Float64Array) -> list[tuple[str, str]]:
    if not net_bps.size:
        return [("trades", "0: no signal said up or down")]
    return [
        ("sum, bps", f"{net_bps.sum():+,.1f}"),
        ("mean, bps", f"{net_bps.mean():+.3f}"),
        ("share above zero", f"{(net_bps > 0).mean():.1%}"),
    ]


def _calibration(signals: Signals, horizon_ns: int, flat_bps: float) -> Section:
    found = calibration_of(signals, horizon_ns, flat_bps)
    curve = Curve("signals", found.stated, found.came_true)
    return Section(
        "Hit rate by probability",
        ["On the dotted line what was said is what came."],
        [
            figures.lines(
                "calibration", "probability that was stated", "share that came true", [curve], diagonal=True
            )
        ],
        [
            Table(
                ("stated", "came true", "signals"),
                [
                    (number(stated), number(came), f"{count:,}")
                    for stated, came, count in zip(found.stated, found.came_true, found.count, strict=True)
                ],
            )
        ],
    )
