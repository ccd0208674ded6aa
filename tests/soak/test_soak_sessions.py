"""The soak of sessions, short; and that it would say what is left behind."""

from __future__ import annotations

import os

import pytest
from tests.soak import sessions
from tests.soak.sessions import GROWTH_KIB_MAX, LEAVE, LOOKS, Held, Look, complaints, held_by, run

from sigd.wire.ring import why_not_here

NOTHING = Held(10, 0, 1000)


@pytest.mark.slow
def test_two_thousand_sessions_leave_nothing_behind() -> None:
    if why_not_here():
        pytest.skip(why_not_here())
    looks: list[Look] = []
    assert run(2_000, "echo", looks.append) == looks
    assert [look.sessions for look in looks] == [200 * (part + 1) for part in range(LOOKS)]
    assert complaints(looks) == []


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (Held(11, 0, 1000), "11 descriptors, 10 at first"),
        (Held(10, 1, 1000), "1 regions are mapped, and no session is open"),
        (Held(10, 0, 1001 + GROWTH_KIB_MAX), f"{GROWTH_KIB_MAX + 1} KiB more resident"),
    ],
)
@pytest.mark.parametrize("who", ["daemon", "clients"])
def test_what_is_left_is_said(last: Held, said: str, who: str) -> None:
    looks = [Look(1, NOTHING, NOTHING)]
    looks.append(Look(2, last, NOTHING) if who == "daemon" else Look(2, NOTHING, last))
    (complaint,) = complaints(looks)
    assert complaint.startswith(f"{who}: ")
    assert said in complaint


def test_what_is_held_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SHORT_LOOKS", 1)
    before = held_by(os.getpid())
    memory = os.memfd_create("one")
    assert held_by(os.getpid()).descriptors == before.descriptors + 1
    os.close(memory)


def test_every_way_of_leaving_has_its_turn_with_every_number_of_requests_and_slots() -> None:
    turns = {(number % len(LEAVE), number % 3, number % 7) for number in range(200)}
    assert len(turns) == len(LEAVE) * 3 * 7
