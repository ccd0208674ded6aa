"""`python -m sigd.daemon.stages.recording`: what counting costs a request, on against off in one run."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import click
import msgspec

from sigd.daemon.counters import ModelCounters

if TYPE_CHECKING:
    from sigd.daemon.stages.client import ServedClient

BUDGET_NS: Final = 150.0
"""What recording may cost a request."""
_ROUND_CALLS: Final = 200


class NoCounters(ModelCounters):
    """Counts nothing, at the price of a call."""

    __slots__ = ()

    def count_lone(self, total_ns: int, infer_ns: int) -> None:
        """Not counted."""

    def count_batch(self, rows: int, infer_ns: int) -> None:
        """Not counted."""

    def count_one(self, total_ns: int, infer_ns: int) -> None:
        """Not counted."""

    def count_answers(
        self, receive_times_ns: object, statuses: object, send_time_ns: int, infer_ns: int
    ) -> None:
        """Not counted."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of one load, for each request, in ns.

    Attributes:
        off_ns, on_ns: a tick that answers it, without and with counting.
        cost_ns: the median of their differences, of which each is between neighbours in time.
    """

    load: str
    rows: int
    off_ns: float
    on_ns: float
    cost_ns: float


def measure(off: ServedClient, on: ServedClient, rows: int, rounds: int) -> list[Cost]:
    """What `on` takes longer than `off`, of a request alone, of one on the full way, of `rows` together."""
    rows = min(rows, on.rows_max)
    return [
        _compare("1, alone", [_alone(off), _alone(on)], 1, rounds),
        _compare("1, full way", [_together(off, 1), _together(on, 1)], 1, rounds),
        _compare(f"{rows} together", [_together(off, rows), _together(on, rows)], rows, rounds),
    ]


def _alone(client: ServedClient) -> Callable[[], int]:
    """Has one request answered the shortest way; how long the tick took."""

    def answer() -> int:
        client.publish(1)
        begin_ns = monotonic_ns()
        client.host.poll()
        end_ns = monotonic_ns()
        client.take(1)
        return end_ns - begin_ns

    for _ in range(2):
        answer()
    assert client.batcher.alone is client.session, "the request goes the full way"
    return answer


def _together(client: ServedClient, rows: int) -> Callable[[], int]:
    """Has requests answered in one tick, the full way; how long it took."""

    def answer() -> int:
        client.batcher.rest()
        client.publish(rows)
        begin_ns = monotonic_ns()
        client.host.poll()
        end_ns = monotonic_ns()
        client.take(rows)
        return end_ns - begin_ns

    return answer


def _compare(load: str, answers: Sequence[Callable[[], int]], rows: int, rounds: int) -> Cost:
    medians: list[list[float]] = []
    for round_number in range(rounds + 1):
        # Who begins changes: the second of two finds warmer caches.
        turn = answers if round_number % 2 else answers[::-1]
        took = {answer: median(answer() for _ in range(_ROUND_CALLS)) / rows for answer in turn}
        medians.append([took[answer] for answer in answers])
    # The first round warms up.
    off_ns, on_ns = zip(*medians[1:], strict=True)
    return Cost(
        load=load,
        rows=rows,
        off_ns=median(off_ns),
        on_ns=median(on_ns),
        cost_ns=median(on - off for off, on in medians[1:]),
    )


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  python -m sigd.daemon.stages.recording --cpu 1
  python -m sigd.daemon.stages.recording --cpu 1 --backend onnxruntime    beside the model as well

\b
Exit codes: 0 done; 1 a request alone pays more than 150 ns; 2 wrong usage or input; 3 the environment lacks something.""",
)
@click.option("--model", type=click.Path(path_type=Path), help="Model file.  [default: the shipped one]")
@click.option("--backend", default="echo", show_default=True, help="echo runs no model.")
@click.option(
    "--rows", type=click.IntRange(2, 4096), default=64, show_default=True, help="Requests together."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=100, show_default=True, help="Comparisons of each load."
)
@click.option("--cpu", type=click.IntRange(min=0), help="The core to run on.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(model: Path | None, backend: str, rows: int, rounds: int, cpu: int | None, as_json: bool) -> None:
    """Time requests over shared memory with and without counting, in turn, in one process."""
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
        click.echo(f"{'requests in a tick':20}{'off, ns':>12}{'on, ns':>12}{'counting costs each':>22}")
        for cost in costs:
            click.echo(f"{cost.load:20}{cost.off_ns:12,.0f}{cost.on_ns:12,.0f}{cost.cost_ns:19,.0f} ns")
    sys.exit(1 if costs[0].cost_ns > BUDGET_NS else 0)


def _run(model: Path | None, name: str, rows: int, rounds: int, cpu: int | None) -> list[Cost]:
    import uvloop

    from sigd.daemon.process import ignore_overflow, pin_to_cpu
    from sigd.daemon.stages.client import ServedClient
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
        off = ServedClient(loop, backend, NoCounters(backend.batch_rows_max))
        on = ServedClient(loop, backend, ModelCounters(backend.batch_rows_max))
        try:
            return measure(off, on, rows, rounds)
        finally:
            off.close()
            on.close()
    finally:
        gc.enable()
        loop.close()
        backend.close()


if __name__ == "__main__":
    main()
