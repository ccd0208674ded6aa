"""The bare backend call, timed in a process of its own on the daemon's core: the other half of the floor.

    python -m sigd.bench.floor.bare_backend MODEL BACKEND BATCH_ROWS_MAX CPU

Answers each line `ROWS SECONDS PAUSE_NS` on its standard input with a line `calls total_ns` and then as many
int64 durations in ns, the clock's own cost taken off. While it waits for a line it sleeps, so that the core
is free for others.
"""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from sigd.bench import histogram
from sigd.bench.errors import PeerFailed
from sigd.bench.load.requests import RANDOM_ROWS
from sigd.bench.pinning import pinned
from sigd.models.rows import drawn_rows

if TYPE_CHECKING:
    from sigd.models.backend import Backend

_WARMUP_CALLS = 200


@dataclass(frozen=True)
class BareCalls:
    """Timed calls of `rows` rows each.

    Attributes:
        calls: how many.
        total_ns: from before the first to after the last, the reading of the clock included.
        counts: of each call's ns; see `sigd.bench.histogram`.
    """

    rows: int
    calls: int
    total_ns: int
    counts: histogram.Counts

    @property
    def rows_per_s(self) -> float:
        """Rows through the model in one second."""
        return self.rows * self.calls * 1e9 / self.total_ns if self.total_ns else 0.0

    def plus(self, other: BareCalls) -> BareCalls:
        """Both together; the rows of a call must be equal."""
        assert self.rows == other.rows
        return BareCalls(
            self.rows, self.calls + other.calls, self.total_ns + other.total_ns, self.counts + other.counts
        )


class BareBackend:
    """The timing process, for use in a `with` block.

    Attributes:
        batch_rows_max: the largest batch of the opened backend.
    """

    def __init__(self, model: str, backend: str, batch_rows_max: int, cpu: int | None) -> None:
        """Start it and wait until its backend is open.

        Raises:
            PeerFailed: it did not get so far; the message has its words.
        """
        arguments = [model, backend, str(batch_rows_max), str(-1 if cpu is None else cpu)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sigd.bench.floor.bare_backend", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            self.batch_rows_max = int(self._line())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def measure(self, rows: int, seconds: float, pause_ns: int = 0) -> BareCalls:
        """Time calls of `rows` rows for about `seconds`, each `pause_ns` after the one before.

        Raises:
            PeerFailed: the process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{rows} {seconds} {pause_ns}\n".encode())
        self._process.stdin.flush()
        calls, total_ns = (int(word) for word in self._line().split())
        durations = np.frombuffer(self._process.stdout.read(8 * calls), dtype=np.int64)
        return BareCalls(rows, calls, total_ns, histogram.count(durations))

    def _line(self) -> str:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().decode(errors="replace")[-2000:].strip()
            raise PeerFailed(f"the bare backend's process ended: {said or 'no message'}")
        return line.decode()


def time_calls(
    call: Callable[[], object],
    seconds: float,
    pause_ns: int = 0,
    before: Callable[[], object] = lambda: None,
) -> tuple[array[int], int]:
    """Call over and over for `seconds`: the duration of each in ns without the clock's own cost, and the
    total.

    Args:
        pause_ns: spent looking at the clock between two calls; 0 is back to back.
        before: called before each, outside of its duration.
    """
    clock_ns = time.monotonic_ns
    for _ in range(_WARMUP_CALLS):
        before()
        call()
    clock_cost_ns = _clock_cost_ns()
    durations = array("q")
    append = durations.append
    begin_ns = clock_ns()
    end_ns = begin_ns + round(seconds * 1e9)
    after_ns = begin_ns
    while after_ns < end_ns:
        before()
        before_ns = clock_ns()
        call()
        after_ns = clock_ns()
        append(after_ns - before_ns - clock_cost_ns)
        while pause_ns and clock_ns() - after_ns < pause_ns:
            pass
    return durations, after_ns - begin_ns


def other_rows(backend: Backend, rows: int) -> Callable[[], object]:
    """What puts the next `rows` rows into the inputs, from as many different ones as a load generator sends:
    of the same row again and again a model finds all that it reads in the caches."""
    spec, room = backend.spec, backend.inputs[:rows]
    drawn = drawn_rows(spec.input_columns, spec.features, max(RANDOM_ROWS, rows), seed=0)
    batches = [drawn[first : first + rows] for first in range(0, len(drawn) - rows + 1, rows)]
    following = itertools.cycle(batches)
    return lambda: np.copyto(room, next(following))


def _clock_cost_ns() -> int:
    costs = []
    for _ in range(1001):
        before_ns = time.monotonic_ns()
        costs.append(time.monotonic_ns() - before_ns)
    return sorted(costs)[500]


def _serve_timings(model: str, backend: str, batch_rows_max: int, cpu: int | None) -> None:
    from sigd.models.registry import open_backend

    with pinned(cpu):
        opened = open_backend(model, backend=backend, batch_rows_max=batch_rows_max)
        print(opened.batch_rows_max, flush=True)
        gc.collect()
        gc.freeze()
        gc.disable()
        for line in sys.stdin:
            rows, seconds, pause_ns = line.split()
            durations, total_ns = time_calls(
                opened.bare_call(int(rows)), float(seconds), int(pause_ns), other_rows(opened, int(rows))
            )
            sys.stdout.buffer.write(f"{len(durations)} {total_ns}\n".encode())
            sys.stdout.buffer.write(durations.tobytes())
            sys.stdout.buffer.flush()
        opened.close()


if __name__ == "__main__":
    _model, _backend, _rows, _cpu = sys.argv[1:]
    _serve_timings(_model, _backend, int(_rows), int(_cpu) if int(_cpu) >= 0 else None)
