"""The document of a workstation: a template whose tables are computed, the corrections, and the plots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sigd.bench.plan import (
    claims,
    comparison,
    machine,
    markdown,
    pictures,
    placement,
    quantities,
    sections,
    vllm,
)
from sigd.bench.plan.catalogue import FOLDER
from sigd.bench.plan.comparison import Column
from sigd.bench.plan.machine import Machine
from sigd.bench.plan.plan import Plan, make

TEMPLATE = FOLDER / "workstation.md"
RECOMMENDED = "recommended.toml"
OTHERS = "compare"
WRITTEN = "<!-- `sigd plan --markdown docs/workstation docs/workstation/machine.toml` writes this page. -->\n"
_PLACE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Workstation:
    """What the document is about: the machine as planned, as recommended, and others to compare with."""

    planned: Machine
    recommended: Machine
    others: tuple[Machine, ...]

    @cached_property
    def plan(self) -> Plan:
        return make(self.planned)

    @cached_property
    def recommended_plan(self) -> Plan:
        return make(self.recommended)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Two cards as planned, then the others."""
        work = comparison.comparable(self.planned)
        return tuple(comparison.column(work, one) for one in (self.planned, *self.others))


def read(folder: Path, planned: Machine) -> Workstation:
    """The workstation whose files lie in a folder.

    Raises:
        BadMachine, UnknownPart: a file is missing or wrong.
    """
    others = sorted((folder / OTHERS).glob("*.toml"))
    return Workstation(
        planned, machine.read(folder / RECOMMENDED), tuple(machine.read(other) for other in others)
    )


def document(folder: Path, planned: Machine) -> dict[str, str]:
    """Every file of the document by its name: three pages and three plots."""
    station = read(folder, planned)
    return {
        "README.md": page(station),
        "corrections.md": corrections(planned),
        "figures.md": figures(),
        "memory.svg": pictures.memory(planned),
        "power.svg": pictures.power(),
        "exchange.svg": pictures.exchange(),
    }


def page(station: Workstation) -> str:
    """README.md: the template with its tables."""
    planned, recommended = station.planned, station.recommended
    service = vllm.service(recommended)
    cap = recommended.limit_w(0)
    filled = {
        "change": sections.change(station.plan),
        "placement": sections.placement(planned, recommended),
        "places": sections.places(placement.capped(planned)),
        "context": f"{placement.CONTEXT_TOKENS:,}",
        "cap": f"{cap:.0f}",
        "cap_unit": markdown.code(sections.cap_unit(recommended)),
        "hardware": sections.hardware(planned, recommended),
        "architecture": markdown.code(sections.architecture(recommended)),
        "power": sections.verdicts(station.plan, station.recommended_plan, "power"),
        "thermal": sections.verdicts(station.plan, station.recommended_plan, "thermal"),
        "compute": sections.compute(planned),
        "models": sections.models(station.plan),
        "training": sections.training(station.plan),
        "exchange": sections.exchange(),
        "tensor": sections.tensor(),
        "answer": str(quantities.quantities(planned)["answer_h200"]),
        "vllm": f"{markdown.code(service.unit)}\n\n{markdown.code(service.environment)}",
        "network": sections.verdicts(station.plan, station.recommended_plan, "network"),
        "verification": sections.verification(recommended),
        "compared": sections.compared(planned, station.columns),
        "first": sections.first_tokens(planned, station.columns),
        "measured": sections.measured(),
        "prices": sections.prices(planned),
    }
    template = TEMPLATE.read_text()
    assert set(_PLACE.findall(template)) == set(filled)
    return _PLACE.sub(lambda found: filled[found[1]], template)


def corrections(planned: Machine) -> str:
    """corrections.md: each claim of the plan, what is right, and why."""
    found = quantities.quantities(planned)
    rows = [
        (
            str(claim.number),
            claim.says,
            claims.right(claim, found),
            claims.why(claim, found),
            claim.verdict,
            claim.source,
        )
        for claim in claims.claims()
    ]
    counts = {
        verdict: sum(claim.verdict == verdict for claim in claims.claims())
        for verdict in ("right", "wrong", "misleading", "missing", "unclear")
    }
    counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return (
        f"{WRITTEN}# The plan's claims, one by one\n\n"
        f"Of {len(rows)}: {counted}. In brackets stands what the plan does not say.\n"
        "Where a figure is computed, a test holds the claim against it. [figures.md](figures.md) says what"
        " the grades mean.\n\n"
        + markdown.table(("#", "the plan says", "what is right", "why", "verdict", "source"), rows)
        + "\n"
    )


def figures() -> str:
    """figures.md: every figure with its source."""
    return f"{WRITTEN}# Figures and their sources\n\nGrades: {sections.grades()}.\n\n{sections.sources()}\n"
