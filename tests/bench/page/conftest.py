"""Documents to draw, made without measuring."""

from __future__ import annotations

import numpy as np
import pytest

from sigd.bench import histogram
from sigd.bench.alternatives.document import Cell, Comparison, Entry, LoadFacts, ModelResult, with_ratios
from sigd.bench.environment import Environment
from sigd.bench.growth import AXES, Axis, Growth, Point

ENVIRONMENT = Environment(
    cpu_model="Any <CPU> & more",
    cpus=2,
    allowed_cpus=2,
    governors={"0": "performance"},
    isolated_cpus="",
    virtual=True,
    kernel="6.1",
    clock_source="tsc",
    clock_cost_ns=20.0,
    load_average=0.1,
    python="3.11",
    packages={"sigd": "0.1.0"},
    compiler="g++ 12",
)


def _cell(load: str, scale_us: float, *, valid: bool = True) -> Cell:
    values_ns = np.random.default_rng(1).exponential(scale_us * 1000, 5000).astype(np.int64) + 1000
    counts = histogram.count(values_ns)
    p50, p90, p99, p99_9, longest = (
        ns / 1000 for ns in histogram.percentiles_ns(counts, (50.0, 90.0, 99.0, 99.9, 100.0))
    )
    return Cell(
        load=load,
        valid=valid,
        reasons=[] if valid else ["the rate was missed"],
        disturbed=False,
        taken_share=0.0,
        requests=5000,
        p50_us=p50,
        p90_us=p90,
        p99_us=p99,
        p99_9_us=p99_9,
        max_us=longest,
        hdr=histogram.hdr(counts).encode().decode(),
    )


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """Two contenders that ran, of which one could not keep up at a rate, and one that did not run."""
    loads = [
        LoadFacts(name="closed", title="one after the other"),
        LoadFacts(name="rate-500", title="500 a second"),
    ]
    entries = [
        Entry(
            name=name,
            title=name,
            kind=kind,
            configuration="as advised",
            versions={},
            why_not=why_not,
            cells=[] if why_not else [_cell("closed", scale), _cell("rate-500", scale, valid=scale < 100)],
        )
        for name, kind, scale, why_not in (
            ("sigd-shm-native", "sigd", 4.0, ""),
            ("grpc", "server", 250.0, ""),
            ("ray", "server", 0.0, "Traceback\nnot installed: run sigd bench compare --prepare"),
        )
    ]
    model = ModelResult(name="m", sha256="ab", features=4, outputs=3, rows=8, contenders=with_ratios(entries))
    return Comparison(
        document="sigd.bench.compare",
        version=1,
        passed=True,
        inconclusive=False,
        bars=[],
        loads=loads,
        models=[model],
        rounds=1,
        seconds=1.0,
        seed=1,
        environment=ENVIRONMENT,
    )


@pytest.fixture(scope="session")
def growth() -> Growth:
    """All axes, each with made-up figures."""
    axes = [
        Axis(
            name=name,
            title=title,
            points=[
                Point(
                    value=value,
                    p50_us=5.0 + value**0.5,
                    p99_us=9.0 + value,
                    per_s=1e6 / value,
                    disturbed=False,
                )
                for value in values
            ],
        )
        for name, (title, values) in AXES.items()
    ]
    return Growth(
        document="sigd.bench.growth", version=1, model="m", backend="auto", axes=axes, environment=ENVIRONMENT
    )
