"""The floor: what the machine itself costs, measured in turns with sigd so that drift hits both alike.

One round is: the same load generator against `native/echo.cpp` (over shared memory `native/ring_echo.cpp`),
two native programs spinning over a Unix socket (a ring) with the same frame sizes; the bare backend call, as
the backend itself offers it; then sigd. The floor of a percentile is the sum of the first two's. Whatever
does not measure sleeps or is stopped meanwhile, for the cores are the same.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sigd.bench import histogram
from sigd.bench.errors import PeerFailed
from sigd.bench.floor.bare_backend import BareBackend, BareCalls
from sigd.bench.load.contract import LoadGenerator, LoadPlan, Measurement
from sigd.bench.native.build import NativePrograms
from sigd.wire.status import Transport

ROUNDS = 5
_RATIO_PERCENTILES = (50.0, 99.0)
_ECHOES: dict[Transport, str] = {Transport.STREAM: "echo", Transport.SHARED_MEMORY: "ring_echo"}


@dataclass(frozen=True)
class FloorRound:
    """One turn of all three.

    Attributes:
        echo: the native echo, measured as sigd is.
        bare: the backend at one row a call.
        bare_batch: the backend at its largest batch.
        sigd: the daemon.
    """

    echo: Measurement
    bare: BareCalls
    bare_batch: BareCalls
    sigd: Measurement

    def plus(self, other: FloorRound) -> FloorRound:
        """Both rounds as one."""
        return FloorRound(
            self.echo.plus(other.echo),
            self.bare.plus(other.bare),
            self.bare_batch.plus(other.bare_batch),
            self.sigd.plus(other.sigd),
        )


@dataclass(frozen=True)
class Ratio:
    """sigd against its floor at one percentile, in ns; the last two are pure numbers.

    Attributes:
        pooled: of the percentiles over all rounds together.
        median: of the rounds' own ratios.
    """

    percentile: float
    echo_ns: int
    bare_ns: int
    sigd_ns: int
    pooled: float
    median: float

    @property
    def floor_ns(self) -> int:
        """Transport and model together."""
        return self.echo_ns + self.bare_ns


def run_round(
    plan: LoadPlan,
    generator: LoadGenerator,
    programs: NativePrograms,
    bare: BareBackend,
    daemon_cpu: int | None,
    bare_seconds: float,
    run_sigd: Callable[[], Measurement],
) -> FloorRound:
    """One round; `run_sigd` wakes the daemon, measures it and stops it again.

    Raises:
        PeerFailed: the echo, the backend or the load generator did not run, or the echo lost something.
    """
    with echo_server(programs, Transport(plan.hello.transport), plan.outputs, daemon_cpu) as socket_path:
        echo = generator.run(replace(plan, socket_path=socket_path), lambda: None)
    if echo.violation or echo.lost:
        raise PeerFailed(f"the floor itself failed: {echo.violation or f'{echo.lost} echoes lost'}")
    # A processor that does something else between two calls is slower in them: see docs/benchmarking.md.
    (pause_ns,) = histogram.percentiles_ns(echo.counts.corrected, [50.0])
    return FloorRound(
        echo=echo,
        bare=bare.measure(1, bare_seconds, pause_ns),
        bare_batch=bare.measure(bare.batch_rows_max, bare_seconds),
        sigd=run_sigd(),
    )


def pool(rounds: list[FloorRound]) -> FloorRound:
    """All rounds as one."""
    pooled = rounds[0]
    for following in rounds[1:]:
        pooled = pooled.plus(following)
    return pooled


def ratios(rounds: list[FloorRound]) -> list[Ratio]:
    """sigd against the floor at p50 and p99."""
    pooled = pool(rounds)
    found = []
    for percentile in _RATIO_PERCENTILES:
        echo_ns, bare_ns, sigd_ns = _at(pooled, percentile)
        each = [_ratio(*_at(one, percentile)) for one in rounds]
        found.append(
            Ratio(
                percentile,
                echo_ns,
                bare_ns,
                sigd_ns,
                pooled=_ratio(echo_ns, bare_ns, sigd_ns),
                median=statistics.median(each),
            )
        )
    return found


def throughput_ratio(rounds: list[FloorRound]) -> float:
    """Signals/s of sigd over rows/s of the bare backend at its largest batch, median over the rounds."""
    return statistics.median(signals_per_s(one.sigd) / one.bare_batch.rows_per_s for one in rounds)


def signals_per_s(measurement: Measurement) -> float:
    """OK answers in one second of the measurement."""
    return measurement.statuses[0] * 1e9 / measurement.elapsed_ns if measurement.elapsed_ns else 0.0


def _at(one: FloorRound, percentile: float) -> tuple[int, int, int]:
    counts = (one.echo.counts.corrected, one.bare.counts, one.sigd.counts.corrected)
    echo_ns, bare_ns, sigd_ns = (histogram.percentiles_ns(each, [percentile])[0] for each in counts)
    return echo_ns, bare_ns, sigd_ns


def _ratio(echo_ns: int, bare_ns: int, sigd_ns: int) -> float:
    return sigd_ns / (echo_ns + bare_ns) if echo_ns + bare_ns else 0.0


@contextmanager
def echo_server(
    programs: NativePrograms, transport: Transport, outputs: int, cpu: int | None
) -> Iterator[str]:
    """The echo program for that transport, listening at the path; it ends by itself when its clients have
    gone."""
    program = programs.path(_ECHOES[transport])
    with tempfile.TemporaryDirectory(prefix="sigd-echo-") as directory:
        socket_path = os.path.join(directory, "echo.sock")
        command = [program, socket_path, str(outputs), str(-1 if cpu is None else cpu)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                if process.stdout.readline().strip() != "ready":
                    raise PeerFailed(f"{command[0]} did not start listening")
                yield socket_path
            finally:
                process.kill()
