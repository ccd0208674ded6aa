"""What makes a run invalid, what puts it over the budget, and how its files are then named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigd.bench import histogram
from sigd.bench.load.contract import SAMPLE, LatencyCounts, Measurement, Violation, ViolationKind
from sigd.bench.verdict import judge, named_by_verdict

SECOND = 1_000_000_000


def measurement(latencies_us: list[float] | None = None, **changes: Any) -> Measurement:
    """A clean run of 1,000 requests at 1,000/s, each answered in 20 us."""
    latencies_ns = np.array([20.0] * 1000 if latencies_us is None else latencies_us) * 1000
    good = Measurement(
        client="cpp",
        welcome=b"",
        elapsed_ns=SECOND,
        intended_span_ns=SECOND,
        sent_span_ns=SECOND,
        requests=len(latencies_ns),
        sent=len(latencies_ns),
        received=len(latencies_ns),
        statuses=(len(latencies_ns), *[0] * 8),
        late_sends=0,
        late_worst_ns=0,
        hiccups=0,
        hiccup_worst_ns=0,
        hiccup_sum_ns=0,
        batch_rows_sum=len(latencies_ns),
        generation_first=1,
        generation_last=1,
        counts=LatencyCounts(corrected=histogram.count(latencies_ns.astype(np.int64))),
        samples=np.empty(0, dtype=SAMPLE),
        slowest=np.empty(0, dtype=SAMPLE),
        violation=None,
    )
    return replace(good, **changes)


def test_a_clean_run_within_its_budget_passes() -> None:
    verdict = judge(measurement(), 100_000)
    assert verdict.passed
    assert verdict.valid
    assert verdict.within_budget is True
    assert verdict.reasons == ()
    assert verdict.p99_ns == pytest.approx(20_000, rel=0.001)
    assert verdict.rate_intended_hz == pytest.approx(1000)
    assert verdict.rate_achieved_hz == pytest.approx(1000)


def test_without_a_budget_only_validity_counts() -> None:
    verdict = judge(measurement([500.0] * 100), None)
    assert verdict.passed
    assert verdict.within_budget is None


def test_one_in_a_hundred_may_be_slow_and_two_may_not() -> None:
    assert judge(measurement([20.0] * 990 + [900.0] * 10), 100_000).passed
    verdict = judge(measurement([20.0] * 980 + [900.0] * 20), 100_000)
    assert not verdict.passed
    assert verdict.valid, "a slow run may be quoted: it is slow"
    assert verdict.within_budget is False
    assert "exceeds the budget of 100.0 us" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"received": 999}, "1 of 1,000 requests were never answered"),
        ({"sent": 900, "received": 900}, "100 of 1,000 requests could not be sent"),
        ({"sent_span_ns": SECOND * 102 // 100}, "the rate was missed: 980/s sent of 1,000/s intended"),
        (
            {"violation": Violation(ViolationKind.SEQUENCE, 3, 7, 8, "in order")},
            "protocol violation (sequence) on connection 3: expected 7, found 8",
        ),
        ({"received": 0, "sent": 0, "requests": 0, "statuses": (0,) * 7}, "not one request was answered"),
    ],
)
def test_what_makes_a_run_invalid(changes: dict[str, Any], words: str) -> None:
    verdict = judge(measurement(**changes), 100_000)
    assert not verdict.valid
    assert not verdict.passed
    assert any(words in reason for reason in verdict.reasons), verdict.reasons


def test_a_rate_within_one_percent_is_met() -> None:
    assert judge(measurement(sent_span_ns=SECOND * 1009 // 1000), 100_000).valid


def test_a_closed_loop_has_no_rate_to_miss() -> None:
    verdict = judge(measurement(intended_span_ns=0, sent_span_ns=2 * SECOND), 100_000)
    assert verdict.valid
    assert verdict.rate_intended_hz == 0
    assert verdict.rate_achieved_hz == pytest.approx(500)


def test_answers_without_a_signal_count_as_over_the_budget() -> None:
    few = measurement([20.0] * 990, received=1000, sent=1000, requests=1000, statuses=(990, 0, 10, *[0] * 6))
    assert judge(few, 100_000).passed
    many = measurement([20.0] * 980, received=1000, sent=1000, requests=1000, statuses=(980, 5, 15, *[0] * 6))
    verdict = judge(many, 100_000)
    assert verdict.valid
    assert not verdict.passed
    assert "2.0% of the answers had no signal (5 EXPIRED, 15 BUSY)" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("asked", "failed"),
    [("p99.json", "p99.FAIL.json"), ("out/p99.hgrm", "out/p99.FAIL.hgrm"), ("p99", "p99.FAIL")],
)
def test_a_bad_run_cannot_be_quoted_by_accident(asked: str, failed: str) -> None:
    assert named_by_verdict(Path(asked), 0) == Path(asked)
    assert named_by_verdict(Path(asked), 1) == Path(failed)


def test_a_capture_that_is_not_whole_makes_a_run_invalid() -> None:
    verdict = judge(measurement(), 100_000, capture_faults="2 gap, 1 torn line")
    assert not verdict.valid
    assert verdict.reasons == (
        (
            "the capture is not whole (2 gap, 1 torn line), so requests are missing: --salvage measures with"
            " what"
            " is"
        ),
    )


@pytest.mark.parametrize(("share", "code"), [(0.0, 1), (0.01, 1), (0.011, 4), (0.8, 4)])
def test_a_run_over_budget_on_a_machine_that_was_taken_away_is_inconclusive(share: float, code: int) -> None:
    verdict = judge(measurement([500.0] * 100), 100_000, stolen_share=share)
    assert verdict.exit_code == code
    assert verdict.inconclusive is (code == 4)
    assert any("was taken away by the machine" in reason for reason in verdict.reasons) is (code == 4)


def test_a_missed_rate_is_inconclusive_too_but_no_lost_answer_is() -> None:
    late = measurement(sent_span_ns=2 * SECOND)
    assert judge(late, None, stolen_share=0.5).exit_code == 4
    assert judge(replace(late, received=999), None, stolen_share=0.5).exit_code == 1
    assert judge(late, None, stolen_share=0.5, capture_faults="1 gap").exit_code == 1


def test_a_run_that_passes_passes_whatever_was_taken_away() -> None:
    assert judge(measurement(), 100_000, stolen_share=0.9).exit_code == 0


@pytest.mark.parametrize(("code", "name"), [(0, "r.json"), (1, "r.FAIL.json"), (4, "r.INCONCLUSIVE.json")])
def test_files_are_named_by_the_verdict(code: int, name: str) -> None:
    assert named_by_verdict(Path("out/r.json"), code) == Path("out") / name
