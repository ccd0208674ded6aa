"""A small market as a collector would have written it, to be damaged by tests."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
from typing import Any

BEGIN_NS = 1_700_000_000_000_000_000
Line = tuple[int, dict[str, Any]]


def market(steps: int = 400, step_ns: int = 50_000_000) -> list[Line]:
    """A snapshot, then in each step a depth message and a quote, and in every third a trade."""
    draw = random.Random(1)
    update, now_ns = 1000, BEGIN_NS
    bids = [[f"{9999.5 - 0.5 * level:.2f}", "1.0"] for level in range(30)]
    asks = [[f"{10000.5 + 0.5 * level:.2f}", "1.0"] for level in range(30)]
    lines: list[Line] = [(now_ns, {"lastUpdateId": update, "bids": bids, "asks": asks})]
    for step in range(steps):
        now_ns += step_ns
        changes = {
            "b": [[f"{10000 - 0.5 * draw.randint(1, 20):.2f}", f"{draw.random() * 3:.3f}"]],
            "a": [[f"{10000 + 0.5 * draw.randint(1, 20):.2f}", f"{draw.random() * 3:.3f}"]],
        }
        diff = {"e": "depthUpdate", "U": update + 1, "u": update + 2, "pu": update, **changes}
        update += 2
        lines.append((now_ns, {"stream": "btcusdt@depth@100ms", "data": diff}))
        sizes = {"B": f"{1 + draw.random():.3f}", "A": f"{1 + draw.random():.3f}"}
        quote = {"u": update, "b": "9999.50", "a": "10000.50", **sizes}
        lines.append((now_ns + 1_000_000, {"stream": "btcusdt@bookTicker", "data": quote}))
        if step % 3 == 0:
            trade = {
                "e": "trade",
                "t": step,
                "p": "10000.50",
                "q": "0.01",
                "m": bool(step % 2),
                "X": "MARKET",
            }
            lines.append((now_ns + 2_000_000, {"stream": "btcusdt@trade", "data": trade}))
    return lines


def is_depth(line: Line) -> bool:
    return "@depth" in line[1].get("stream", "")


def text(lines: Iterable[Line], unit_ns: int = 1) -> bytes:
    return b"".join(f"{time_ns // unit_ns} {json.dumps(message)}\n".encode() for time_ns, message in lines)


def packed(lines: Iterable[Line], unit_ns: int = 1) -> bytes:
    return gzip.compress(text(lines, unit_ns))
