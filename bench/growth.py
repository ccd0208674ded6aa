"""How the cost of a request grows: with connections, requests in flight, instruments that tick together,
features, rows a call and parameters. One daemon on one core, over shared memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Final

import msgspec

from sigd.bench import environment as machine
from sigd.bench import hiccup, histogram, verdict
from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.environment import Environment
from sigd.bench.errors import PeerFailed
from sigd.bench.floor.bare_backend import BareBackend
from sigd.bench.load import schedule
from sigd.bench.load.contract import LoadPlan, Measurement
from sigd.bench.load.native import NativeLoad
from sigd.bench.load.plan import plan_for
from sigd.bench.load.schedule import NS_PER_S
from sigd.bench.native.build import NativePrograms
from sigd.bench.pinning import allowed_cpus, choose_cores
from sigd.bench.stolen import SHARE_MAX, StolenWatch
from sigd.models.zoo.draws import Draws
from sigd.models.zoo.networks import mlp
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

NAME: Final = "sigd.bench.growth"
VERSION: Final = 1
AXES: Final = {
    "connections": ("connections, one request in flight on each", (1, 2, 4, 8, 16, 32, 64)),
    "in-flight": ("requests in flight on one connection", (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "instruments": ("instruments that tick together, 10 times a second", (1, 10, 50, 100, 250, 500, 1000)),
    "features": ("features of a dense model with 16 hidden units", (8, 32, 128, 512, 1024, 2048, 4096)),
    "batch": ("rows in a call of the bare model", (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "parameters": (
        "parameters of a dense model of 64 features",
        (10_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
    ),
}
_FEATURES: Final = 64
_HIDDEN: Final = 16
_OUTPUTS: Final = 3
_SLOTS: Final = 256
_BURSTS_HZ: Final = 10.0
_WARMUP_S: Final = 0.3
_HICCUP_SECONDS: Final = 0.5

Say = Callable[[str], None]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    Attributes:
        value: how many of what the axis counts.
        p50_us, p99_us: from when a request was due to its answer; on the axis "batch" of a call.
        per_s: answers in a second; on the axis "batch" rows.
        disturbed: the machine took more than a hundredth of the time away.
    """

    value: int
    p50_us: float
    p99_us: float
    per_s: float
    disturbed: bool


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One curve."""

    name: str
    title: str
    points: list[Point]


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """All curves. `document` and `version` say of what form this is."""

    document: str
    version: int
    model: str
    backend: str
    axes: list[Axis]
    environment: Environment

    @property
    def disturbed(self) -> bool:
        """Whether the machine was, at some point."""
        return any(point.disturbed for axis in self.axes for point in axis.points)


@dataclass(frozen=True)
class _Rig:
    """What every axis is measured with."""

    model: Path
    backend: str
    programs: NativePrograms
    cpu: int | None
    client_cpu: int | None
    seconds: float

    @contextmanager
    def daemon(self, model: Path) -> Iterator[tuple[OwnDaemon, LoadPlan]]:
        """A daemon of that model and a plan for it."""
        with OwnDaemon(ServeOptions(str(model), self.backend, "spin", self.cpu)) as daemon:
            hello = Hello(transport=Transport.SHARED_MEMORY, ring_slots=_SLOTS, client_name="sigd bench")
            plan, _ = plan_for(daemon.socket_path, hello)
            yield (
                daemon,
                replace(
                    plan,
                    cpu=self.client_cpu,
                    duration_ns=round(self.seconds * NS_PER_S),
                    warmup_ns=round(_WARMUP_S * NS_PER_S),
                    samples_max=1024,
                ),
            )

    def point(self, value: int, daemon: OwnDaemon, plan: LoadPlan) -> Point:
        """Measure that plan.

        Raises:
            PeerFailed: an answer was lost, or broke the contract.
        """
        watch = StolenWatch(daemon.pid, [cpu for cpu in (self.cpu, self.client_cpu) if cpu is not None])
        measured = NativeLoad(self.programs).run(plan, watch.warmed_up)
        if measured.violation or measured.lost:
            raise PeerFailed(f"{value}: {'; '.join(verdict.judge(measured, None).reasons)}")
        share = watch.found(measured.elapsed_ns, measured.hiccup_sum_ns).largest
        # A turn in which nothing was answered was all taken away.
        return _point(value, measured, disturbed=share > SHARE_MAX or not measured.received)


def measure(
    model: Path, backend: str, axes: Sequence[str], seconds: float, programs: NativePrograms, say: Say
) -> Growth:
    """Measure the axes, each point for so many seconds.

    Raises:
        BadRequest, MissingDependency, PeerFailed: a daemon did not start, or broke the contract.
    """
    cpu, client_cpu = choose_cores(allowed_cpus())
    watched: list[int | None] = [one for one in (cpu, client_cpu) if one is not None] or [None]
    before = hiccup.measure(watched, _HICCUP_SECONDS, programs)
    facts = machine.read(watched, before[0].clock_cost_ns, programs.compiler)
    rig = _Rig(model, backend, programs, cpu, client_cpu, seconds)
    found = []
    for name in axes:
        title, values = AXES[name]
        say(f"{title}: {', '.join(f'{value:,}' for value in values)}")
        found.append(Axis(name=name, title=title, points=_WAYS[name](rig, values)))
    return Growth(
        document=NAME, version=VERSION, model=model.stem, backend=backend, axes=found, environment=facts
    )


def _connections(rig: _Rig, values: Sequence[int]) -> list[Point]:
    with rig.daemon(rig.model) as (daemon, plan):
        return [rig.point(value, daemon, replace(plan, connections=value)) for value in values]


def _in_flight(rig: _Rig, values: Sequence[int]) -> list[Point]:
    with rig.daemon(rig.model) as (daemon, plan):
        return [rig.point(value, daemon, replace(plan, in_flight=value)) for value in values]


def _instruments(rig: _Rig, values: Sequence[int]) -> list[Point]:
    points = []
    with rig.daemon(rig.model) as (daemon, plan):
        for value in values:
            offsets = schedule.bursts(value, _BURSTS_HZ, max(rig.seconds, 1.0))
            intended_ns = schedule.with_warmup(offsets, plan.warmup_ns)
            in_flight = min(value, plan.hello.ring_slots)
            points.append(
                rig.point(value, daemon, replace(plan, intended_ns=intended_ns, in_flight=in_flight))
            )
    return points


def _features(rig: _Rig, values: Sequence[int]) -> list[Point]:
    return [_of_sizes(rig, value, [value, _HIDDEN, _OUTPUTS]) for value in values]


def _parameters(rig: _Rig, values: Sequence[int]) -> list[Point]:
    points = []
    for value in values:
        # Two hidden layers of h units: h * (features + h + outputs) weights, near enough.
        hidden = (isqrt((_FEATURES + _OUTPUTS) ** 2 + 4 * value) - _FEATURES - _OUTPUTS) // 2
        points.append(_of_sizes(rig, value, [_FEATURES, hidden, hidden, _OUTPUTS]))
    return points


def _of_sizes(rig: _Rig, value: int, sizes: Sequence[int]) -> Point:
    with tempfile.TemporaryDirectory(prefix="sigd-growth-") as folder:
        model = Path(folder) / "dense.onnx"
        model.write_bytes(mlp(sizes, Draws(1)).SerializeToString())
        with rig.daemon(model) as (daemon, plan):
            return rig.point(value, daemon, plan)


def _batch(rig: _Rig, values: Sequence[int]) -> list[Point]:
    points = []
    with BareBackend(str(rig.model), rig.backend, max(values), rig.cpu) as bare:
        for value in values:
            calls = bare.measure(value, rig.seconds)
            p50, p99 = histogram.percentiles_ns(calls.counts, (50.0, 99.0))
            points.append(
                Point(
                    value=value,
                    p50_us=p50 / 1000,
                    p99_us=p99 / 1000,
                    per_s=round(calls.rows_per_s, 1),
                    disturbed=False,
                )
            )
    return points


_WAYS: Final = {
    "connections": _connections,
    "in-flight": _in_flight,
    "instruments": _instruments,
    "features": _features,
    "batch": _batch,
    "parameters": _parameters,
}


def _point(value: int, measured: Measurement, *, disturbed: bool) -> Point:
    p50, p99 = histogram.percentiles_ns(measured.counts.corrected, (50.0, 99.0))
    return Point(
        value=value,
        p50_us=p50 / 1000,
        p99_us=p99 / 1000,
        per_s=round(measured.received * NS_PER_S / max(measured.elapsed_ns, 1), 1),
        disturbed=disturbed,
    )
