"""The bare model call as a contender: what the daemon calls for one row, without daemon and transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from sigd.bench.floor.bare_backend import BareBackend
from sigd.bench.load.contract import SAMPLE, STATUS_NAMES, LatencyCounts, LoadPlan, Measurement
from sigd.bench.load.schedule import NS_PER_S

_NONE: Final = np.empty(0, SAMPLE)


class BareLoad:
    """Calls a backend over and over, each time with another row."""

    name = "bare"

    def __init__(self, backend: BareBackend) -> None:
        self._backend = backend

    def run(self, plan: LoadPlan, on_measuring: Callable[[], None]) -> Measurement:
        """A closed loop of calls for as long as the plan says; its frames are not looked at.

        Raises:
            PeerFailed: the backend's process ended.
        """
        on_measuring()
        found = self._backend.measure(1, plan.duration_ns / NS_PER_S)
        return Measurement(
            client=self.name,
            welcome=b"",
            elapsed_ns=found.total_ns,
            intended_span_ns=0,
            sent_span_ns=found.total_ns,
            requests=found.calls,
            sent=found.calls,
            received=found.calls,
            statuses=(found.calls, *(0 for _ in STATUS_NAMES[1:])),
            late_sends=0,
            late_worst_ns=0,
            hiccups=0,
            hiccup_worst_ns=0,
            hiccup_sum_ns=0,
            batch_rows_sum=found.calls,
            generation_first=0,
            generation_last=0,
            counts=LatencyCounts(corrected=found.counts, uncorrected=found.counts, model=found.counts),
            samples=_NONE,
            slowest=_NONE,
            violation=None,
        )


@contextmanager
def bare_load(model: str, backend: str, cpu: int | None) -> Iterator[BareLoad]:
    """The model on that backend, in a process of its own on that core.

    Raises:
        PeerFailed: the backend does not open.
    """
    with BareBackend(model, backend, 1, cpu) as opened:
        yield BareLoad(opened)
