"""What can be wrong with market data.

MarketError              anything below; the message says what was wrong, what was expected and what to do
├── CaptureError         a line or a file that is not a capture; carries the file's name and the line number
└── BookError            the order book cannot be trusted; it is empty and awaits a snapshot
    ├── BookGap          a depth message is missing: the next one does not follow the last
    └── BookCrossed      the best bid is not below the best ask
"""

from __future__ import annotations

from typing import Final

SALVAGE: Final = ": --salvage takes what is whole"
"""What to do about a capture that is damaged."""


class MarketError(Exception):
    """Base of all errors of `sigd.models.market`."""


class CaptureError(MarketError):
    """A capture cannot be read.

    Attributes:
        source: the file's name.
        line: the number of the offending line, from 1; 0 where no line is to blame.
        salvageable: whether what is whole of it could be read.
    """

    def __init__(self, source: str, line: int, problem: str, *, salvageable: bool = False) -> None:
        super().__init__(f"{source}:{line}: {problem}" if line else f"{source}: {problem}")
        self.source = source
        self.line = line
        self.salvageable = salvageable


class BookError(MarketError):
    """The book has emptied itself and is unsynchronised until the next snapshot."""


class BookGap(BookError):
    """At least one depth message is missing.

    Attributes:
        expected_update_id: the update the book stood at, which the message had to follow.
        got_update_id: the update that the message says it follows.
    """

    def __init__(self, expected_update_id: int, got_update_id: int) -> None:
        super().__init__(
            f"the book stands at update {expected_update_id}, but the next depth message follows update "
            f"{got_update_id}: messages between them are missing; the book needs a new snapshot"
        )
        self.expected_update_id = expected_update_id
        self.got_update_id = got_update_id


class BookCrossed(BookError):
    """The best bid reached the best ask, which no consistent series of depth messages does."""

    def __init__(self, bid_price_e8: int, ask_price_e8: int, update_id: int) -> None:
        super().__init__(
            f"after update {update_id} the best bid {bid_price_e8 / 1e8:g} is not below the best ask "
            f"{ask_price_e8 / 1e8:g}: the depth messages contradict the snapshot; the book needs a new one"
        )
        self.bid_price_e8 = bid_price_e8
        self.ask_price_e8 = ask_price_e8
