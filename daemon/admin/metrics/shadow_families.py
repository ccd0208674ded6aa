"""What Prometheus is told of shadows, a part of `sigd.daemon.admin.metrics.families`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import nan
from typing import TYPE_CHECKING, Final

from sigd.daemon.admin.metrics.buckets import histogram
from sigd.daemon.admin.metrics.family import Family, Kind, Series, Source
from sigd.daemon.runtime.text import as_utf8
from sigd.daemon.shadow.statistics import DIFFERENCE_BOUNDS, OUTPUTS_SHOWN

if TYPE_CHECKING:
    from sigd.daemon.shadow.status import ShadowStatus


def _statuses(source: Source) -> Iterator[tuple[str, ShadowStatus]]:
    """By the name of the model that is served."""
    for shadow in source.shadows:
        yield as_utf8(shadow.name), shadow.status()


def _of_shadows(value: Callable[[ShadowStatus], float]) -> Callable[[Source], Iterator[Series]]:
    """One value for each shadow."""

    def read(source: Source) -> Iterator[Series]:
        for name, status in _statuses(source):
            yield (name,), (value(status),)

    return read


def _info(source: Source) -> Iterator[Series]:
    for name, status in _statuses(source):
        yield (name, status.sha256, status.backend), (1,)


def _rows(source: Source) -> Iterator[Series]:
    for name, status in _statuses(source):
        statistics = status.statistics
        yield (name, "compared"), (statistics.compared,)
        yield (name, "skipped"), (status.skipped,)
        yield (name, "left_out"), (statistics.left_out,)
        yield (name, "failed"), (statistics.failed,)


def _differences(source: Source) -> Iterator[Series]:
    for name, status in _statuses(source):
        yield (name,), histogram(status.statistics.differences, status.statistics.difference_sum)


def _drifts(source: Source) -> Iterator[Series]:
    for name, status in _statuses(source):
        for number, output in enumerate(status.statistics.outputs):
            yield (name, str(number)), (nan if output.drift is None else output.drift,)


_MODEL: Final = ("model",)

SHADOW_FAMILIES: Final = (
    Family(
        "sigd_shadow_info",
        Kind.GAUGE,
        "1 for each shadow, with what it is; this and the next seven are absent where a model has none.",
        _info,
        ("model", "sha256", "backend"),
    ),
    Family(
        "sigd_shadow_running",
        Kind.GAUGE,
        "1 while the shadow's process runs, 0 while it is being started again.",
        _of_shadows(lambda status: status.running * 1),
        _MODEL,
    ),
    Family(
        "sigd_shadow_restarts",
        Kind.COUNTER,
        "How often the shadow's process was started again.",
        _of_shadows(lambda status: status.restarts),
        _MODEL,
    ),
    Family(
        "sigd_shadow_rows",
        Kind.COUNTER,
        "Rows answered OK by what became of them: compared; skipped, for want of time; left_out of the"
        " sample; failed,"
        " where the shadow gave no numbers.",
        _rows,
        ("model", "outcome"),
    ),
    Family(
        "sigd_shadow_agreements",
        Kind.COUNTER,
        "Compared rows on which both decide alike: the same output is the largest; of a single output, its"
        " sign.",
        _of_shadows(lambda status: status.statistics.agreed),
        _MODEL,
    ),
    Family(
        "sigd_shadow_difference",
        Kind.HISTOGRAM,
        "Of each compared row the largest absolute difference between two outputs.",
        _differences,
        _MODEL,
        DIFFERENCE_BOUNDS,
    ),
    Family(
        "sigd_shadow_difference_max",
        Kind.GAUGE,
        "The largest of them since the start.",
        _of_shadows(lambda status: status.statistics.difference_max),
        _MODEL,
    ),
    Family(
        "sigd_shadow_drift",
        Kind.GAUGE,
        "Mean of the shadow's output less that of the served one, in standard deviations of the served one,"
        " over the last"
        f" 10,000 rows or so of one generation; NaN where that does not vary. The first {OUTPUTS_SHOWN}"
        " outputs.",
        _drifts,
        ("model", "output"),
    ),
)
"""In the order in which they are told."""
