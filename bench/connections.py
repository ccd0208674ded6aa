"""Many connections: what those that are silent cost the few that talk, and how evenly many that talk are
served.

Silent ones: rounds of two turns each, the few alone and the few among the silent, on one daemon, so that
drift of the machine hits both alike. Talking ones: every connection keeps a few requests unanswered, so that
the daemon always has more waiting than one batch holds, and what each one gets is the daemon's choice.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from sigd.bench import histogram, verdict
from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.errors import MissingDependency
from sigd.bench.load.contract import LoadGenerator, LoadPlan, Measurement
from sigd.bench.load.plan import plan_for
from sigd.bench.load.schedule import NS_PER_S
from sigd.wire.client import connect
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

P99_RATIO_MAX = 1.3
"""The few may be so much slower among the silent."""
SHARE_RATIO_MAX = 2.0
"""The most served client may get this many times the answers of the least served one."""
_SPARE_DESCRIPTORS = 64
_DESCRIPTORS_PER_CLIENT = {Transport.STREAM: 1, Transport.SHARED_MEMORY: 6}
_CONNECT_TIMEOUT_S = 60.0
"""A thousand handshakes on a busy machine; none of them is measured."""
_CLIENT_NAME = "sigd connections"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        talking: connections that talk while the rest keeps silent.
        connections: all together; in the second part all of them talk.
        in_flight: unanswered requests of each of them in the second part.
        rounds: of the first part.
        seconds: for each turn of a round.
        requests_each: of each connection in the second part, on average.
    """

    serve: ServeOptions
    transport: Transport = Transport.STREAM
    connections: int = 1000
    talking: int = 10
    in_flight: int = 8
    rounds: int = 5
    seconds: float = 2.0
    requests_each: int = 400
    cpu: int | None = None


@dataclass(frozen=True)
class Turns:
    """One round: the few alone, and the same among the silent."""

    alone: Measurement
    among: Measurement

    @property
    def p99_ratio(self) -> float:
        """How much slower they were among the silent."""
        return p99_ns(self.among) / p99_ns(self.alone)


@dataclass(frozen=True)
class Shares:
    """What each talking connection got.

    Attributes:
        served: answers by connection, those never served included.
    """

    measurement: Measurement
    served: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """Most over least; infinite where one got nothing."""
        return max(self.served) / min(self.served) if min(self.served) else float("inf")


@dataclass(frozen=True)
class Found:
    """Everything that was found out."""

    asked: Asked
    rounds: tuple[Turns, ...]
    shares: Shares

    @property
    def p99_ratio(self) -> float:
        """The median of the rounds': the two turns of one follow each other, and one disturbed round counts
        as one."""
        return statistics.median(turns.p99_ratio for turns in self.rounds)

    def reasons(self) -> list[str]:
        """Why it did not pass; empty where it did."""
        reasons = [
            f"{what}: {reason}"
            for what, measurement in (
                *(("alone", turns.alone) for turns in self.rounds),
                *(("among silent ones", turns.among) for turns in self.rounds),
                ("all talking", self.shares.measurement),
            )
            for reason in verdict.judge(measurement, None).reasons
        ]
        if self.p99_ratio > P99_RATIO_MAX:
            reasons.append(
                f"p99 is {self.p99_ratio:.2f} times as long among silent connections, more than"
                f" {P99_RATIO_MAX}"
            )
        if self.shares.ratio > SHARE_RATIO_MAX:
            reasons.append(
                f"one connection was served {self.shares.ratio:.2f} times as often as another, more than"
                f" {SHARE_RATIO_MAX:g}"
            )
        return reasons


def p99_ns(measurement: Measurement) -> int:
    """From send to answer, at least 1."""
    return max(1, histogram.percentiles_ns(measurement.counts.corrected, [99.0])[0])


def measure(asked: Asked, generator: LoadGenerator, say: Say) -> Found:
    """Measure both parts. `say` is told what is being done, a line at a time.

    Raises:
        MissingDependency: the limit of open files is too low for so many connections.
        PeerFailed: a process that the measurement needs failed.
    """
    allow_descriptors(_DESCRIPTORS_PER_CLIENT[asked.transport] * asked.connections + _SPARE_DESCRIPTORS)
    say("starting a daemon: sigd " + " ".join(asked.serve.arguments("SOCKET")))
    with OwnDaemon(asked.serve) as daemon:
        plan = _plan(asked, daemon.socket_path)
        few = replace(
            plan, connections=asked.talking, duration_ns=round(asked.seconds * NS_PER_S), samples_max=0
        )
        rounds = []
        for number in range(asked.rounds):
            say(f"round {number + 1} of {asked.rounds}: {asked.talking} alone, then among silent ones")
            rounds.append(_round(asked, few, generator))
        daemon.stop()
    # A daemon of its own: none of the silent ones can be there still, and take the place of one that talks.
    with OwnDaemon(asked.serve) as daemon:
        say(f"{asked.connections:,} talk")
        shares = _shares(asked, replace(plan, socket_path=daemon.socket_path), generator)
        daemon.stop()
    return Found(asked, tuple(rounds), shares)


def served_by_connection(measurement: Measurement, connections: int) -> tuple[int, ...]:
    """Answers by connection, of a measurement that kept a sample of every request."""
    counts = np.bincount(measurement.samples["connection"], minlength=connections)
    return tuple(int(count) for count in counts)


def allow_descriptors(wanted: int) -> None:
    """Raise the soft limit of open files.

    Raises:
        MissingDependency: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise MissingDependency(
            f"{wanted:,} open files are needed, the hard limit is {hard:,}: raise it (ulimit -Hn), or measure"
            " fewer"
            " connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _plan(asked: Asked, socket_path: str) -> LoadPlan:
    """A closed loop with one request unanswered on each connection."""
    hello = Hello(transport=asked.transport, client_name=_CLIENT_NAME)
    plan, _ = plan_for(socket_path, hello)
    return replace(plan, warmup_ns=round(asked.seconds * NS_PER_S / 4), cpu=asked.cpu)


def _round(asked: Asked, plan: LoadPlan, generator: LoadGenerator) -> Turns:
    alone = generator.run(plan, _nothing)
    with _silent(asked, plan.socket_path):
        among = generator.run(plan, _nothing)
    return Turns(alone, among)


@contextmanager
def _silent(asked: Asked, socket_path: str) -> Iterator[None]:
    """Connections that have said Hello, got their Welcome, and say nothing more."""
    with ExitStack() as stack:
        for _ in range(asked.connections - asked.talking):
            stack.enter_context(
                connect(
                    socket_path,
                    shared_memory=asked.transport is Transport.SHARED_MEMORY,
                    client_name=_CLIENT_NAME,
                    timeout_s=_CONNECT_TIMEOUT_S,
                )
            )
        yield


def _shares(asked: Asked, plan: LoadPlan, generator: LoadGenerator) -> Shares:
    total = asked.connections * asked.requests_each
    measurement = generator.run(
        replace(
            plan,
            connections=asked.connections,
            in_flight=asked.in_flight,
            requests=total,
            # What is unanswered when the last request is sent is measured too.
            samples_max=total + asked.connections * asked.in_flight,
        ),
        _nothing,
    )
    return Shares(measurement, served_by_connection(measurement, asked.connections))


def _nothing() -> None:
    """No client waits for the end of the warm-up."""
