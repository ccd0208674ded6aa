"""The formulas, one function a family, in the catalogue's order. Pure: integers in, a row of floats out.

`edges` are the entries of a `WindowLog` at the start of each window (10ms, 50ms, 200ms, 1s, 3s, 10s),
`newest` its last entry; what each entry holds is said in `stream`. Written out rather than looped over: this
runs at every event.
"""

from __future__ import annotations

from math import asinh, log, log1p, sqrt

from sigd.models.market.book import OrderBook
from sigd.models.market.events import BestQuote, Level

Row = tuple[float, ...]
Entry = tuple[int, ...]

NO_BOOK: Row = (0.0,) * 7


def ratio(numerator: int, denominator: int) -> float:
    """Their quotient; 0 where the denominator is 0."""
    return numerator / denominator if denominator else 0.0


def age(elapsed_ns: int) -> float:
    """ln(1 + microseconds)."""
    return log1p(elapsed_ns / 1e3)


def touch_row(quote: BestQuote, tick_e8: int, newest: Entry, edges: list[Entry], mean_size_e8: float) -> Row:
    """The best bid and ask. `mean_size_e8`: mean of qb + qa over the quotes of the longest window."""
    bid_size, ask_size = quote.bid_size_e8, quote.ask_size_e8
    size = bid_size + ask_size
    spread = quote.ask_price_e8 - quote.bid_price_e8
    imbalance = (bid_size - ask_size) / size
    _, _, _, _, difference, total = newest
    _, _, mid_short, mid_long, longer, _ = edges
    means = [
        (difference - edge[4]) / (total - edge[5]) if total != edge[5] else imbalance
        for edge in (mid_short, mid_long, longer)
    ]
    return (
        imbalance,
        log((bid_size + 1) / (ask_size + 1)),
        # (qb Pa + qa Pb) / (qb + qa) - (Pb + Pa) / 2 = (qb - qa) (Pa - Pb) / (2 (qb + qa))
        asinh(((bid_size - ask_size) * spread) / (2 * size * tick_e8)),
        log(spread / tick_e8),
        *means,
        log(size / mean_size_e8),
    )


def order_flow_row(newest: Entry, edges: list[Entry], mean_size_e8: float) -> Row:
    """Order-flow imbalance, bounded by the flow of the window and scaled by the resting size."""
    _, _, flow, gross, _, _ = newest
    bounded = [(flow - edge[2]) / (gross - edge[3]) if gross != edge[3] else 0.0 for edge in edges]
    half_size = mean_size_e8 / 2
    return (
        *bounded,
        asinh((flow - edges[2][2]) / half_size),
        asinh((flow - edges[3][2]) / half_size),
        asinh((flow - edges[5][2]) / half_size),
    )


def trade_row(
    newest: Entry,
    edges: list[Entry],
    twice_mid: int,
    last_sign: int,
    last_offset_ticks: float,
    mean_size_e8: float,
) -> Row:
    """Which side took, how much, at what price. `last_offset_ticks`: the last trade's price less the mid."""
    _, trades, signs, signed, volume, notional = newest
    imbalances = [(signed - edge[3]) / (volume - edge[4]) if volume != edge[4] else 0.0 for edge in edges]
    counted = (edges[2], edges[3], edges[5])
    counts = [(signs - edge[2]) / (trades - edge[1]) if trades != edge[1] else 0.0 for edge in counted]
    offsets = []
    for _, _, _, _, volume_then, notional_then in counted:
        at_mid = twice_mid * (volume - volume_then)
        offsets.append(1e4 * (2 * (notional - notional_then) - at_mid) / at_mid if at_mid else 0.0)
    return (
        *imbalances,
        *counts,
        *offsets,
        last_sign,
        asinh(last_offset_ticks),
        log1p((volume - edges[3][4]) / (mean_size_e8 / 2)),
    )


def return_row(twice_mid: int, edges: list[Entry], last_move_sign: int) -> Row:
    """How far the mid has come since each window began."""
    return (*[1e4 * (twice_mid - edge[1]) / edge[1] for edge in edges], last_move_sign)


def volatility_row(newest: Entry, edges: list[Entry]) -> Row:
    """Realised volatility, and how much of it was upwards."""
    _, twice_mid, squares, rises = newest
    _, _, e200ms, e1s, e3s, e10s = edges
    asymmetries = []
    for edge in (e1s, e10s):
        total = squares - edge[2]
        asymmetries.append((2 * (rises - edge[3]) - total) / total if total else 0.0)
    return (
        1e4 * sqrt(squares - e200ms[2]) / twice_mid,
        1e4 * sqrt(squares - e1s[2]) / twice_mid,
        1e4 * sqrt(squares - e3s[2]) / twice_mid,
        1e4 * sqrt(squares - e10s[2]) / twice_mid,
        *asymmetries,
    )


def activity_row(
    quotes: int,
    quote_edges: list[Entry],
    trades: int,
    trade_edges: list[Entry],
    ages_ns: tuple[int, int, int],
) -> Row:
    """How many events, and how long ago. `ages_ns`: since the last quote, trade and change of the mid."""
    since_quote_ns, since_trade_ns, since_mid_move_ns = ages_ns
    return (
        log1p(quotes - quote_edges[0][1]),
        log1p(quotes - quote_edges[1][1]),
        log1p(quotes - quote_edges[2][1]),
        log1p(quotes - quote_edges[3][1]),
        log1p(quotes - quote_edges[5][1]),
        log1p(trades - trade_edges[1][1]),
        log1p(trades - trade_edges[3][1]),
        log1p(trades - trade_edges[5][1]),
        age(since_quote_ns),
        age(since_trade_ns),
        age(since_mid_move_ns),
    )


def knows_enough(book: OrderBook) -> bool:
    """Whether the book's last snapshot covers all that `book_row` looks at."""
    bids, asks = book.bids, book.asks
    if not (book.synchronised and bids and asks):
        return False
    twice_mid = bids.best_price_e8() + asks.best_price_e8()
    distance = twice_mid * 5 // 20_000
    return all(side.knows(20, distance, twice_mid // 2) for side in (bids, asks))


def distance_asymmetry(bids: list[Level], asks: list[Level]) -> float:
    """Of the mean distances from the mid of these levels, best first, at least two a side."""
    twice_mid = bids[0][0] + asks[0][0]
    # Each mean is cross-multiplied by the other side's size to stay in integers.
    bid_far = sum([(twice_mid - 2 * price) * size for price, size in bids]) * sum([size for _, size in asks])
    ask_far = sum([(2 * price - twice_mid) * size for price, size in asks]) * sum([size for _, size in bids])
    return (ask_far - bid_far) / (ask_far + bid_far)


def book_row(book: OrderBook) -> Row:
    """The seven features of the L2 book; all 0 where a side has fewer than two levels."""
    bids, asks = book.bids.best(20), book.asks.best(20)
    if len(bids) < 2 or len(asks) < 2:
        return NO_BOOK
    bid, ask = bids[0][0], asks[0][0]
    twice_mid = bid + ask
    imbalances = []
    for levels in (5, 10, 20):
        bid_size = sum([size for _, size in bids[:levels]])
        ask_size = sum([size for _, size in asks[:levels]])
        imbalances.append((bid_size - ask_size) / (bid_size + ask_size))
    for within_bps in (1, 5):
        distance = twice_mid * within_bps // 20_000
        bid_size = book.bids.size_within_e8(distance, twice_mid // 2)
        ask_size = book.asks.size_within_e8(distance, twice_mid // 2)
        imbalances.append(ratio(bid_size - ask_size, bid_size + ask_size))
    return (
        *imbalances,
        distance_asymmetry(bids, asks),
        log((asks[1][0] - ask) / (bid - bids[1][0])),
    )
