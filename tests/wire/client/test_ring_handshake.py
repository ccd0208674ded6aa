"""No wake-up is lost: every interleaving of the rings' own code, on a machine whose stores reach memory late.

The model of the machine is x86-TSO (Sewell et al., CACM 53(7), 2010): each processor has a queue of its
stores, which reach memory one by one at any later time; a load sees the processor's own newest store, else
memory; a fence waits until the queue is empty. The doorbell is an eventfd: it counts rings, and who sleeps on
it wakes where there are any.

A side of the handshake is run as it is, again and again from its start: the accesses that it has made already
give what they gave, the next one stops it and becomes a step of the model. So nothing is rewritten for the
model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from sigd.wire.layout import header_word
from sigd.wire.region import region_layout
from sigd.wire.ring import Region, RingConsumer, RingProducer

FRAMES = 3
_LAYOUT = region_layout(4, 1, 1)


class Step(NamedTuple):
    """What a side does next: load, store, fence, ring, sleep; at a place, with a value."""

    kind: str
    place: tuple[str, int] = ("", 0)
    value: int = 0


class _Stopped(Exception):
    """A side has come to a step that it has not made yet."""


class Replay:
    """Gives the steps of the past their results, and stops at the first new one."""

    def __init__(self, past: tuple[int, ...]) -> None:
        self._past = past
        self._at = 0
        self.next_step = Step("done")

    def make(self, step: Step) -> int:
        if self._at == len(self._past):
            self.next_step = step
            raise _Stopped
        self._at += 1
        return self._past[self._at - 1]


class Watched:
    """Stands where a ring has its counters or its flags."""

    def __init__(self, replay: Replay, name: str) -> None:
        self._replay = replay
        self._name = name

    def __getitem__(self, place: int) -> int:
        return self._replay.make(Step("load", (self._name, place)))

    def __setitem__(self, place: int, value: int) -> None:
        self._replay.make(Step("store", (self._name, place), value))


def _watch(ring: Any, replay: Replay, *, fenced: bool) -> None:
    ring.words = Watched(replay, "words")
    ring.flags = Watched(replay, "flags")
    ring.fence = (lambda: replay.make(Step("fence"))) if fenced else lambda: None


def _region() -> Region:
    region = Region.create(memoryview(bytearray(_LAYOUT.region_bytes)), _LAYOUT)
    frame_bytes = region.requests_out().frame_bytes
    frame = header_word(10, frame_bytes).to_bytes(8, "little") + bytes(frame_bytes - 8)
    for slot in range(_LAYOUT.ring_slots):
        region.requests_in().slot(slot)[:] = frame
    return region


REGION = _region()
FRAME = bytes(REGION.requests_in().slot(0))


def producer(replay: Replay, *, fenced: bool) -> None:
    """Publishes three frames and rings where it is told to."""
    ring: RingProducer = REGION.requests_out()
    _watch(ring, replay, fenced=fenced)
    for _ in range(FRAMES):
        if ring.publish(FRAME):
            replay.make(Step("ring"))


def consumer(replay: Replay, *, fenced: bool, looks_again: bool = True) -> None:
    """Takes three frames, sleeping whenever it may."""
    ring: RingConsumer = REGION.requests_in()
    _watch(ring, replay, fenced=fenced)
    into = memoryview(bytearray(FRAMES * len(FRAME)))
    while ring.taken < FRAMES:
        if ring.take(into, FRAMES):
            continue
        if ring.may_sleep() or not looks_again:
            replay.make(Step("sleep"))
        ring.awake()


Side = Callable[[Replay], None]
Stores = tuple[tuple[tuple[str, int], int], ...]


class State(NamedTuple):
    """Everything there is: what each side has seen, what is on its way, what is in memory, how often it
    rang."""

    pasts: tuple[tuple[int, ...], ...]
    stores: tuple[Stores, ...]
    memory: Stores
    rings: int


class Explorer:
    """Walks through all states that two sides can reach."""

    def __init__(self, *sides: Side) -> None:
        self._sides = sides
        self._known: dict[tuple[int, tuple[int, ...]], Step] = {}
        self.visited = 0

    def stuck(self) -> list[State]:
        """States in which nothing can happen any more although a side is not done."""
        first = State(((), ()), ((), ()), (), 0)
        seen, ahead, found = {first}, [first], []
        while ahead:
            state = ahead.pop()
            after = self._after(state)
            if not after and any(self.next_step(side, state).kind != "done" for side in (0, 1)):
                found.append(state)
            for new in after:
                if new not in seen:
                    seen.add(new)
                    ahead.append(new)
        self.visited = len(seen)
        return found

    def next_step(self, side: int, state: State) -> Step:
        key = (side, state.pasts[side])
        if key not in self._known:
            replay = Replay(state.pasts[side])
            try:
                self._sides[side](replay)
            except _Stopped:
                pass
            self._known[key] = replay.next_step
        return self._known[key]

    def _after(self, state: State) -> list[State]:
        after = []
        for side in (0, 1):
            if state.stores[side]:
                after.append(self._store_arrives(state, side))
            moved = self._moved(state, side, self.next_step(side, state))
            if moved is not None:
                after.append(moved)
        return after

    def _store_arrives(self, state: State, side: int) -> State:
        (place, value), *later = state.stores[side]
        memory = dict(state.memory) | {place: value}
        stores = tuple(tuple(later) if index == side else kept for index, kept in enumerate(state.stores))
        return state._replace(stores=stores, memory=tuple(sorted(memory.items())))

    def _moved(self, state: State, side: int, step: Step) -> State | None:
        """The state after a side's next step; None where it cannot be made now."""
        result, rings, own = 0, state.rings, state.stores[side]
        if step.kind == "load":
            result = (dict(state.memory) | dict(own)).get(step.place, 0)
        elif step.kind == "store":
            own = (*own, (step.place, step.value))
        elif step.kind == "ring":
            rings += 1
        elif step.kind == "sleep" and rings:
            rings = 0
        elif step.kind != "fence" or own:
            return None
        pasts = tuple((*past, result) if index == side else past for index, past in enumerate(state.pasts))
        stores = tuple(own if index == side else kept for index, kept in enumerate(state.stores))
        return State(pasts, stores, state.memory, rings)


def test_no_wake_up_is_lost() -> None:
    explorer = Explorer(
        lambda replay: producer(replay, fenced=True), lambda replay: consumer(replay, fenced=True)
    )
    assert explorer.stuck() == []
    assert explorer.visited > 1000, "the walk went somewhere"


@pytest.mark.parametrize(
    ("producer_fenced", "consumer_fenced", "looks_again"),
    [(False, True, True), (True, False, True), (True, True, False)],
    ids=["producer without a fence", "consumer without a fence", "consumer that does not look again"],
)
def test_nothing_of_it_can_be_left_out(
    producer_fenced: bool, consumer_fenced: bool, looks_again: bool
) -> None:
    explorer = Explorer(
        lambda replay: producer(replay, fenced=producer_fenced),
        lambda replay: consumer(replay, fenced=consumer_fenced, looks_again=looks_again),
    )
    stuck = explorer.stuck()
    assert stuck
    for state in stuck:
        assert explorer.next_step(1, state).kind == "sleep", "asleep, and no doorbell rings"
        assert dict(state.memory)["words", REGION.requests_in().head_word] == FRAMES
