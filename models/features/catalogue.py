"""What the 64 features are: name, formula, bounds, and the published work that each family is taken from.

The order here is the order in the vector. `docs/features.md` is printed from this table; it also defines the
symbols of the formulas:

    python -m sigd.models.features.document > docs/features.md
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEATURE_VERSION = 1
"""Raised by every change that makes the same events give another vector. A model states the version it was
trained on; it must not be served vectors of another."""

WINDOWS = (("10ms", 10), ("50ms", 50), ("200ms", 200), ("1s", 1_000), ("3s", 3_000), ("10s", 10_000))
"""The windows, shortest first: name and length in milliseconds."""

WINDOWS_NS = tuple(length_ms * 1_000_000 for _, length_ms in WINDOWS)

SIGNED = -1
EVEN = 1


@dataclass(frozen=True, slots=True)
class Feature:
    """One place of the vector.

    Attributes:
        name: unique, in the vector's order.
        formula: in the symbols that `sigd.models.features.document` defines.
        lower, upper: the value is clipped to these.
        mirror: what exchanging the two sides of the market does to the value: -1 changes its sign, +1 leaves
            it.
    """

    name: str
    formula: str
    lower: float
    upper: float
    mirror: int


@dataclass(frozen=True, slots=True)
class Family:
    """Features of one kind, with the work they are taken from."""

    title: str
    source: str
    features: tuple[Feature, ...]


def _signed(name: str, formula: str, bound: float) -> Feature:
    return Feature(name, formula, -bound, bound, SIGNED)


def _even(name: str, formula: str, upper: float, lower: float = 0.0) -> Feature:
    return Feature(name, formula, lower, upper, EVEN)


def _each(windows: str, make: str, formula: str, bound: float, *, signed: bool = True) -> tuple[Feature, ...]:
    """One feature for each of the named windows; `make` is the name up to the window's."""
    build = _signed if signed else _even
    return tuple(build(f"{make}_{window}", formula.replace("W", window), bound) for window in windows.split())


_ALL_WINDOWS = " ".join(name for name, _ in WINDOWS)

TOUCH = Family(
    "Touch",
    "Queue imbalance: M. D. Gould and J. Bonart, Queue imbalance as a one-tick-ahead price predictor in a"
    " limit order "
    "book, Market Microstructure and Liquidity 2(2), 2016; A. Cartea, R. Donnelly and S. Jaimungal, Enhancing"
    " trading "
    "strategies with order book signals, Applied Mathematical Finance 25(1), 2018. Micro-price: S. Stoikov,"
    " The "
    "micro-price: a high-frequency estimator of future prices, Quantitative Finance 18(12), 2018 (here its"
    " starting "
    "point, the mid weighted by the opposite queues; the model learns the adjustment).",
    (
        _signed("queue_imbalance", "(qb - qa) / (qb + qa)", 1.0),
        _signed("queue_log_ratio", "ln(qb / qa), sizes counted in 1e-8 and one added to each", 10.0),
        _signed("micro_price_offset", "asinh of ((qb Pa + qa Pb) / (qb + qa) - m) / tick", 8.0),
        _even("spread_log_ticks", "ln((Pa - Pb) / tick)", 8.0),
        *_each(
            "200ms 1s 3s",
            "queue_imbalance_mean",
            "sum_W (qb - qa) / sum_W (qb + qa) over quotes; without a quote in W the present queue_imbalance",
            1.0,
        ),
        _even(
            "touch_size_log", "ln((qb + qa) / Q), with Q = mean of qb + qa over the quotes of 10s", 8.0, -8.0
        ),
    ),
)

ORDER_FLOW = Family(
    "Order-flow imbalance",
    "R. Cont, A. Kukanov and S. Stoikov, The price impact of order book events, Journal of Financial"
    " Econometrics "
    "12(1), 2014: from one quote n-1 to the next n, e = 1[Pb_n >= Pb_n-1] qb_n - 1[Pb_n <= Pb_n-1] qb_n-1 "
    "- 1[Pa_n <= Pa_n-1] qa_n + 1[Pa_n >= Pa_n-1] qa_n-1. Their regressor is sum e; dividing by the resting"
    " size is "
    "their depth scaling, dividing by sum |e| bounds it.",
    (
        *_each(_ALL_WINDOWS, "ofi", "sum_W e / sum_W |e|", 1.0),
        *_each("200ms 1s 10s", "ofi_depth", "asinh(2 sum_W e / Q), Q as in touch_size_log", 10.0),
    ),
)

TRADES = Family(
    "Trades",
    "Trade imbalance: T. Chordia, R. Roll and A. Subrahmanyam, Order imbalance, liquidity, and market"
    " returns, Journal "
    "of Financial Economics 65(1), 2002 (in volume and in number); the side is the exchange's own flag, s ="
    " +1 where "
    "the buyer took. Trade price against the mid: R. D. Huang and H. R. Stoll, Dealer versus auction markets,"
    " Journal "
    "of Financial Economics 41(3), 1996 (the effective half-spread, here signed).",
    (
        *_each(_ALL_WINDOWS, "trade_imbalance", "sum_W s q / sum_W q", 1.0),
        *_each("200ms 1s 10s", "trade_count_imbalance", "sum_W s / number of trades in W", 1.0),
        *_each(
            "200ms 1s 10s", "vwap_offset_bps", "1e4 (sum_W p q / sum_W q - m) / m; 0 without a trade", 50.0
        ),
        _signed("last_trade_sign", "s of the last trade; 0 before the first", 1.0),
        _signed("last_trade_offset", "asinh((p - m) / tick) of the last trade's price p", 8.0),
        _even("trade_size_log", "ln(1 + 2 sum_1s q / Q), Q as in touch_size_log", 12.0),
    ),
)

RETURNS = Family(
    "Mid returns",
    "A. N. Kercheval and Y. Zhang, Modelling high-frequency limit order book dynamics with support vector"
    " machines, "
    "Quantitative Finance 15(8), 2015 (their time-sensitive features: derivatives of price over several"
    " spans).",
    (
        *_each(_ALL_WINDOWS, "mid_return_bps", "1e4 (m - m') / m', m' the mid at now - W", 50.0),
        _signed("last_mid_move_sign", "sign of the last change of the mid; 0 before the first", 1.0),
    ),
)

VOLATILITY = Family(
    "Realised volatility",
    "T. G. Andersen, T. Bollerslev, F. X. Diebold and P. Labys, Modeling and forecasting realized volatility,"
    " "
    "Econometrica 71(2), 2003; asymmetry from the semivariances of O. E. Barndorff-Nielsen, S. Kinnebrock and"
    " "
    "N. Shephard, Measuring downside risk: realised semivariance, in Volatility and Time Series Econometrics,"
    " Oxford "
    "University Press, 2010. d runs over the changes of the mid.",
    (
        *_each("200ms 1s 3s 10s", "volatility_bps", "1e4 sqrt(sum_W d^2) / m", 50.0, signed=False),
        *_each(
            "1s 10s", "semivariance_asymmetry", "(sum_W d^2 [d > 0] - sum_W d^2 [d < 0]) / sum_W d^2", 1.0
        ),
    ),
)

ACTIVITY = Family(
    "Activity",
    "Event rates: E. Bacry, I. Mastromatteo and J.-F. Muzy, Hawkes processes in finance, Market"
    " Microstructure and "
    "Liquidity 1(1), 2015 (clustering at several scales). Durations: R. F. Engle and J. R. Russell,"
    " Autoregressive "
    "conditional duration, Econometrica 66(5), 1998.",
    (
        *_each(
            "10ms 50ms 200ms 1s 10s", "quote_count_log", "ln(1 + number of quotes in W)", 14.0, signed=False
        ),
        *_each("50ms 1s 10s", "trade_count_log", "ln(1 + number of trades in W)", 14.0, signed=False),
        _even("since_quote_log", "ln(1 + us since the quote before this event)", 24.0),
        _even("since_trade_log", "ln(1 + us since the trade before this event); 0 before the first", 24.0),
        _even("since_mid_move_log", "ln(1 + us since the mid last changed, this event included)", 24.0),
    ),
)

BOOK = Family(
    "Book",
    "Imbalance over several levels: K. Xu, M. D. Gould and S. D. Howison, Multi-level order-flow imbalance in"
    " a limit "
    "order book, Market Microstructure and Liquidity 4(3-4), 2018. Distance of the resting size: R. Naes and "
    "J. A. Skjeltorp, Order book characteristics and the volume-volatility relation, Journal of Financial"
    " Markets 9(4), "
    "2006 (the slope of the book). B and A are the bid and ask sizes of the L2 book as of its last depth"
    " message, "
    "with its own mid.",
    (
        *_each("5 10 20", "book_imbalance", "(B - A) / (B + A) over the best W levels of each side", 1.0),
        *_each("1bps 5bps", "book_imbalance", "(B - A) / (B + A) over what rests within W of the mid", 1.0),
        _signed(
            "book_distance_asymmetry",
            "(Da - Db) / (Da + Db), D the size-weighted mean distance from the mid of a side's best 20"
            " levels",
            1.0,
        ),
        _signed(
            "book_gap_log_ratio", "ln(ask gap / bid gap), the gap from a side's best price to its second", 8.0
        ),
        _even("since_depth_log", "ln(1 + us since the last depth message)", 24.0),
    ),
)

FAMILIES = (TOUCH, ORDER_FLOW, TRADES, RETURNS, VOLATILITY, ACTIVITY, BOOK)
FEATURES = tuple(feature for family in FAMILIES for feature in family.features)
FEATURE_NAMES = tuple(feature.name for feature in FEATURES)
FEATURE_COUNT = len(FEATURES)
LOWER_BOUNDS = np.array([feature.lower for feature in FEATURES], np.float32)
UPPER_BOUNDS = np.array([feature.upper for feature in FEATURES], np.float32)
MIRROR = np.array([feature.mirror for feature in FEATURES], np.float32)

if FEATURE_COUNT != 64 or len(set(FEATURE_NAMES)) != 64:
    raise AssertionError(f"{FEATURE_COUNT} features, {len(set(FEATURE_NAMES))} names; expected 64 of each")
