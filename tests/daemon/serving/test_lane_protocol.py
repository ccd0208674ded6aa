"""The protocol of a lane (daemon/serving/lane.h), each part of it in all interleavings: it holds, and without
the one thing that it needs it does not."""

from __future__ import annotations

import pytest
from tests.daemon.serving.interleavings import Instruction, Memory, Registers, Threads

PYTHON, LANE, BUSY = 0, 1, 2


def nothing(_memory: Memory, _registers: list[Registers]) -> str:
    return ""


# -- who owns a session


def lane_turns(turns: int, *, locked: bool) -> list[Instruction]:
    """`look()`: own the session, answer, and let it go, or hand it over."""
    own: list[Instruction] = (
        [("cas", "found", "owner", LANE, BUSY)]
        if locked
        else [("load", "found", "owner"), ("store", "owner", BUSY)]
    )
    return [
        ("set", "turn", 0),
        "turn",
        ("load", "found", "owner"),
        ("if", lambda r: r["found"] != LANE, "next"),
        *own,
        ("if", lambda r: r["found"] != LANE, "next"),
        ("set", "inside", 1),
        ("load", "taken", "taken"),
        ("store", "taken", lambda r: r["taken"] + 1),
        ("set", "answered", lambda r: r.get("answered", 0) + 1),
        ("load", "wanted", "wanted"),
        ("choose", "unusual", (0, 1)),
        ("set", "inside", 0),
        ("store", "owner", lambda r: PYTHON if r["wanted"] or r["unusual"] else LANE),
        "next",
        ("set", "turn", lambda r: r["turn"] + 1),
        ("if", lambda r: r["turn"] < turns, "turn"),
    ]


def python_recalls(times: int) -> list[Instruction]:
    """`lane_recall()`, an answer by Python, `lane_give()`."""
    return [
        ("set", "time", 0),
        "again",
        ("store", "wanted", 1),
        "try",
        ("cas", "found", "owner", LANE, PYTHON),
        ("if", lambda r: r["found"] == BUSY, "try"),
        ("set", "inside", 1),
        ("load", "taken", "taken"),
        ("store", "taken", lambda r: r["taken"] + 1),
        ("set", "answered", lambda r: r.get("answered", 0) + 1),
        ("set", "inside", 0),
        ("store", "wanted", 0),
        ("store", "owner", LANE),
        ("set", "time", lambda r: r["time"] + 1),
        ("if", lambda r: r["time"] < times, "again"),
    ]


def two_inside(_memory: Memory, registers: list[Registers]) -> str:
    return "both own the session" if all(r.get("inside") for r in registers) else ""


def answers_are_lost(memory: Memory, registers: list[Registers]) -> str:
    answered = sum(r.get("answered", 0) for r in registers)
    return "" if memory["taken"] == answered else f"{answered} answers, the ring stands at {memory['taken']}"


def test_session_has_one_owner_and_its_ring_one_position() -> None:
    threads = Threads(lane_turns(3, locked=True), python_recalls(2))
    memory = {"owner": LANE, "wanted": 0, "taken": 0}
    found, states = threads.violation(memory, two_inside, answers_are_lost)
    assert found == ""
    assert states > 10_000


def test_plain_loads_and_stores_of_the_owner_give_a_session_two() -> None:
    threads = Threads(lane_turns(3, locked=False), python_recalls(2))
    found, _ = threads.violation({"owner": LANE, "wanted": 0, "taken": 0}, two_inside, nothing)
    assert found == "both own the session"


# -- when an engine may be freed


def lane_rounds(rounds: int) -> list[Instruction]:
    """Each round is counted before the engine is loaded."""
    program: list[Instruction] = []
    for round_ in range(1, rounds + 1):
        program += [
            ("store", "round", round_),
            ("load", "engine", "engine"),
            ("set", "runs", lambda r: r["engine"]),
            ("set", "runs", -1),
        ]
    return program


def python_swaps(barrier: str, rounds: int) -> list[Instruction]:
    """`publish()`, `lane_mark()`, and `lane_passed()` until it is."""
    return [
        ("store", "engine", 1),
        (barrier,),
        ("load", "mark", "round"),
        "wait",
        ("load", "now", "round"),
        ("if", lambda r: r["now"] < r["mark"] + rounds, "wait"),
        ("set", "freed", 1),
    ]


def freed_engine_runs(_memory: Memory, registers: list[Registers]) -> str:
    lane, python = registers
    return "a freed engine runs" if lane.get("runs") == 0 and python.get("freed") else ""


@pytest.mark.parametrize(
    ("barrier", "rounds", "found"),
    [
        ("barrier", 2, ""),
        ("fence", 2, "a freed engine runs"),
        ("barrier", 0, "a freed engine runs"),
    ],
    ids=["as it is", "fence of one thread", "no round waited for"],
)
def test_engine_is_freed_when_the_lane_is_past_it(barrier: str, rounds: int, found: str) -> None:
    threads = Threads(lane_rounds(4), python_swaps(barrier, rounds))
    assert threads.violation({"engine": 0, "round": 0}, freed_engine_runs, nothing)[0] == found


# -- whether a request can be slept through


def sleeping_lane(*, counts_gives: bool) -> list[Instruction]:
    """`sleep_until_rung()`, then one more look."""
    return [
        ("cas", "found", "owner", LANE, BUSY),
        ("if", lambda r: r["found"] != LANE, "is unarmed"),
        ("store", "sleeping", 1),
        ("load", "armed", "gives"),
        ("load", "wanted", "wanted"),
        ("store", "owner", lambda r: PYTHON if r["wanted"] else LANE),
        "is unarmed",
        ("store", "asleep", 1),
        ("fence",),
        ("load", "found", "owner"),
        ("if", lambda r: r["found"] != LANE, "sleep"),
        ("load", "gives", "gives"),
        ("if", lambda r: counts_gives and r["gives"] != r.get("armed", 0), "end"),
        ("load", "head", "head"),
        ("load", "taken", "taken"),
        ("if", lambda r: r["head"] != r["taken"], "end"),
        "sleep",
        ("wait", ("bell", "wake")),
        "end",
        ("set", "awake", 1),
    ]


PYTHON_TAKES_AND_GIVES: list[Instruction] = [
    ("store", "wanted", 1),
    "try",
    ("cas", "found", "owner", LANE, PYTHON),
    ("if", lambda r: r["found"] == BUSY, "try"),
    ("store", "sleeping", 0),
    ("load", "head", "head"),
    ("store", "taken", lambda r: r["head"]),
    ("store", "wanted", 0),
    ("store", "gives", 2),
    ("store", "owner", LANE),
    ("fence",),
    ("load", "asleep", "asleep"),
    ("if", lambda r: not r["asleep"], "end"),
    ("store", "wake", 1),
    "end",
]
CLIENT_ASKS: list[Instruction] = [
    ("store", "head", 1),
    ("fence",),
    ("load", "sleeping", "sleeping"),
    ("if", lambda r: not r["sleeping"], "end"),
    ("store", "bell", 1),
    "end",
]


def slept_through(memory: Memory, registers: list[Registers]) -> str:
    waits = memory["head"] != memory["taken"] and memory["owner"] == LANE
    return "a request is slept through" if waits and not registers[0].get("awake") else ""


@pytest.mark.parametrize("counts_gives", [True, False])
def test_sleeping_lane_hears_of_every_request(counts_gives: bool) -> None:
    memory = dict.fromkeys(("taken", "head", "sleeping", "asleep", "bell", "wake", "wanted"), 0)
    memory |= {"owner": LANE, "gives": 1}
    threads = Threads(sleeping_lane(counts_gives=counts_gives), PYTHON_TAKES_AND_GIVES, CLIENT_ASKS)
    found, _ = threads.violation(memory, nothing, slept_through)
    assert found == ("" if counts_gives else "a request is slept through")
