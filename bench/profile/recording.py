"""`python -m sigd.bench.profile.recording`: what counting and the flight recorder cost a request, on against
off in one run."""

from __future__ import annotations

import gc
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import click
import msgspec

from sigd.daemon.config.flags import WholeRange
from sigd.daemon.serving.counters import ModelCounters
from sigd.wire.recording.format import RING_HEADER_BYTES, RING_TAIL_WORD, RingHeader, stretch_bytes_in

if TYPE_CHECKING:
    import asyncio

    from sigd.bench.profile.client import ServedClient
    from sigd.daemon.recording.ring import Ring
    from sigd.models.backend import Backend

BUDGET_NS: Final = 150.0
"""What recording may cost a request."""
ROUND_CALLS: Final = 200
_RING_BYTES: Final = 32 << 20
"""More than a round writes, of the requests of any model that is not very wide."""


class NoCounters(ModelCounters):
    """Counts nothing, at the price of a call."""

    __slots__ = ()

    def count_single(self, total_ns: int, infer_ns: int) -> None:
        """Not counted: `slow_ns` stays 0, and everything comes here."""

    def count_batch(self, rows: int, infer_ns: int) -> None:
        """Not counted."""

    def count_one(self, total_ns: int, infer_ns: int) -> None:
        """Not counted."""

    def count_answers(
        self, receive_times_ns: object, statuses: object, send_time_ns: int, infer_ns: int
    ) -> None:
        """Not counted."""


class Percentiles(msgspec.Struct, frozen=True):
    """Of the ticks of a round, in ns a request; the median over the rounds."""

    p50_ns: float
    p99_ns: float

    @staticmethod
    def over(rounds: Sequence[Percentiles]) -> Percentiles:
        """The median of each."""
        return Percentiles(median(each.p50_ns for each in rounds), median(each.p99_ns for each in rounds))

    def less(self, other: Percentiles) -> Percentiles:
        """How much longer than `other`."""
        return Percentiles(self.p50_ns - other.p50_ns, self.p99_ns - other.p99_ns)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of one load.

    Attributes:
        off: ticks that answer it, with nothing counted or recorded.
        counting, recording: what counting takes longer than that, and what counting and recording do; each
            difference is between neighbours in time.
    """

    load: str
    rows: int
    off: Percentiles
    counting: Percentiles
    recording: Percentiles


@dataclass(frozen=True)
class Setup:
    """A daemon that records so much, and its client."""

    client: ServedClient
    ring: Ring | None = None

    def before_a_round(self) -> None:
        """What the recorder's writer does meanwhile: takes out of the ring what is in it."""
        if self.ring is not None:
            self.ring.words[RING_TAIL_WORD] = self.ring.head


def measure(off: Setup, counting: Setup, recording: Setup, rows: int, rounds: int) -> list[Cost]:
    """Of a request alone, of one on the batch path, of `rows` together."""
    setups = (off, counting, recording)
    rows = min(rows, off.client.rows_max)
    return [
        _compare("1, fast path", setups, _alone, 1, rounds),
        _compare("1, batch path", setups, partial(_together, rows=1), 1, rounds),
        _compare(f"{rows} together", setups, partial(_together, rows=rows), rows, rounds),
    ]


def _alone(client: ServedClient) -> Callable[[], int]:
    """Has one request answered the fast path; how long the tick took."""

    def answer() -> int:
        client.publish(1)
        begin_ns = monotonic_ns()
        client.poll()
        end_ns = monotonic_ns()
        client.take(1)
        return end_ns - begin_ns

    for _ in range(2):
        answer()
    assert client.batcher.fast_path_owner is client.session, "the request goes the batch path"
    return answer


def _together(client: ServedClient, rows: int) -> Callable[[], int]:
    """Has requests answered in one tick, the batch path; how long it took."""

    def answer() -> int:
        client.batcher.close_fast_path()
        client.publish(rows)
        begin_ns = monotonic_ns()
        client.poll()
        end_ns = monotonic_ns()
        client.take(rows)
        return end_ns - begin_ns

    return answer


def _compare(
    load: str,
    setups: Sequence[Setup],
    way: Callable[[ServedClient], Callable[[], int]],
    rows: int,
    rounds: int,
) -> Cost:
    answers = [way(setup.client) for setup in setups]
    measured: list[list[Percentiles]] = []
    for round_number in range(rounds + 1):
        took = [Percentiles(0, 0)] * len(setups)
        # The order changes: the later one finds warmer caches.
        for place in range(len(setups)):
            which = (place + round_number) % len(setups)
            setups[which].before_a_round()
            ticks_ns = sorted(answers[which]() for _ in range(ROUND_CALLS))
            took[which] = Percentiles(median(ticks_ns) / rows, ticks_ns[ROUND_CALLS * 99 // 100 - 1] / rows)
        measured.append(took)
    # The first round warms up.
    del measured[0]
    return Cost(
        load=load,
        rows=rows,
        off=Percentiles.over([off for off, _, _ in measured]),
        counting=Percentiles.over([counting.less(off) for off, counting, _ in measured]),
        recording=Percentiles.over([recording.less(off) for off, _, recording in measured]),
    )


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  python -m sigd.bench.profile.recording --cpu 1
  python -m sigd.bench.profile.recording --cpu 1 --backend onnxruntime    beside the model as well

\b
Exit codes: 0 done; 1 counting costs a request alone more than 150 ns; 2 wrong usage or input; 3 the
environment lacks something.""",
)
@click.option("--model", type=click.Path(path_type=Path), help="Model file.  [default: the shipped one]")
@click.option("--backend", default="echo", show_default=True, help="echo runs no model.")
@click.option("--rows", type=WholeRange(2, 4096), default=64, show_default=True, help="Requests together.")
@click.option(
    "--rounds", type=WholeRange(1), default=100, show_default=True, help="Comparisons of each load."
)
@click.option("--cpu", type=WholeRange(min=0), help="The core to run on.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(model: Path | None, backend: str, rows: int, rounds: int, cpu: int | None, as_json: bool) -> None:
    """Time requests over shared memory without counting, with it, and with the flight recorder too, in turn,
    in one process."""
    # As `sigd serve` does, before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from sigd.daemon.errors import DaemonError
    from sigd.models.errors import BackendUnavailable, ModelError

    try:
        costs = _run(model, backend, rows, rounds, cpu)
    except (DaemonError, ModelError, ValueError) as error:
        click.echo(f"sigd: {error}", err=True)
        sys.exit(3 if isinstance(error, BackendUnavailable) else getattr(error, "exit_code", 2))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(costs)).decode())
    else:
        for line in table(costs):
            click.echo(line)
    sys.exit(1 if costs[0].counting.p50_ns > BUDGET_NS else 0)


def table(costs: Sequence[Cost]) -> list[str]:
    """For people: each percentile, how much longer it is than with everything off, and how many times as
    long."""
    lines = [f"{'ns a request':34}{'p50':>8}{'':8}{'times':>7}{'p99':>10}{'':8}{'times':>7}"]
    for cost in costs:
        off = cost.off
        lines.append(f"{cost.load:14}{'nothing counted':22}{off.p50_ns:8,.0f}{'':15}{off.p99_ns:10,.0f}")
        for what, more in (("metrics", cost.counting), ("metrics and recorder", cost.recording)):
            columns = "".join(
                f"{was + longer:{width},.0f}{longer:+8,.0f}{(was + longer) / was:7.3f}"
                for width, was, longer in (
                    (8, off.p50_ns, more.p50_ns),
                    (10, off.p99_ns, more.p99_ns),
                )
            )
            lines.append(f"{'':14}{what:22}{columns}")
    return lines


def make_setups(loop: asyncio.AbstractEventLoop, backend: Backend) -> tuple[Setup, Setup, Setup]:
    """Nothing recorded, counting, counting and recording; `loop` does not run."""
    from sigd.bench.profile.client import ServedClient
    from sigd.daemon.recording.ring import Ring
    from sigd.daemon.recording.tap import Taps

    header = RingHeader(_RING_BYTES, stretch_bytes_in(_RING_BYTES), bytes(16), b"{}")
    memory = mmap.mmap(-1, RING_HEADER_BYTES + _RING_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    memory[:RING_HEADER_BYTES] = header.encode()
    ring = Ring(memory, header)
    return (
        Setup(ServedClient(loop, backend, NoCounters(backend.batch_rows_max))),
        Setup(ServedClient(loop, backend)),
        Setup(ServedClient(loop, backend, taps=Taps(ring)), ring),
    )


def _run(model: Path | None, name: str, rows: int, rounds: int, cpu: int | None) -> list[Cost]:
    import uvloop

    from sigd.daemon.runtime.process import ignore_overflow, pin_to_cpu
    from sigd.models.registry import open_backend
    from sigd.models.zoo import default_model_path

    if cpu is not None:
        pin_to_cpu(cpu)
    ignore_overflow()
    backend = open_backend(model or default_model_path(), name, batch_rows_max=rows)
    loop = uvloop.new_event_loop()
    gc.collect()
    gc.disable()
    try:
        setups = make_setups(loop, backend)
        try:
            return measure(*setups, rows, rounds)
        finally:
            for setup in setups:
                setup.client.close()
    finally:
        gc.enable()
        loop.close()
        backend.close()


if __name__ == "__main__":
    main()
