"""The result for a terminal."""

from __future__ import annotations

from sigd.bench.neighbour.blocks import Result
from sigd.bench.neighbour.judge import RATIO_MIN


def text(result: Result, budget_ns: int | None) -> str:
    """The effects, and the verdict with what to do."""
    lines = [
        f"beside: {result.neighbour}",
        f"{'us':8}{'without':>10}{'beside':>10}{'ratio':>8}{'chance':>9}",
    ]
    for effect in result.effects:
        mark = "  slower" if effect.slower else ""
        lines.append(
            f"{effect.percentile:8}{effect.without_us:10,.1f}{effect.beside_us:10,.1f}{effect.ratio:8.2f}"
            f"{effect.chance:9.4f}{mark}"
        )
    lines.append(
        f"medians over {len(result.pairs)} pairs of blocks of {result.block_s:g} s, client:"
        f" {result.client}; chance: of"
        " such pairs where the neighbour does nothing"
    )
    lines += [f"FAILED: {reason}" for reason in reasons(result, budget_ns)]
    if result.passed:
        lines.append(f"passed: no percentile is slower by {RATIO_MIN - 1:.0%} or more beyond chance")
    return "\n".join(lines) + "\n"


def reasons(result: Result, budget_ns: int | None) -> list[str]:
    """Why it did not pass, with what to do; empty where it did."""
    found = list(result.reasons)
    if result.slower:
        found.append(
            "the neighbour makes answers slower: give it other cores, another card, or its own hours"
        )
    if result.within_budget is False:
        assert budget_ns is not None
        found.append(f"p99 beside the neighbour is over the budget of {budget_ns / 1000:g} us")
    return found
