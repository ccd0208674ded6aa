"""Judge whether a running daemon is healthy: two looks at its counters, and bounds on the difference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from sigd.daemon.admin.client import percentile_ns
from sigd.daemon.admin.messages import Bins, LatencyStatus, ModelStatus, Status
from sigd.daemon.errors import UsageError
from sigd.daemon.shadow.status import ShadowStatus
from sigd.wire.status import Status as AnswerStatus

ERRORS: Final = (AnswerStatus.MODEL_ERROR.name,)
"""The answers that are the daemon's or the model's fault. The others are the client's doing (BAD_INPUT,
EXPIRED, CONFLATED), a bound that was set (BUSY), or the end of a session (DRAINING)."""


@dataclass(frozen=True, slots=True)
class ShadowBounds:
    """What a model in the shadow has to reach.

    Attributes:
        sha256: of the file in the shadow, in hex.
        rows_min: how many rows have to be compared before there is a verdict.
        agreement_min: share of the compared rows on which both models decide alike, 0 to 1.
        drift_max: difference of an output's means, in standard deviations of the served output.
    """

    sha256: str
    rows_min: int
    agreement_min: float
    drift_max: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is healthy.

    Attributes:
        model: whose counters; "" is the default model.
        serves: SHA-256 of the file that has to be served, in hex; "" is any.
        errors_max: answers that are in ERRORS.
        answers_min: answers of any status.
        p99_us: 99th percentile from the arrival of a request to its answer; None is any.
        shadow: what is asked of the shadow; None is nothing.
    """

    model: str = ""
    serves: str = ""
    errors_max: int = 0
    answers_min: int = 0
    p99_us: float | None = None
    shadow: ShadowBounds | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two looks.

    Attributes:
        green: all is within its bounds.
        red: what is not, each with what was found and what was expected.
        seconds: between the looks.
        answers: of any status.
        errors: of these, those in ERRORS.
        p99_us: None without an answer.
        sha256, generation: of the model that is served.
        compared, agreement: rows that the shadow compared, and the share that it agreed on; None without any.
    """

    green: bool
    red: list[str]
    model: str
    seconds: float
    answers: int
    errors: int
    p99_us: float | None
    sha256: str
    generation: int
    compared: int | None = None
    agreement: float | None = None


def judge(before: Status, after: Status, bounds: Bounds) -> Verdict:
    """The verdict on what happened between two looks at the same daemon.

    Raises:
        UsageError: no model has that name.
    """
    then, now = (_model(status, bounds.model) for status in (before, after))
    red = list(_find_early(before, after, bounds))
    answers = sum(now.answers.values()) - sum(then.answers.values())
    if answers < bounds.answers_min:
        red.append(
            f"{answers:,} answers, expected at least {bounds.answers_min:,}: send it requests, or watch for"
            " longer"
        )
    p99_us = _p99_us(then.total, now.total)
    if bounds.p99_us is not None and p99_us is not None and p99_us > bounds.p99_us:
        red.append(f"p99 {p99_us:,.1f} us, expected at most {bounds.p99_us:,.1f} us")
    compared, agreement = None, None
    if bounds.shadow is not None and now.shadow is not None:
        compared, agreed = _compared(then.shadow, now.shadow)
        agreement = agreed / compared if compared else None
        red += _judge_shadow(now.shadow, compared, agreement, bounds.shadow)
    return Verdict(
        green=not red,
        red=red,
        model=now.name,
        seconds=(after.uptime_ns - before.uptime_ns) / 1e9,
        answers=answers,
        errors=_errors(now) - _errors(then),
        p99_us=p99_us,
        sha256=now.sha256,
        generation=now.generation,
        compared=compared,
        agreement=agreement,
    )


def find_early(before: Status, after: Status, bounds: Bounds) -> list[str]:
    """What is red and stays red, however long the gate watches.

    Raises:
        UsageError: no model has that name.
    """
    return list(_find_early(before, after, bounds))


def _find_early(before: Status, after: Status, bounds: Bounds) -> Iterable[str]:
    then, now = (_model(status, bounds.model) for status in (before, after))
    if after.pid != before.pid:
        yield f"the daemon was started again: process {before.pid} is now {after.pid}; see its log"
    if bounds.serves and now.sha256 != bounds.serves:
        yield f"{now.name} serves {now.path}, sha256 {now.sha256}; expected {bounds.serves}"
    errors = _errors(now) - _errors(then)
    if errors > bounds.errors_max:
        yield f"{errors:,} answers are {' or '.join(ERRORS)}, expected at most {bounds.errors_max:,}"
    if bounds.shadow is None:
        return
    if now.shadow is None:
        yield f"{now.name} has no shadow, expected {bounds.shadow.sha256}"
    elif now.shadow.sha256 != bounds.shadow.sha256:
        yield f"the shadow is {now.shadow.path}, sha256 {now.shadow.sha256}; expected {bounds.shadow.sha256}"
    elif now.shadow.restarts:
        yield f"the shadow's process has ended {now.shadow.restarts} times; see the log"
    elif now.shadow.statistics.failed:
        yield f"the shadow failed on {now.shadow.statistics.failed:,} rows, expected none"


def _judge_shadow(
    shadow: ShadowStatus, compared: int, agreement: float | None, bounds: ShadowBounds
) -> Iterable[str]:
    if compared < bounds.rows_min or agreement is None:
        yield (
            f"the shadow compared {compared:,} rows, expected at least {max(bounds.rows_min, 1):,}: watch for"
            " longer, or give it cores (sigd_shadow_rows_total tells what was skipped)"
        )
        return
    if agreement < bounds.agreement_min:
        yield (
            f"the shadow agrees on {agreement:.3%} of {compared:,} rows, expected at least"
            f" {bounds.agreement_min:.3%}"
        )
    drifts = [abs(output.drift) for output in shadow.statistics.outputs if output.drift is not None]
    if drifts and max(drifts) > bounds.drift_max:
        yield f"an output drifts by {max(drifts):.3g} deviations, expected at most {bounds.drift_max:g}"


def _compared(then: ShadowStatus | None, now: ShadowStatus) -> tuple[int, int]:
    """Rows compared between two looks, and those agreed on."""
    if then is None:
        return now.statistics.compared, now.statistics.agreed
    return now.statistics.compared - then.statistics.compared, now.statistics.agreed - then.statistics.agreed


def _model(status: Status, name: str) -> ModelStatus:
    for model in status.models:
        if name in ("", model.name):
            return model
    names = ", ".join(model.name for model in status.models)
    raise UsageError(f"no model is called {name!r}: it serves {names}")


def _errors(model: ModelStatus) -> int:
    return sum(model.answers.get(name, 0) for name in ERRORS)


def _p99_us(then: LatencyStatus, now: LatencyStatus) -> float | None:
    """Of what was counted between two looks."""
    counted = dict(then.bins)
    bins: Bins = [(edge_ns, count - counted.get(edge_ns, 0)) for edge_ns, count in now.bins]
    bins = [(edge_ns, count) for edge_ns, count in bins if count > 0]
    return min(percentile_ns(bins, 99.0), now.max_ns) / 1000 if bins else None
