"""Whether a run may be quoted, and whether it kept the budget. Pure: a measurement in, reasons out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sigd.bench import histogram
from sigd.bench.load.contract import STATUS_NAMES, Measurement
from sigd.bench.load.schedule import NS_PER_S
from sigd.bench.stolen import SHARE_MAX
from sigd.wire.status import Status

RATE_TOLERANCE = 0.01
INCONCLUSIVE_EXIT_CODE = 4


@dataclass(frozen=True)
class Verdict:
    """The end of a run.

    Attributes:
        valid: nothing was lost, the contract was kept and the rate was met: the figures may be quoted.
        within_budget: p99 was within the budget; None where none was set.
        inconclusive: it did not pass, and the machine took so much time away that this says nothing of the
            daemon.
        p99_ns: of the corrected latency.
        rate_intended_hz: 0 in a closed loop.
        rate_achieved_hz: requests sent in a second.
        reasons: why it is not valid, or why over budget; empty for a run that passed.
    """

    valid: bool
    within_budget: bool | None
    inconclusive: bool
    p99_ns: int
    rate_intended_hz: float
    rate_achieved_hz: float
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Valid, and within the budget if there was one."""
        return self.valid and self.within_budget is not False

    @property
    def exit_code(self) -> int:
        """What `sigd bench` ends with."""
        if self.passed:
            return 0
        return INCONCLUSIVE_EXIT_CODE if self.inconclusive else 1


def judge(
    measurement: Measurement,
    budget_ns: int | None,
    *,
    capture_faults: str = "",
    stolen_share: float = 0.0,
) -> Verdict:
    """Hold a measurement to the rules of measuring and to its budget.

    Args:
        measurement: what was measured.
        budget_ns: for p99; None sets none.
        capture_faults: what is wrong with the capture that the requests come from; "" where all is well.
        stolen_share: of the run's time, what the machine took away.

    A request that was answered without a signal (BUSY, EXPIRED, ...) has no latency, and counts as over the
    budget.
    """
    intended_hz, achieved_hz = _rates(measurement)
    invalid = _invalid(measurement, intended_hz, achieved_hz)
    if capture_faults:
        invalid.append(
            f"the capture is not whole ({capture_faults}), so requests are missing: --salvage measures with"
            " what is"
        )
    p99_ns = histogram.percentiles_ns(measurement.counts.corrected, [99.0])[0]
    within_budget = None
    over = []
    if budget_ns is not None:
        over = _over_budget(measurement, p99_ns, budget_ns)
        within_budget = not over and measurement.statuses[Status.OK] > 0
    # Too slow or too late is what a machine does that is busy elsewhere; a lost answer or a broken contract
    # is not.
    late = (
        measurement.violation is None
        and not measurement.lost
        and measurement.received > 0
        and not capture_faults
    )
    inconclusive = bool(invalid or over) and late and stolen_share > SHARE_MAX
    if inconclusive:
        over.append(
            f"{stolen_share:.1%} of the time was taken away by the machine (hypervisor or other processes),"
            " expected at"
            f" most {SHARE_MAX:.0%}: this says nothing of the daemon; measure on a machine that is idle, on"
            " cores of its own"
        )
    return Verdict(
        valid=not invalid,
        inconclusive=inconclusive,
        within_budget=within_budget,
        p99_ns=p99_ns,
        rate_intended_hz=intended_hz,
        rate_achieved_hz=achieved_hz,
        reasons=(*invalid, *over),
    )


def named_by_verdict(path: Path, exit_code: int) -> Path:
    """Where a result is written: as asked if the run passed, else with .FAIL or .INCONCLUSIVE before the
    ending, so that a bad run cannot be quoted by accident."""
    if not exit_code:
        return path
    word = "INCONCLUSIVE" if exit_code == INCONCLUSIVE_EXIT_CODE else "FAIL"
    return path.with_name(f"{path.stem}.{word}{path.suffix}")


def _rates(measurement: Measurement) -> tuple[float, float]:
    intended_ns = measurement.intended_span_ns
    if intended_ns == 0:
        span_ns = measurement.sent_span_ns
        return 0.0, measurement.sent * NS_PER_S / span_ns if span_ns else 0.0
    span_ns = max(intended_ns, measurement.sent_span_ns)
    return measurement.requests * NS_PER_S / intended_ns, measurement.sent * NS_PER_S / span_ns


def _invalid(measurement: Measurement, intended_hz: float, achieved_hz: float) -> list[str]:
    reasons = []
    if measurement.violation is not None:
        reasons.append(str(measurement.violation))
    if measurement.lost:
        reasons.append(f"{measurement.lost:,} of {measurement.sent:,} requests were never answered")
    unsent = measurement.requests - measurement.sent
    if unsent:
        reasons.append(
            f"{unsent:,} of {measurement.requests:,} requests could not be sent before the run ended"
        )
    if measurement.received == 0:
        reasons.append("not one request was answered")
    if intended_hz and achieved_hz < (1 - RATE_TOLERANCE) * intended_hz:
        reasons.append(
            f"the rate was missed: {achieved_hz:,.0f}/s sent of {intended_hz:,.0f}/s intended "
            f"(at most {RATE_TOLERANCE:.0%} less is allowed)"
        )
    return reasons


def _over_budget(measurement: Measurement, p99_ns: int, budget_ns: int) -> list[str]:
    reasons = []
    if p99_ns > budget_ns:
        reasons.append(f"p99 {p99_ns / 1000:,.1f} us exceeds the budget of {budget_ns / 1000:,.1f} us")
    without = measurement.received - measurement.statuses[Status.OK]
    if measurement.received and without > 0.01 * measurement.received:
        named = ", ".join(
            f"{count:,} {name}"
            for name, count in zip(STATUS_NAMES, measurement.statuses, strict=True)
            if count and name != Status.OK.name
        )
        reasons.append(
            f"{without / measurement.received:.1%} of the answers had no signal ({named}): "
            "the 99th percentile is over any budget"
        )
    return reasons
