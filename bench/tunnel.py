"""What an SSH tunnel costs: one daemon, measured directly and through tunnels over loopback, in one run.

Loopback has no distance, so what is found is the work of ssh and sshd alone; add the round trip of your
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from rich import box
from rich.table import Table

from sigd.bench.document import Document
from sigd.bench.rig import Mode, Settings

Measure = Callable[[Settings], Document]

WAYS: Final = ("direct", "tunnel", "ssh -N")
_COLUMNS: Final = (
    ("p50", "p50_us"),
    ("p90", "p90_us"),
    ("p99", "p99_us"),
    ("p99.9", "p99_9_us"),
    ("max", "max_us"),
)


@dataclass(frozen=True)
class Found:
    """One run.

    Attributes:
        load: what was sent.
        way: one of WAYS.
    """

    load: str
    way: str
    document: Document


def compare(
    sockets: dict[str, str], duration_s: float, rate_hz: float, client: str, measure: Measure
) -> Iterator[Found]:
    """Measure each way under each load, the ways of a load one after the other.

    Args:
        sockets: way to socket.
    """
    loads = {
        "closed loop": Settings(Mode.CLOSED_LOOP, duration_s=duration_s, client=client),
        f"{rate_hz:,.0f}/s, Poisson": Settings(
            Mode.RATE, rate_hz=rate_hz, duration_s=duration_s, client=client
        ),
    }
    for load, settings in loads.items():
        for way, path in sockets.items():
            yield Found(load, way, measure(replace(settings, socket_path=path)))


def table_of(found: list[Found]) -> Table:
    """Microseconds, a line a run; a star at what is not valid."""
    table = Table(title="from request to answer, us", title_justify="left", box=box.SIMPLE)
    for heading in ("load", "way"):
        table.add_column(heading, no_wrap=True)
    for heading, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    load = ""
    for one in found:
        figures = (_figure(getattr(one.document.latency, field)) for _, field in _COLUMNS)
        mark = "" if one.document.valid else " *"
        table.add_row("" if one.load == load else one.load, one.way + mark, *figures)
        load = one.load
    return table


def _figure(us: float) -> str:
    return f"{us:,.1f}" if us < 1000 else f"{us:,.0f}"
