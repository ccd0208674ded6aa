"""The comparison: rounds in which each contender runs once, under every load, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.bench import environment as machine
from sigd.bench import hiccup, histogram, verdict
from sigd.bench.alternatives.capture import Arrivals, fastest
from sigd.bench.alternatives.contenders import Contender, Kind, Running, Setting, plan_of
from sigd.bench.alternatives.document import (
    NAME,
    VERSION,
    Cell,
    Comparison,
    Entry,
    LoadFacts,
    ModelResult,
    judge,
    with_ratios,
)
from sigd.bench.alternatives.environment import environment
from sigd.bench.alternatives.loads import Load, capture_load
from sigd.bench.alternatives.trees import lightgbm_text
from sigd.bench.errors import BadRequest, BenchError, PeerFailed
from sigd.bench.load import requests
from sigd.bench.load.contract import LoadPlan, Measurement
from sigd.bench.native.build import NativePrograms
from sigd.bench.pinning import allowed_cpus, choose_cores
from sigd.bench.stolen import SHARE_MAX, StolenWatch
from sigd.models.accuracy import run_rows
from sigd.models.registry import open_backend, read_any_spec
from sigd.models.rows import seeded_rows
from sigd.models.spec import read_served, read_spec
from sigd.wire.errors import ConnectFailed

ROWS: Final = 1024
"""Different rows, sent in turn: a model that is asked one row again and again has it in the caches."""
_ORACLE_ROWS: Final = 64
TOLERANCE: Final = 1e-3
CAPTURE_TIMES: Final = 4
"""A capture at its own speed is measured so many times as long: there are few requests in a second."""
_HICCUP_SECONDS: Final = 0.5
_PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 100.0)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What to compare.

    Attributes:
        models: files that sigd serves, each with its LightGBM file where there is one.
        seconds: of each turn, without the warm-up.
        arrivals: of a capture, for two loads more; None without.
    """

    models: Sequence[tuple[Path, Path | None]]
    contenders: Sequence[Contender]
    loads: Sequence[Load]
    rounds: int
    seconds: float
    seed: int
    arrivals: Arrivals | None = None


@dataclass
class _Turns:
    """All turns of a contender under one load."""

    measurement: Measurement | None = None
    taken_ns: float = 0.0

    @property
    def given_up(self) -> bool:
        """Whether it fell so far behind that the rest was not sent: there will be no figure."""
        return self.measurement is not None and self.measurement.sent < self.measurement.requests

    def add(self, measurement: Measurement, taken_share: float) -> None:
        self.taken_ns += taken_share * measurement.elapsed_ns
        self.measurement = measurement if self.measurement is None else self.measurement.plus(measurement)


@dataclass
class _Found:
    """What is known of a contender."""

    turns: dict[str, _Turns] = field(default_factory=dict)
    why_not: str = ""


def compare(asked: Asked, programs: NativePrograms, say: Say) -> Comparison:
    """Measure. `say` is told what is being done, a line at a time.

    Raises:
        BadRequest: a model cannot be served.
        PeerFailed: the load generator itself did not run.
    """
    cpu, client_cpu = choose_cores(allowed_cpus())
    watched = sorted({one for one in (cpu, client_cpu) if one is not None})
    before = hiccup.measure(watched or [None], _HICCUP_SECONDS, programs)
    facts = machine.read(watched or [None], before[0].clock_cost_ns, programs.compiler)
    models = []
    for model, trees in asked.models:
        with tempfile.TemporaryDirectory(prefix="sigd-compare-") as folder:
            setting = _setting(model, trees, Path(folder), programs, (cpu, client_cpu))
            models.append(_compare_on(asked, setting, say))
    titles = {load.name: load.title for load in asked.loads}
    if asked.arrivals is not None:
        of_capture = (capture_load(asked.arrivals, speed, asked.seconds) for speed in (1.0, 2.0))
        titles |= {load.name: load.title for load in of_capture}
    loads = [LoadFacts(name=name, title=title) for name, title in titles.items()]
    bars = judge(models, loads)
    missed = any(bar.kept is False for bar in bars)
    unsure = any(bar.kept is None for bar in bars)
    return Comparison(
        document=NAME,
        version=VERSION,
        passed=not missed and not unsure,
        inconclusive=unsure and not missed,
        bars=bars,
        loads=loads,
        models=models,
        rounds=asked.rounds,
        seconds=asked.seconds,
        seed=asked.seed,
        environment=facts,
    )


def _setting(
    model: Path,
    trees: Path | None,
    folder: Path,
    programs: NativePrograms,
    cpus: tuple[int | None, int | None],
) -> Setting:
    served = read_served(read_any_spec(model))
    graph = folder / "model.onnx"
    graph.write_bytes(served.model.SerializeToString())
    if trees is None and (text := lightgbm_text(served.model)) is not None:
        trees = folder / "trees.txt"
        trees.write_text(text)
    return Setting(
        model=model,
        graph=graph,
        spec=read_spec(graph, model.stem),
        trees=trees,
        programs=programs,
        cpu=cpus[0],
        client_cpu=cpus[1],
        server_cpus=[cpu for cpu in allowed_cpus() if cpu != cpus[1]],
    )


def _compare_on(asked: Asked, setting: Setting, say: Say) -> ModelResult:
    rows = seeded_rows(setting.spec, ROWS, asked.seed)
    expected = expected_of(setting, rows)
    frames = requests.encode(rows, (np.arange(ROWS) % 16).astype(np.uint32))
    found = {contender.name: _Found() for contender in asked.contenders}
    all_loads, speed = list(asked.loads), 0.0
    if asked.arrivals is not None:
        speed = _survived(asked, asked.arrivals, setting, (frames, expected), found, say)
        all_loads += [capture_load(asked.arrivals, 1.0, CAPTURE_TIMES * asked.seconds)]
        all_loads += [capture_load(asked.arrivals, speed, asked.seconds)] if speed > 1 else []
    for round_number in range(asked.rounds):
        # The order turns round, so that drift falls on all alike.
        order = asked.contenders if round_number % 2 == 0 else asked.contenders[::-1]
        for contender in order:
            if found[contender.name].why_not:
                continue
            say(f"{setting.spec.name}, round {round_number + 1} of {asked.rounds}: {contender.title}")
            so_far = found[contender.name].turns
            loads = [load for load in all_loads if load.name not in so_far or not so_far[load.name].given_up]
            try:
                for running, load in _started(contender, setting, loads):
                    turns = so_far.setdefault(load.name, _Turns())
                    plan = load.plan(
                        plan_of(running, setting, load.together),
                        frames,
                        expected if running.compared else None,
                        asked.seconds,
                        asked.seed + round_number,
                    )
                    turns.add(*_measure(plan, running, contender, setting))
            except (BenchError, ConnectFailed) as error:
                found[contender.name].why_not = str(error)
                say(f"  left out: {error}")
    entries = [_entry(contender, found[contender.name]) for contender in asked.contenders]
    return ModelResult(
        name=setting.spec.name,
        sha256=read_any_spec(setting.model).sha256.hex(),
        features=setting.spec.features,
        outputs=setting.spec.outputs,
        rows=ROWS,
        contenders=with_ratios(entries),
        capture_speed=speed,
    )


def _survived(
    asked: Asked,
    arrivals: Arrivals,
    setting: Setting,
    sent: tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]],
    found: dict[str, _Found],
    say: Say,
) -> float:
    """The highest speed of a capture's arrivals that every contender keeps up with, the slowest first."""
    speeds = arrivals.speeds(asked.seconds)
    for contender in reversed(asked.contenders):
        if contender.kind is Kind.FLOOR:
            continue
        try:
            with contender.start(setting) as running:

                def survives(speed: float, running: Running = running) -> bool:
                    load = capture_load(arrivals, speed, asked.seconds)
                    base, expected = plan_of(running, setting, load.together), sent[1]
                    plan = load.plan(base, sent[0], expected, asked.seconds, asked.seed)
                    # A stall of the machine is not to decide: what fails once may try again.
                    return any(_keeps_up(running, plan) for _ in range(2))

                speed = fastest(survives, speeds)
        except (BenchError, ConnectFailed) as error:
            found[contender.name].why_not = str(error)
            say(f"  left out: {error}")
            continue
        say(f"{setting.spec.name}: {contender.title} survives {arrivals.name} at {speed:g} times its speed")
        speeds = speeds[: speeds.index(speed) + 1]
    return speeds[-1]


def _keeps_up(running: Running, plan: LoadPlan) -> bool:
    return verdict.judge(running.generator.run(plan, lambda: None), None).valid


def _started(contender: Contender, setting: Setting, loads: Sequence[Load]) -> Iterator[tuple[Running, Load]]:
    """The contender, started once; a floor for each load, for it ends with its client."""
    loads = [load for load in loads if load.closed or not contender.closed_only]
    if contender.kind is not Kind.FLOOR:
        with contender.start(setting) as running:
            for load in loads:
                yield running, load
        return
    for load in loads:
        with contender.start(setting) as running:
            yield running, load


def expected_of(setting: Setting, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What each row is to be answered with: ONNX Runtime's answers, which the oracle confirms for the first
    of them (it would take minutes for all).

    Raises:
        BadRequest: the two do not agree, or the model needs what this machine lacks.
    """
    answers = {}
    for name, some in (("onnxruntime", rows), ("oracle", rows[:_ORACLE_ROWS])):
        backend = open_backend(setting.graph, name)
        try:
            answers[name] = run_rows(backend, some)
        finally:
            backend.close()
    apart = np.abs(answers["onnxruntime"][:_ORACLE_ROWS] - answers["oracle"])
    if not (apart <= TOLERANCE * np.maximum(1.0, np.abs(answers["oracle"]))).all():
        raise BadRequest(
            f"{setting.model}: ONNX Runtime is up to {apart.max():.3g} from the oracle, expected at most"
            f" {TOLERANCE}: no answer of this model can be checked"
        )
    return answers["onnxruntime"]


def _measure(
    plan: LoadPlan, running: Running, contender: Contender, setting: Setting
) -> tuple[Measurement, float]:
    cpus = [cpu for cpu in (setting.cpu, setting.client_cpu) if cpu is not None]
    watch = StolenWatch(running.pid, cpus)
    measurement = running.generator.run(plan, watch.warmed_up)
    # A call inside the client is no gap that the machine made.
    gaps_ns = 0 if contender.kind is Kind.IN_PROCESS else measurement.hiccup_sum_ns
    return measurement, watch.found(measurement.elapsed_ns, gaps_ns).largest


def _entry(contender: Contender, found: _Found) -> Entry:
    return Entry(
        name=contender.name,
        title=contender.title,
        kind=contender.kind.value,
        configuration=contender.configuration,
        versions=_versions(contender),
        why_not=found.why_not,
        cells=[] if found.why_not else [_cell(load, turns) for load, turns in found.turns.items()],
    )


def _versions(contender: Contender) -> dict[str, str]:
    if contender.environment:
        return environment(contender.environment).versions(*contender.packages)
    return {package: metadata.version(package) for package in contender.packages}


def _cell(load: str, turns: _Turns) -> Cell:
    measurement = turns.measurement
    if measurement is None:
        raise PeerFailed(f"{load}: nothing was measured")
    judged = verdict.judge(measurement, None)
    counts = measurement.counts.corrected
    p50, p90, p99, p99_9, longest = (ns / 1000 for ns in histogram.percentiles_ns(counts, _PERCENTILES))
    share = turns.taken_ns / max(measurement.elapsed_ns, 1)
    return Cell(
        load=load,
        valid=judged.valid,
        reasons=list(judged.reasons),
        disturbed=share > SHARE_MAX,
        taken_share=round(share, 5),
        requests=measurement.requests,
        p50_us=p50,
        p90_us=p90,
        p99_us=p99,
        p99_9_us=p99_9,
        max_us=longest,
        hdr=histogram.hdr(counts).encode().decode(),
    )
