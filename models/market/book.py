"""The order book of one instrument, rebuilt from a snapshot and the depth messages around it.

Binance's procedure, in the terms of `DepthDiff`: messages that arrive before the snapshot are kept; of these,
the ones that end at or before the snapshot are dropped, and the first that remains must begin at or before
it; from then on each message must follow the one before. A book that is rebuilt without the kept messages
ends up crossed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Self

import msgspec

from sigd.models.market.errors import BookCrossed, BookGap
from sigd.models.market.events import DepthDiff, DepthSnapshot, Level

DIFFS_KEPT_MAX = 4096
"""How many diffs wait for a snapshot (minutes' worth). Older ones are dropped; if the snapshot needed one of
them, the chain is seen to be broken and reported as a gap."""


class BookSide:
    """One side of the book. Ranks are prices times `direction`, so that rank order is best first on both
    sides."""

    __slots__ = ("_direction", "_known_rank", "_ranks", "_sizes")

    def __init__(self, direction: int) -> None:
        """`direction` is +1 for asks (lowest is best), -1 for bids."""
        self._direction = direction
        self._ranks: list[int] = []
        self._sizes: dict[int, int] = {}
        self._known_rank: int | None = 0

    def __len__(self) -> int:
        return len(self._ranks)

    def clear(self) -> None:
        """Forget all levels."""
        self._ranks.clear()
        self._sizes.clear()

    def replace(self, levels: tuple[Level, ...], *, whole: bool) -> None:
        """Take these levels in place of what was there. `whole`: there are no others behind them."""
        self._sizes = {price * self._direction: size for price, size in levels if size}
        self._ranks = sorted(self._sizes)
        self._known_rank = None if whole else self._ranks[-1] if self._ranks else 0

    def knows(self, count: int, distance_e8: int, origin_e8: int) -> bool:
        """Whether the best `count` levels and all within `distance_e8` of the price `origin_e8` lie within
        what the last snapshot covered. Behind its last level there may be others that no diff has named
        since."""
        if self._known_rank is None:
            return True
        if len(self._ranks) < count:
            return False
        return max(self._ranks[count - 1], origin_e8 * self._direction + distance_e8) <= self._known_rank

    def apply(self, levels: tuple[Level, ...]) -> None:
        """Set each level to its new size; 0 removes it. Removing a level that is not there is no fault: the
        exchange reports levels beyond the depth of the snapshot too."""
        sizes = self._sizes
        ranks = self._ranks
        for price, size in levels:
            rank = price * self._direction
            if size:
                if rank not in sizes:
                    insort(ranks, rank)
                sizes[rank] = size
            elif sizes.pop(rank, None) is not None:
                del ranks[bisect_left(ranks, rank)]

    def levels(self) -> list[Level]:
        """All levels, worst first."""
        return [(rank * self._direction, self._sizes[rank]) for rank in reversed(self._ranks)]

    @property
    def known_rank(self) -> int | None:
        """The worst rank that the last snapshot covered; None where the side is whole."""
        return self._known_rank

    @known_rank.setter
    def known_rank(self, rank: int | None) -> None:
        self._known_rank = rank

    def best_price_e8(self) -> int:
        """The best price; 0 where the side is empty."""
        return self._ranks[0] * self._direction if self._ranks else 0

    def best(self, count: int) -> list[Level]:
        """At most `count` levels, best first."""
        return [(rank * self._direction, self._sizes[rank]) for rank in self._ranks[:count]]

    def size_within_e8(self, distance_e8: int, origin_e8: int) -> int:
        """All that rests no further than `distance_e8` from the price `origin_e8`."""
        end = bisect_right(self._ranks, origin_e8 * self._direction + distance_e8)
        return sum(map(self._sizes.__getitem__, self._ranks[:end]))


class OrderBook:
    """L2 book of one instrument.

    Attributes:
        bids, asks: the sides; read them, do not write them.
        synchronised: True from a snapshot until a gap; otherwise the sides are empty.
        update_id: the exchange's update at which the book stands.
    """

    __slots__ = ("_at_snapshot", "_kept", "_snapshot_levels", "asks", "bids", "synchronised", "update_id")

    def __init__(self, snapshot_levels: int = 0) -> None:
        """`snapshot_levels`: how many levels a snapshot has at most; a side of one with fewer is known to be
        whole. 0: it is never known."""
        self.bids = BookSide(-1)
        self.asks = BookSide(+1)
        self.synchronised = False
        self.update_id = 0
        self._at_snapshot = False
        self._snapshot_levels = snapshot_levels
        self._kept: deque[DepthDiff] = deque(maxlen=DIFFS_KEPT_MAX)

    @property
    def kept(self) -> list[DepthDiff]:
        """The diffs that wait for a snapshot, with times of 0: the book does not look at them."""
        return [msgspec.structs.replace(diff, receive_ns=0) for diff in self._kept]

    def scalars(self) -> dict[str, int]:
        """Its state but for the levels and the kept diffs."""
        bids, asks = self.bids.known_rank, self.asks.known_rank
        return {
            "synchronised": int(self.synchronised),
            "at_snapshot": int(self._at_snapshot),
            "update_id": self.update_id,
            "snapshot_levels": self._snapshot_levels,
            "bids_known": bids or 0,
            "asks_known": asks or 0,
            "whole": (bids is None) + 2 * (asks is None),
        }

    @classmethod
    def from_state(
        cls, scalars: dict[str, int], bids: list[Level], asks: list[Level], kept: list[DepthDiff]
    ) -> Self:
        """A book that goes on where another one stood."""
        book = cls(scalars["snapshot_levels"])
        book.synchronised, book._at_snapshot = bool(scalars["synchronised"]), bool(scalars["at_snapshot"])
        book.update_id = scalars["update_id"]
        book.bids.apply(tuple(bids))
        book.asks.apply(tuple(asks))
        book.bids.known_rank = None if scalars["whole"] & 1 else scalars["bids_known"]
        book.asks.known_rank = None if scalars["whole"] & 2 else scalars["asks_known"]
        book._kept.extend(kept)
        return book

    def on_snapshot(self, snapshot: DepthSnapshot) -> None:
        """Start from a snapshot and replay the kept diffs that are newer. A snapshot that is older than a
        synchronised book says nothing new and is ignored.

        Raises:
            BookGap: the kept diffs do not connect to the snapshot: it is too old.
            BookCrossed: the result is crossed.
        """
        if self.synchronised and snapshot.last_update_id <= self.update_id:
            return
        self.bids.replace(snapshot.bids, whole=len(snapshot.bids) < self._snapshot_levels)
        self.asks.replace(snapshot.asks, whole=len(snapshot.asks) < self._snapshot_levels)
        self.update_id = snapshot.last_update_id
        self.synchronised = True
        self._at_snapshot = True
        kept = list(self._kept)
        self._kept.clear()
        for index, diff in enumerate(kept):
            if diff.last_update_id > self.update_id:
                try:
                    self._apply(diff)
                except BookGap:
                    self._kept.extend(kept[index:])
                    raise
        self._refuse_crossed()

    def on_diff(self, diff: DepthDiff) -> None:
        """Apply a diff, or keep it where the book awaits a snapshot. A diff that ends at or before where the
        book stands is ignored (they arrive just after a snapshot).

        Raises:
            BookGap: messages are missing before this one.
            BookCrossed: the result is crossed.
        """
        if not self.synchronised:
            self._kept.append(diff)
        elif diff.last_update_id > self.update_id:
            try:
                self._apply(diff)
            except BookGap:
                self._kept.append(diff)
                raise
            self._refuse_crossed()

    def _apply(self, diff: DepthDiff) -> None:
        """Only the first diff after a snapshot may begin before where the book stands."""
        previous = diff.previous_update_id
        if previous > self.update_id or (previous < self.update_id and not self._at_snapshot):
            self._desynchronise()
            raise BookGap(self.update_id, previous)
        self._at_snapshot = False
        self.bids.apply(diff.bids)
        self.asks.apply(diff.asks)
        self.update_id = diff.last_update_id

    def _refuse_crossed(self) -> None:
        bid, ask = self.bids.best_price_e8(), self.asks.best_price_e8()
        if bid >= ask and self.bids and self.asks:
            self._desynchronise()
            raise BookCrossed(bid, ask, self.update_id)

    def _desynchronise(self) -> None:
        self.bids.clear()
        self.asks.clear()
        self.synchronised = False
