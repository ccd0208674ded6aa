"""The fast path in C with a native engine, in the loop and in a lane: the same bits as its twin in Python,
and as the batch path."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import uvloop

from sigd.bench.profile.client import ServedClient
from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving.fast_path import NATIVE_ROWS_MAX, OUTPUTS_MAX
from sigd.daemon.serving.native_fast_path import CHUNK_ROWS
from sigd.daemon.transport.lanes import Lanes
from sigd.models.registry import open_backend
from sigd.wire.status import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import ModelMaker

    from sigd.daemon.serving.ports import Record, RecordInRing
    from sigd.daemon.serving.session import Session
    from sigd.models.backend import Backend

pytest.importorskip("sigd.models.native._kernels")
ROWS = 20


def answers(client: ServedClient, together: int) -> npt.NDArray[np.uint8]:
    """What the daemon gives for ROWS requests, so many at a time: frames, as bytes."""
    frames = np.frombuffer(client.frames, np.uint8).reshape(client.rows_max, -1)[:ROWS]
    frame_bytes = client.responses.frame_bytes
    got = bytearray(ROWS * frame_bytes)
    for first in range(0, ROWS, together):
        client.requests.publish(frames[first : first + together].tobytes())
        done = 0
        while done < together:
            client.poll()
            at = (first + done) * frame_bytes
            done += client.responses.take(memoryview(got)[at:], together)
    return np.frombuffer(got, np.uint8).reshape(ROWS, frame_bytes)


class Taps:
    """Keeps what it is told of each answer that came by the fast path of a ring."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, bytes, bytes]] = []

    def open(self, session: Session, *, in_rings: bool) -> Taps:
        return self

    def fast_path(self) -> Record:
        return _nothing

    def fast_path_in_ring(self, request: bytearray, outputs: memoryview) -> RecordInRing:
        def record(sequence: int, *_times_and_words: int) -> None:
            self.recorded.append((sequence, bytes(request), bytes(outputs)))

        return record

    def record(self, rows: int, batch: int) -> None:
        """A batch is recorded otherwise."""


def _nothing() -> None:
    """No request comes through the socket."""


class LaneClient(ServedClient):
    """A client whose requests a lane answers."""

    def __init__(self, loop: uvloop.Loop, backend: Backend) -> None:
        self.lanes = Lanes(loop, [min(os.sched_getaffinity(0))], None)
        (self.lane,) = self.lanes
        super().__init__(loop, backend, lanes=self.lanes)
        self.lanes.start()
        while self.lane.lent == 0:
            self.poll()

    def poll(self) -> None:
        self.lane.handed()
        super().poll()

    def close(self) -> None:
        super().close()
        self.lanes.close()


@pytest.fixture(
    params=[(outputs, who) for outputs in (3, OUTPUTS_MAX) for who in ("python", "c", "lane")],
    ids=lambda param: f"{param[1]}, {param[0]} outputs",
)
def client(
    request: pytest.FixtureRequest, models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServedClient]:
    outputs, who = request.param
    if who == "python":
        monkeypatch.setattr(native_fast_path, "Path", None)
    elif not native_fast_path.is_built():
        pytest.skip("the fast path in C is not built: python hatch_build.py")
    backend = open_backend(models.mlp(8, (16,), outputs), "native", batch_rows_max=64)
    loop = uvloop.new_event_loop()
    client = LaneClient(loop, backend) if who == "lane" else ServedClient(loop, backend, taps=Taps())
    yield client
    client.close()
    loop.close()


def outputs_of(client: ServedClient) -> slice:
    """Where they lie in an answer's bytes."""
    return slice(56, 56 + 4 * client.batcher.spec.outputs)


def open_fast_path(client: ServedClient) -> None:
    """As after a quick run, which a busy machine may not have had."""
    client.batcher.fast_path_owner = client.session
    client.batcher.one_by_one_rows_max = client.batcher._quick_rows_max


def test_native_engine_gives_the_bits_of_the_batch_path(client: ServedClient) -> None:
    backend = client.batcher.backend
    rows = np.frombuffer(client.frames, np.uint8).reshape(client.rows_max, -1)[:ROWS, 40:]
    backend.inputs[:ROWS] = rows.copy().view(np.float32)[:, :8]
    backend.submit(ROWS)
    expected = backend.outputs[:ROWS].tobytes()
    for together in (1, 4, ROWS):
        got = answers(client, together)
        assert (got[:, 52] == Status.OK).all()
        assert got[:, 8].tolist() == list(range(ROWS))
        assert got[:, outputs_of(client)].tobytes() == expected


def test_native_engine_runs_many_requests_in_small_batches(client: ServedClient) -> None:
    answers(client, 1)
    open_fast_path(client)
    rows = answers(client, ROWS)[:, 54].tolist()
    in_c = native_fast_path.is_built()
    assert client.batcher._quick_rows_max == (NATIVE_ROWS_MAX if in_c else 3)
    if in_c:
        assert rows == [CHUNK_ROWS] * 18 + [1, 1]
    else:
        assert 1 not in rows
    counters = client.batcher.counters
    assert counters.by_status[Status.OK] == ROWS * 2
    assert counters.total.count() == counters.queue.count() == ROWS * 2
    assert sum(rows * count for rows, count in enumerate(counters.batches_by_rows)) == ROWS * 2


SPOILT: dict[str, tuple[int, bytes, Status]] = {
    "not a number": (40 + 4 * 3, struct.pack("<f", np.nan), Status.BAD_INPUT),
    "late": (24, struct.pack("<Q", 1), Status.EXPIRED),
    "huge, but a number": (40 + 4 * 3, struct.pack("<f", 1.8e38), Status.OK),
    "no number comes out": (40, struct.pack("<8f", *[3.4e38] * 8), Status.MODEL_ERROR),
}


@pytest.mark.parametrize("place", [0, 5, 7, ROWS - 1])
@pytest.mark.parametrize("what", SPOILT)
def test_unusual_request_among_many_changes_no_other_answer(
    client: ServedClient, what: str, place: int
) -> None:
    frame_bytes = client.requests.frame_bytes
    expected = answers(client, 1)
    open_fast_path(client)
    at, value, status = SPOILT[what]
    frames = bytearray(client.frames[: ROWS * frame_bytes])
    frames[place * frame_bytes + at : place * frame_bytes + at + len(value)] = value
    client.frames = memoryview(bytes(frames)).cast("B")
    client.rows_max = ROWS
    got = answers(client, ROWS)
    assert got[:, 8].tolist() == list(range(ROWS)), "in order, and once each"
    others = [row for row in range(ROWS) if row != place]
    assert got[place, 52] == status
    assert (got[others, 52] == Status.OK).all()
    assert (got[others, outputs_of(client)] == expected[others, outputs_of(client)]).all()
    assert sum(client.batcher.counters.by_status) == 2 * ROWS


def test_requests_that_run_together_are_recorded_one_by_one(client: ServedClient) -> None:
    taps = client.batcher._taps
    if not isinstance(taps, Taps):
        pytest.skip("a lane serves no sessions that are recorded")
    answers(client, 1)
    open_fast_path(client)
    del taps.recorded[:]
    got = answers(client, ROWS)
    if native_fast_path.is_built():
        assert [sequence for sequence, _, _ in taps.recorded] == list(range(ROWS))
    frame_bytes = client.requests.frame_bytes
    for sequence, request, outputs in taps.recorded:
        assert request == client.frames[sequence * frame_bytes :][: len(request)]
        assert outputs == got[sequence, outputs_of(client)].tobytes()
