"""The models that are served: by name for whoever says Hello, one after the other for the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sigd.daemon.errors import UsageError

if TYPE_CHECKING:
    from sigd.daemon.serving.batcher import Batcher


class ServedModels:
    """The models of one daemon, each with its own batcher and queue. The first is the default.

    A model may be replaced by one of another shape: the clients that it has stay with it until they have
    left, and it has its turn in the tick as long.

    Attributes:
        poll: for the tick: lets each model finish and start a batch; True where there is work left or was.
        on_poll: called with another `poll` that takes its place.
    """

    def __init__(self, batchers: Sequence[Batcher]) -> None:
        """Raises UsageError where two have one name."""
        self._batchers = {batcher.name: batcher for batcher in batchers}
        if len(self._batchers) < len(batchers):
            names = ", ".join(sorted(batcher.name for batcher in batchers))
            raise UsageError(f"two models have one name among {names}: give each [[model]] a name of its own")
        self._default = batchers[0]
        self._leaving: list[Batcher] = []
        self.on_poll: Callable[[Callable[[], bool]], None] = lambda poll: None
        self._set_poll()

    def __iter__(self) -> Iterator[Batcher]:
        return iter(self._batchers.values())

    def find(self, name: str) -> Batcher | None:
        """Who serves the model of that name, "" being the default; None where nobody does."""
        return self._batchers.get(name) if name else self._default

    def replace(self, old: Batcher, new: Batcher) -> None:
        """From now on `new` serves who comes for the model of that name. `old` is polled until `left()`."""
        assert old.name == new.name
        self._batchers[new.name] = new
        if self._default is old:
            self._default = new
        self._leaving.append(old)
        self._set_poll()

    def left(self, old: Batcher) -> None:
        """Nobody is served by it any more."""
        self._leaving.remove(old)
        self._set_poll()

    def rest(self) -> None:
        """The loop goes to sleep, see `Batcher.rest`."""
        for batcher in self._polled:
            batcher.rest()

    def last_batch_ns(self) -> int:
        """When the last batch of any model ended."""
        return max(batcher.last_batch_ns for batcher in self._polled)

    @property
    def pending_rows(self) -> int:
        """Requests accepted and not answered."""
        return sum(batcher.pending_rows for batcher in self._polled)

    def close(self) -> None:
        """Give back what all of them hold."""
        for batcher in self._polled:
            batcher.backend.close()

    def _set_poll(self) -> None:
        self._polled = (*self._batchers.values(), *self._leaving)
        # With one model the tick polls its batcher itself.
        self.poll = self._default.poll if len(self._polled) == 1 else self._poll_all
        self.on_poll(self.poll)

    def _poll_all(self) -> bool:
        busy = False
        for batcher in self._polled:
            if batcher.poll():
                busy = True
        return busy
