"""The models that are served: by name for whoever says Hello, one after the other for the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sigd.daemon.errors import UsageError

if TYPE_CHECKING:
    from sigd.daemon.batcher import Batcher


class ServedModels:
    """The models of one daemon, each with its own batcher and queue. The first is the default.

    Attributes:
        poll: for the tick: lets each model finish and start a batch; True where there is work left or was.
    """

    def __init__(self, batchers: Sequence[Batcher]) -> None:
        """Raises UsageError where two have one name."""
        self._batchers = {batcher.name: batcher for batcher in batchers}
        if len(self._batchers) < len(batchers):
            names = ", ".join(sorted(batcher.name for batcher in batchers))
            raise UsageError(f"two models have one name among {names}: give each [[model]] a name of its own")
        self._default = batchers[0]
        # With one model the tick polls its batcher itself.
        self.poll: Callable[[], bool] = self._default.poll if len(batchers) == 1 else self._poll_all

    def __iter__(self) -> Iterator[Batcher]:
        return iter(self._batchers.values())

    def find(self, name: str) -> Batcher | None:
        """Who serves the model of that name, "" being the default; None where nobody does."""
        return self._batchers.get(name) if name else self._default

    def rest(self) -> None:
        """The loop goes to sleep, see `Batcher.rest`."""
        for batcher in self:
            batcher.rest()

    def last_batch_ns(self) -> int:
        """When the last batch of any model ended."""
        return max(batcher.last_batch_ns for batcher in self)

    @property
    def pending_rows(self) -> int:
        """Requests accepted and not answered."""
        return sum(batcher.pending_rows for batcher in self)

    def _poll_all(self) -> bool:
        busy = False
        for batcher in self._batchers.values():
            if batcher.poll():
                busy = True
        return busy
