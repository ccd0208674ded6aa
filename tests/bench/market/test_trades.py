"""Trades on signals, their calibration, and both by hour."""

from __future__ import annotations

import numpy as np
import pytest

from sigd.bench.market.replay import Signals
from sigd.bench.market.trades import by_hour, calibration_of, probabilities, trades_of
from sigd.wire import fields
from sigd.wire.layout import frame_dtype
from sigd.wire.status import Status

HOUR = 3_600_000_000_000


def signals_of(mids: list[float], outputs: list[list[float]], step_ns: int = HOUR) -> Signals:
    answers = np.zeros(len(mids), frame_dtype(fields.SIGNAL_RESPONSE, 1, 3))
    answers["outputs"] = outputs
    times = np.arange(len(mids), dtype=np.int64) * step_ns
    return Signals(times, np.array(mids), answers, np.ones(len(mids), np.int64), len(mids), 1.0)


DOWN, FLAT, UP = [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]


def test_a_trade_earns_the_move_in_its_direction_less_the_cost() -> None:
    trades = trades_of(signals_of([100, 101, 100, 100], [UP, DOWN, FLAT, UP]), HOUR, cost_bps=2)
    assert trades.net_bps == pytest.approx([100 - 2, (1 - 100 / 101) * 1e4 - 2])
    assert trades.equity_bps[-1] == pytest.approx(trades.net_bps.sum())


def test_a_position_is_held_for_the_horizon() -> None:
    trades = trades_of(signals_of([100, 101, 102, 103, 104], [UP] * 5), 2 * HOUR, cost_bps=0)
    assert trades.entered_ns.tolist() == [0, 2 * HOUR]


def test_answers_without_a_signal_are_not_traded() -> None:
    signals = signals_of([100, 101, 102], [UP] * 3)
    signals.answers["status"][0] = Status.BUSY
    assert trades_of(signals, HOUR, 0).entered_ns.tolist() == [HOUR]


def test_outputs_that_are_probabilities_stay_and_others_become_some() -> None:
    given = np.array([UP, DOWN], np.float32)
    assert probabilities(given) == pytest.approx(given)
    made = probabilities(np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 1000.0]]))
    assert made.sum(axis=1) == pytest.approx([1, 1])
    assert made[0].argmax() == 2


def test_calibration_is_the_share_that_came_true_of_each_tenth() -> None:
    found = calibration_of(signals_of([100, 101, 102, 101, 101], [UP, UP, UP, DOWN, UP]), HOUR, 1)
    assert found.stated == pytest.approx([0.7, 0.8])
    assert found.came_true == pytest.approx([2 / 3, 0])
    assert found.count.tolist() == [3, 1]


def test_hours_have_their_signals_and_trades() -> None:
    signals = signals_of([100, 101, 100, 100], [UP, FLAT, FLAT, UP])
    hours = by_hour(signals, trades_of(signals, HOUR, 1), HOUR, 1)
    assert [(one.hour, one.signals, one.hit_rate, one.trades) for one in hours] == [
        (0, 1, 1, 1),
        (1, 1, 0, 0),
        (2, 1, 1, 0),
    ]
    assert hours[0].net_bps == pytest.approx(99)


def test_the_report_has_all_of_it() -> None:
    pytest.importorskip("matplotlib", reason="the extra report draws")
    from sigd.bench.market.replay import worth_of
    from sigd.bench.page.replay_page import replay_page

    signals = signals_of([100, 101, 100, 100], [UP, DOWN, FLAT, UP])
    worth = worth_of(signals, HOUR, 1)
    assert worth is not None
    text = replay_page(signals, worth, HOUR, 1, 2.0, "a capture").text()
    for words in ("Equity after costs", "Each costs 2 bps", "Hit rate by probability", "00:00", "said up"):
        assert words in text
    assert text.count("<svg") == 2


def test_a_report_of_signals_that_never_trade_is_whole() -> None:
    pytest.importorskip("matplotlib", reason="the extra report draws")
    from sigd.bench.market.replay import worth_of
    from sigd.bench.page.replay_page import replay_page

    signals = signals_of([100, 101, 100], [FLAT, FLAT, FLAT])
    worth = worth_of(signals, HOUR, 1)
    assert worth is not None
    assert "no signal said up or down" in replay_page(signals, worth, HOUR, 1, 2.0, "a capture").text()
