"""The module in C."""

from collections.abc import Callable
from typing import TypeAlias

from sigd.models.market.events import Level, MarketEvent

Dumped: TypeAlias = tuple[bytes, bytes, bytes, bytes, bytes, bytes, list[tuple[int, int, int, bytes]]]

class Stream:
    """Base of `NativeFeatureStream`."""

    tick_size_e8: int
    samples: int
    book_breaks: int
    events_ignored: int
    mid_e8: float
    last_break: tuple[int, int, int, int]
    warm: bool
    converged: bool

    def __init__(
        self,
        features: memoryview,
        lower: memoryview,
        upper: memoryview,
        wide_asymmetry: Callable[[list[Level], list[Level]], float],
        tick_size_e8: int,
        warmup_ns: int,
        snapshot_levels: int,
        /,
    ) -> None: ...
    def on_event(self, event: MarketEvent, /) -> bool: ...
    def on_rows(
        self,
        events: memoryview,
        levels: memoryview,
        features: memoryview,
        index: memoryview,
        mids: memoryview,
        converged_only: bool,
        /,
    ) -> int: ...
    def dump(self) -> Dumped: ...
    def load(self, state: Dumped, /) -> None: ...

def functions(value: float, /) -> tuple[float, float, float, float]: ...
def quotient(high: int, low: int, divisor_high: int, divisor_low: int, /) -> float: ...
