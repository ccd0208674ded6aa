"""Each of the 50 claims of the workstation's plan is confirmed or contradicted by what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from sigd.bench.plan import claims, machine, plan, quantities, verification, vllm
from sigd.bench.plan.claims import Check, Claim
from sigd.bench.plan.quantities import Quantity
from sigd.bench.plan.verdict import Verdict

TOLERANCE = 0.05
"""A plan's figure is rounded: it agrees where it is within so much of the bounds."""
WORKSTATION = Path(__file__).resolve().parents[3] / "docs" / "workstation"


@cache
def planned() -> machine.Machine:
    return machine.read(WORKSTATION / "machine.toml")


@cache
def verdicts() -> dict[str, Verdict]:
    found: dict[str, Verdict] = {}
    for one in plan.make(planned()).verdicts:
        known = found.get(one.subject)
        if known is None or known.level == "fits":
            found[one.subject] = one
    return found


def agrees(check: Check, found: Mapping[str, Quantity]) -> bool:
    """Whether the plan's figure lies within what is computed."""
    low, high = min(check.planned), max(check.planned)
    bounds = found[check.quantity].found
    return low <= bounds.high * (1 + TOLERANCE) and high >= bounds.low * (1 - TOLERANCE)


def test_there_are_fifty() -> None:
    assert [claim.number for claim in claims.claims()] == list(range(1, 51))


@pytest.mark.parametrize("claim", claims.claims(), ids=lambda claim: f"{claim.number}: {claim.says[:40]}")
def test_claim_is_confirmed_or_contradicted(claim: Claim) -> None:
    found = quantities.quantities(planned())
    for check in claim.checks:
        assert agrees(check, found) is check.agrees, f"{check} against {found[check.quantity]}"
    if claim.verdict == "right":
        assert claim.checks
        assert all(check.agrees for check in claim.checks)
    if claim.verdict == "wrong" and claim.checks:
        assert not all(check.agrees for check in claim.checks)
    # A claim without a figure has to be seen somewhere in what the planner writes.
    assert claim.checks or claim.shown_by or claim.in_unit or claim.in_list
    assert "{" not in claims.right(claim, found) + claims.why(claim, found)


@pytest.mark.parametrize(
    "claim", [claim for claim in claims.claims() if claim.shown_by], ids=lambda claim: str(claim.number)
)
def test_verdict_that_shows_a_claim_is_there(claim: Claim) -> None:
    verdict = verdicts()[claim.shown_by]
    if claim.verdict == "wrong" and claim.number not in (12, 22, 25, 47):
        assert verdict.level != "fits", verdict
    if claim.number == 29:
        assert verdict.level == "does not fit"


@pytest.mark.parametrize(
    "claim",
    [claim for claim in claims.claims() if claim.in_unit or claim.in_list],
    ids=lambda claim: str(claim.number),
)
def test_command_that_shows_a_claim_is_written(claim: Claim) -> None:
    recommended = machine.read(WORKSTATION / "recommended.toml")
    unit = vllm.service(recommended).unit
    listed = "\n".join(one.command for one in verification.verifications(recommended))
    assert claim.in_unit in unit
    assert claim.in_list in listed
    for wrong in ("gpu-memory-utilization", "memory.total", "device_count", "dcgm"):
        assert wrong not in unit + listed


def test_a_wrong_figure_would_be_contradicted() -> None:
    found = quantities.quantities(planned())
    nvlink = Check("nvlink", (600,), agrees=False)
    assert not agrees(nvlink, found)
    assert agrees(Check("nvlink", (112.5,), agrees=True), found)
    assert agrees(Check("decode_70b_awq", (25, 35), agrees=True), found)
    assert not agrees(Check("decode_70b_awq", (50, 70), agrees=True), found)
