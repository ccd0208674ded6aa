"""What is taken out of the ring is what was asked and what was answered OK."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigd.daemon.recording.ring import Ring
from sigd.daemon.recording.tap import Taps
from sigd.daemon.shadow.process import in_sample
from sigd.daemon.shadow.rows import RowReader, Rows
from sigd.wire.recording.format import RING_HEADER_BYTES, RingHeader

if TYPE_CHECKING:
    from tests.daemon.conftest import FakeClient, Rig

FEATURES, OUTPUTS = 4, 2
HEADER = RingHeader(1 << 14, 1 << 13, bytes(16), b"{}")


class Shadowed:
    """A rig whose answers go into a ring, and who takes them out."""

    def __init__(self, make_rig: type[Rig], features: int = FEATURES) -> None:
        self.memory = mmap.mmap(-1, RING_HEADER_BYTES + HEADER.capacity_bytes)
        self.memory[:RING_HEADER_BYTES] = HEADER.encode()
        self.ring = Ring(self.memory, HEADER)
        self.rig = make_rig(taps=Taps(self.ring))
        self.features = features
        self.reader = self.new_reader()
        self.sequence = 0

    def new_reader(self) -> RowReader:
        """As after the last one was killed."""
        self.reader = RowReader(self.memory, HEADER, self.features, OUTPUTS)
        return self.reader

    def ask(self, client: FakeClient, *rows: tuple[float, ...]) -> None:
        """All at once."""
        client.say(*(self.rig.request(self.sequence + number, *row) for number, row in enumerate(rows)))
        self.sequence += len(rows)
        self.rig.run()

    def take(self) -> list[Rows]:
        """All there is: a look takes what the one before it saw."""
        return [*self.reader.look(), *self.reader.look()]


@pytest.fixture
def shadowed(make_rig: type[Rig]) -> Shadowed:
    return Shadowed(make_rig)


def test_rows_of_all_who_ask_whichever_way_they_went(shadowed: Shadowed) -> None:
    one, other = shadowed.rig.connect(), shadowed.rig.connect()
    for number in range(5):
        shadowed.ask(one, (number, 1))
    assert shadowed.rig.batcher.fast_path_owner is one.session
    shadowed.ask(other, (5, 2), (6, 2), (7, 2))
    shadowed.ask(one, (8, 3))
    (rows,) = shadowed.take()
    assert rows.generation == 1
    assert rows.features[:, 0].tolist() == list(range(9))
    assert rows.features.shape == (9, FEATURES)
    assert np.array_equal(rows.outputs, rows.features[:, :OUTPUTS])
    assert shadowed.take() == []
    assert shadowed.reader.take_skipped() == 0


def test_a_look_leaves_what_has_just_come_to_the_next(shadowed: Shadowed) -> None:
    client = shadowed.rig.connect()
    shadowed.ask(client, (1,))
    assert list(shadowed.reader.look()) == []
    shadowed.ask(client, (2,))
    (rows,) = shadowed.reader.look()
    assert rows.features[:, 0].tolist() == [1]


def test_only_what_was_answered_ok(shadowed: Shadowed) -> None:
    client = shadowed.rig.connect()
    nan_output = -7.0
    shadowed.ask(client, (1, 1), (2, 1, nan_output), (float("nan"),), (3, 1))
    (rows,) = shadowed.take()
    assert rows.features[:, 0].tolist() == [1, 3]
    assert shadowed.reader.take_skipped() == 0


def test_what_finds_no_room_is_counted_by_the_ring_and_the_rest_is_whole(shadowed: Shadowed) -> None:
    client = shadowed.rig.connect()
    for number in range(300):
        shadowed.ask(client, (number,))
    assert shadowed.ring.dropped > 0
    rows = shadowed.take()
    values = np.concatenate([part.features[:, 0] for part in rows]).tolist()
    assert values == list(range(300 - shadowed.ring.dropped))
    shadowed.ask(client, (1000,))
    assert shadowed.take()[0].features[0, 0] == 1000


def test_next_reader_skips_what_ended_the_one_before_and_knows_every_client_anew(
    shadowed: Shadowed,
) -> None:
    client = shadowed.rig.connect()
    shadowed.ask(client, (1,))
    shadowed.take()
    shadowed.ask(client, (2,), (3,))
    shadowed.new_reader().skip_all()
    assert shadowed.reader.take_skipped() == 2
    shadowed.ask(client, (4,))
    assert shadowed.take() == []
    assert shadowed.reader.take_skipped() == 1, "it has not seen who that is"
    for _ in range(2):
        shadowed.ring.introduce_again()
        shadowed.ask(client, (5,))
        shadowed.ask(client, (6,), (7,))
        (rows,) = shadowed.take()
        assert rows.features[:, 0].tolist() == [5, 6, 7]
    assert shadowed.reader.take_skipped() == 0


def test_every_client_is_known_anew_in_a_ring_that_was_full(shadowed: Shadowed) -> None:
    """Where the next record has to ask for room, in the segment that it was in."""
    one, other = shadowed.rig.connect(), shadowed.rig.connect()
    shadowed.ask(one, (0,))
    shadowed.ask(other, (0,))
    while not shadowed.ring.dropped:
        shadowed.ask(one, (0,))
        shadowed.ask(other, (0,))
    shadowed.new_reader().skip_all()
    shadowed.ring.introduce_again()
    shadowed.reader.take_skipped()
    for number in (1, 2):
        shadowed.ask(one, (number,))
        shadowed.ask(other, (number,))
    (rows,) = shadowed.take()
    assert rows.features[:, 0].tolist() == [1, 1, 2, 2]
    assert shadowed.reader.take_skipped() == 0


def test_requests_of_a_newer_version_that_are_longer(shadowed: Shadowed) -> None:
    client = shadowed.rig.connect()
    for longer_bytes in (0, 16, 16, 0):
        client.say(shadowed.rig.request(1, longer_bytes, version=2, longer_bytes=longer_bytes))
        shadowed.rig.run()
    rows = shadowed.take()
    assert [part.features[:, 0].tolist() for part in rows] == [[0], [16, 16], [0]]
    assert all(np.array_equal(part.outputs, part.features[:, :OUTPUTS]) for part in rows)


def test_answers_of_two_generations_come_apart(shadowed: Shadowed) -> None:
    client = shadowed.rig.connect()
    shadowed.ask(client, (1,))
    shadowed.rig.swap(factor=3)
    shadowed.ask(client, (2,), (4,))
    assert [(rows.generation, rows.outputs[:, 0].tolist()) for rows in shadowed.take()] == [
        (1, [1]),
        (2, [6, 12]),
    ]


def test_rows_of_another_shape_are_skipped(make_rig: type[Rig]) -> None:
    shadowed = Shadowed(make_rig, features=FEATURES + 1)
    client = shadowed.rig.connect()
    shadowed.ask(client, (1,), (2,))
    assert shadowed.take() == []
    assert shadowed.reader.take_skipped() == 2
    assert shadowed.reader.take_skipped() == 0


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.sampled_from(["", "look", "kill"]))))
def test_every_row_is_taken_once_or_counted(make_rig: type[Rig], steps: list[tuple[int, int, str]]) -> None:
    """However the ring is gone round, filled up, and read by one process after another."""
    shadowed = Shadowed(make_rig)
    clients = [shadowed.rig.connect() for _ in range(3)]
    asked, taken, skipped = 0, [], 0
    for who, rows, then in steps * 10:
        shadowed.ask(clients[who], *((float(asked + number),) for number in range(rows)))
        asked += rows
        if then == "look":
            taken += list(shadowed.reader.look())
        elif then == "kill":
            skipped += shadowed.reader.take_skipped()
            shadowed.new_reader().skip_all()
            shadowed.ring.introduce_again()
    taken += shadowed.take()
    values = [value for rows in taken for value in rows.features[:, 0].tolist()]
    assert values == sorted(set(values))
    assert all(np.array_equal(rows.outputs, rows.features[:, :OUTPUTS]) for rows in taken)
    skipped += shadowed.reader.take_skipped()
    assert len(values) + skipped + shadowed.ring.dropped == asked


@given(st.lists(st.integers(1, 50), min_size=1), st.sampled_from([1 / 3, 0.01, 0.5, 0.999]))
def test_a_sample_is_the_same_whatever_the_batches(counts: list[int], sample: float) -> None:
    parts, first = [], 0
    for count in counts:
        parts.append(in_sample(first, count, sample))
        first += count
    assert np.concatenate(parts).tolist() == in_sample(0, first, sample).tolist()
    assert np.concatenate(parts).sum() == int(np.floor(first * sample))
