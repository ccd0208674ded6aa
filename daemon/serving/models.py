"""The models that are served: by name for a client's Hello, one after the other for the loop."""

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
        on_change: called when `polls` has changed.
    """

    def __init__(self, batchers: Sequence[Batcher]) -> None:
        """Raises UsageError where two have one name."""
        self._batchers = {batcher.name: batcher for batcher in batchers}
        if len(self._batchers) < len(batchers):
            names = ", ".join(sorted(batcher.name for batcher in batchers))
            raise UsageError(f"two models have one name among {names}: give each [[model]] a name of its own")
        self._default = batchers[0]
        self._leaving: list[Batcher] = []
        self.on_change: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[Batcher]:
        return iter(self._batchers.values())

    @property
    def polls(self) -> tuple[Callable[[], bool], ...]:
        """For the tick: each lets a model finish and start a batch; True where there is work left or was."""
        return tuple(batcher.poll for batcher in self._polled)

    @property
    def _polled(self) -> tuple[Batcher, ...]:
        return (*self._batchers.values(), *self._leaving)

    def find(self, name: str) -> Batcher | None:
        """The batcher of the model of that name, "" being the default; None where there is none."""
        return self._batchers.get(name) if name else self._default

    def replace(self, old: Batcher, new: Batcher) -> None:
        """From now on `new` serves clients that come for the model of that name. `old` is polled until
        `left()`."""
        assert old.name == new.name
        self._batchers[new.name] = new
        if self._default is old:
            self._default = new
        self._leaving.append(old)
        self.on_change()

    def left(self, old: Batcher) -> None:
        """Its last client has gone: poll it no more."""
        self._leaving.remove(old)
        self.on_change()

    def close_fast_path(self) -> None:
        """The loop goes to sleep, see `Batcher.close_fast_path`."""
        for batcher in self._polled:
            batcher.close_fast_path()

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
