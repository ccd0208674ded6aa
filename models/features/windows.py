"""Sums over several time windows at once, exactly and without recomputation.

The log keeps the running totals after each event. A window's sum is the newest totals minus those in force
when the window began, so adding an event costs one append however many windows there are, and each window
only moves its own edge forward. Totals are integers: nothing drifts, and the sum is the one that adding up
the window's events gives.
"""

from __future__ import annotations

_TRIM_ENTRIES_MIN = 4096


class WindowLog:
    """Entries `(time_ns, *totals)` in time order, and the edges of the windows in it.

    Memory: the entries of the longest window, at most doubled, and never less room than a few thousand
    entries.
    """

    __slots__ = ("_edges", "_entries", "_trim_at", "_windows_ns", "newest")

    def __init__(self, windows_ns: tuple[int, ...], origin: tuple[int, ...]) -> None:
        """`windows_ns` ascend; `origin` is in force before the first event and its time is not after that
        one's."""
        self._windows_ns = windows_ns
        self._entries = [origin]
        self._edges = [0] * len(windows_ns)
        self._trim_at = _TRIM_ENTRIES_MIN
        self.newest = origin

    @property
    def entries(self) -> list[tuple[int, ...]]:
        """All that are kept, the oldest first."""
        return self._entries

    def begin_with(self, entries: list[tuple[int, ...]]) -> None:
        """Go on from the entries of another log."""
        self._entries = list(entries)
        self._edges = [0] * len(self._windows_ns)
        self._trim_at = max(_TRIM_ENTRIES_MIN, 2 * len(entries))
        self.newest = entries[-1]

    def append(self, entry: tuple[int, ...]) -> None:
        """Add the totals after an event."""
        self._entries.append(entry)
        self.newest = entry
        if len(self._entries) >= self._trim_at:
            self._trim(entry[0])

    def at_edges(self, now_ns: int) -> list[tuple[int, ...]]:
        """For each window W the last entry at or before now - W; the oldest there is where none is that
        old."""
        entries = self._entries
        edges = self._edges
        newest = len(entries) - 1
        found = []
        for index, window_ns in enumerate(self._windows_ns):
            edge = edges[index]
            if edge < newest and entries[edge + 1][0] <= now_ns - window_ns:
                cutoff_ns = now_ns - window_ns
                edge += 1
                while edge < newest and entries[edge + 1][0] <= cutoff_ns:
                    edge += 1
                edges[index] = edge
            found.append(entries[edge])
        return found

    def _trim(self, now_ns: int) -> None:
        self.at_edges(now_ns)
        oldest = self._edges[-1]
        del self._entries[:oldest]
        self._edges = [edge - oldest for edge in self._edges]
        self._trim_at = max(_TRIM_ENTRIES_MIN, 2 * len(self._entries))
