"""A model that is recorded and has a shadow: both rings get the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import uvloop

from sigd.bench.profile.client import ServedClient
from sigd.daemon.recording.tee import TeeTaps, tee
from sigd.models.registry import open_backend
from sigd.wire.ring import why_not_here

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.daemon.conftest import Rig
    from tests.daemon.recording.conftest import MakeRecorded, Recorded


def test_there_is_a_pair_only_where_there_are_two(make_recorded: MakeRecorded) -> None:
    one, other = make_recorded().taps, make_recorded().taps
    assert tee(None, None) is None
    assert tee(one, None) is one
    assert tee(None, other) is other
    assert isinstance(tee(one, other), TeeTaps)


def test_both_get_every_answer(make_rig: type[Rig], make_recorded: MakeRecorded) -> None:
    one, other = make_recorded(), make_recorded()
    rig = make_rig(taps=tee(one.taps, other.taps))
    client = rig.connect()
    for sequence in range(4):
        client.say(rig.request(sequence, 1.5, sequence))
        rig.run()
    assert rig.batcher.fast_path_owner is client.session
    client.say(rig.requests(range(4, 9)))
    rig.run()
    assert_alike(one, other, 9)


def test_both_get_every_answer_through_rings(models: ModelMaker, make_recorded: MakeRecorded) -> None:
    if why_not_here():
        pytest.skip(why_not_here())
    one, other = make_recorded(), make_recorded()
    loop = uvloop.new_event_loop()
    backend = open_backend(models.copied(4), "onnxruntime")
    client = ServedClient(loop, backend, taps=tee(one.taps, other.taps))
    for rows in (1, 1, 1, 5):
        client.publish(rows)
        client.poll()
        client.take(rows)
    client.close()
    loop.close()
    backend.close()
    assert_alike(one, other, 8)


def assert_alike(one: Recorded, other: Recorded, rows: int) -> None:
    for recorded in (one, other):
        recorded.store()
    first, second = one.exchanges(), other.exchanges()
    assert sum(len(exchange.requests) for exchange in first) == rows
    assert {exchange.batch == 0 for exchange in first} == {True, False}, "alone, and in batches"
    assert [(a.requests.tobytes(), a.responses.tobytes(), a.batch) for a in first] == [
        (b.requests.tobytes(), b.responses.tobytes(), b.batch) for b in second
    ]
