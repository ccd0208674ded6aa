"""What `--expect` asks for: "2x RTX 3090", or several kinds with commas between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card
from sigd.daemon.errors import UsageError

_SUFFIXES = frozenset({"ti", "super", "d", "laptop", "max-q", "mobile"})
"""Words after a model's name that make it another model."""


@dataclass(frozen=True)
class Expected:
    """So many cards of one model."""

    count: int
    model: str


def parse(text: str) -> tuple[Expected, ...]:
    """The cards that the text names; a kind without a number means one.

    Raises:
        UsageError: it names none.
    """
    expected = []
    for part in text.split(","):
        found = re.fullmatch(r"(?:(\d+)\s*x\s*)?(\S.*)", part.strip(), re.IGNORECASE)
        count = 0 if found is None else int(found[1] or 1)
        if found is None or count < 1:
            raise UsageError(f'--expect {text!r} names no cards; write for example --expect "2x RTX 3090"')
        expected.append(Expected(count, found[2]))
    return tuple(expected)


def is_model(name: str, model: str) -> bool:
    """Whether a card's name is that of the model: "RTX 3090" is "NVIDIA GeForce RTX 3090" and is not its
    Ti."""
    words, sought = name.lower().split(), model.lower().split()
    for start in range(len(words) - len(sought) + 1):
        end = start + len(sought)
        if words[start:end] == sought:
            return end == len(words) or words[end] not in _SUFFIXES
    return False


def cards_expected(expected: Sequence[Expected], cards: Sequence[Card]) -> list[Finding]:
    """One finding for each kind of card that was asked for."""
    return [_one_kind(kind, cards) for kind in expected]


def _one_kind(kind: Expected, cards: Sequence[Card]) -> Finding:
    check = "cards expected"
    there = [card for card in cards if card.lost is None and is_model(card.name, kind.model)]
    if len(there) == kind.count:
        return Finding(check, "ok", f"{kind.count}x {kind.model}")
    names = ", ".join(card.name for card in cards) or "none"
    what = f"{len(there)}x {kind.model}, expected {kind.count} (there: {names})"
    if len(there) > kind.count:
        return Finding(check, "ok", what)
    return Finding(
        check,
        "fail",
        what,
        "A card that is missing was lost by the bus, has no power, or belongs to another driver.",
        ("lspci -nnk -d 10de:", "sudo dmesg | grep -i -E 'nvrm|xid'"),
    )
