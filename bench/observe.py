"""What the flight recorder costs a client: a daemon that records against one that does not.

Both are there at once, on one core, and asked in turns: while one is measured the other is stopped, so that
drift of the machine hits both alike. Both keep their metrics, for no daemon can be without; what those cost
is measured in one process by `sigd.bench.profile.recording`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from sigd.bench import histogram, verdict
from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.errors import PeerFailed
from sigd.bench.load.contract import LoadGenerator, LoadPlan, Measurement
from sigd.bench.load.plan import plan_for
from sigd.bench.load.schedule import NS_PER_S
from sigd.daemon.admin.client import ask_status
from sigd.daemon.config.config import admin_path_of
from sigd.daemon.errors import DaemonError
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

_CLIENT_NAME = "sigd observe"
_PERCENTS = (50.0, 99.0)
_LOOK_S = 0.02
_PATIENCE_S = 10.0

Say = Callable[[str], None]


class _Recorded(NamedTuple):
    requests: int
    dropped: int
    unstored_bytes: int


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        rounds: of two turns, one with each daemon.
        seconds: for each turn.
        cpu: of the client.
    """

    serve: ServeOptions
    transport: Transport
    rounds: int
    seconds: float
    cpu: int | None


@dataclass(frozen=True)
class Round:
    """Two turns that follow each other."""

    off: Measurement
    on: Measurement


@dataclass(frozen=True)
class Found:
    """Everything that was found out.

    Attributes:
        recorded, dropped: requests, by what became of them in the recorder.
    """

    asked: Asked
    rounds: tuple[Round, ...]
    recorded: int
    dropped: int

    def pooled_ns(self) -> tuple[list[int], list[int]]:
        """p50 and p99 over all rounds, without the recorder and with it."""
        return (
            _percentiles_ns(*(turns.off for turns in self.rounds)),
            _percentiles_ns(*(turns.on for turns in self.rounds)),
        )

    def counts(self) -> dict[str, histogram.Counts]:
        """Of all latencies without the recorder and with it, by a name for files."""
        return {
            "metrics": _counts(*(turns.off for turns in self.rounds)),
            "recorder": _counts(*(turns.on for turns in self.rounds)),
        }

    def longer_ns(self) -> list[float]:
        """How much longer p50 and p99 are with the recorder: the median over the rounds."""
        return self._over_rounds(lambda off, on: on - off)

    def ratios(self) -> list[float]:
        """How many times as long."""
        return self._over_rounds(lambda off, on: on / max(1, off))

    def reasons(self) -> list[str]:
        """Why it may not be quoted; empty where it may."""
        turns = [turn for both in self.rounds for turn in (both.off, both.on)]
        reasons = sorted({reason for turn in turns for reason in verdict.judge(turn, None).reasons})
        if self.dropped:
            reasons.append(
                f"{self.dropped:,} requests found no room in the recorder's ring, and cost less than others:"
                " use"
                " fewer --seconds"
            )
        return reasons

    def _over_rounds(self, compared: Callable[[int, int], float]) -> list[float]:
        percentiles = [(_percentiles_ns(turns.off), _percentiles_ns(turns.on)) for turns in self.rounds]
        return [
            statistics.median(compared(off[index], on[index]) for off, on in percentiles)
            for index in range(len(_PERCENTS))
        ]


def measure(asked: Asked, generator: LoadGenerator, say: Say) -> Found:
    """Measure. `say` is told what is being done, a line at a time.

    Raises:
        PeerFailed: a process that the measurement needs failed.
    """
    with tempfile.TemporaryDirectory(prefix="sigd-observe-") as folder, ExitStack() as stack:
        recording = replace(asked.serve, record=folder)
        say(f"two daemons: sigd {' '.join(recording.arguments('SOCKET'))}, and one without --record")
        off = stack.enter_context(OwnDaemon(asked.serve))
        plan = _plan(asked, off.socket_path)
        off.pause()
        on = stack.enter_context(OwnDaemon(recording))
        on.pause()
        rounds = []
        for number in range(asked.rounds):
            say(f"round {number + 1} of {asked.rounds}")
            # The order changes: the second one runs on the caches that the first has left.
            if number % 2:
                with_it = _turn(on, plan, generator)
                without = _turn(off, plan, generator)
            else:
                without = _turn(off, plan, generator)
                with_it = _turn(on, plan, generator)
            rounds.append(Round(without, with_it))
        on.resume()
        recorded = _recorded(on)
        for daemon in (off, on):
            daemon.resume()
            daemon.stop()
    return Found(asked, tuple(rounds), recorded.requests, recorded.dropped)


def _plan(asked: Asked, socket_path: str) -> LoadPlan:
    """A closed loop with one request unanswered."""
    hello = Hello(transport=asked.transport, client_name=_CLIENT_NAME)
    plan, _ = plan_for(socket_path, hello)
    return replace(
        plan,
        duration_ns=round(asked.seconds * NS_PER_S),
        warmup_ns=round(asked.seconds * NS_PER_S / 4),
        cpu=asked.cpu,
        samples_max=0,
    )


def _turn(daemon: OwnDaemon, plan: LoadPlan, generator: LoadGenerator) -> Measurement:
    daemon.resume()
    measurement = generator.run(replace(plan, socket_path=daemon.socket_path), lambda: None)
    while _recorded(daemon).unstored_bytes > 0:
        # Or the next turn would be measured beside the storing of this one.
        time.sleep(_LOOK_S)
    daemon.pause()
    return measurement


def _recorded(daemon: OwnDaemon) -> _Recorded:
    """What the daemon says of its recorder; zeros where it has none."""
    try:
        recorder = ask_status(admin_path_of(Path(daemon.socket_path)), _PATIENCE_S).recorder
    except DaemonError as error:
        raise PeerFailed(str(error)) from error
    if recorder is None:
        return _Recorded(0, 0, 0)
    return _Recorded(recorder.requests, recorder.dropped, recorder.written_bytes - recorder.stored_bytes)


def _percentiles_ns(*measurements: Measurement) -> list[int]:
    return histogram.percentiles_ns(_counts(*measurements), _PERCENTS)


def _counts(*measurements: Measurement) -> histogram.Counts:
    return sum((measurement.counts.corrected for measurement in measurements), histogram.empty())
