"""A request of a ring is received after it was published, however close behind another one it comes."""

from __future__ import annotations

import os

import pytest
from tests.daemon.conftest import FakeClock, Rig
from tests.daemon.transport.test_rings import OUTPUTS, RingClient, RingRig

from sigd.wire.layout import response_frame_bytes
from sigd.wire.ring import why_not_here

pytestmark = [
    pytest.mark.usefixtures("each_fast_path"),
    pytest.mark.skipif(bool(why_not_here()), reason=why_not_here()),
]


def times(client: RingClient) -> list[tuple[int, int, int]]:
    """Of each answer that came: sequence, when the client sent the request, when the daemon received it."""
    frame_bytes = response_frame_bytes(OUTPUTS)
    buffer = bytearray(64 * frame_bytes)
    count = client.responses.take(memoryview(buffer), 64)
    return [
        (
            int.from_bytes(buffer[at + 8 : at + 16], "little"),
            int.from_bytes(buffer[at + 16 : at + 24], "little"),
            int.from_bytes(buffer[at + 24 : at + 32], "little"),
        )
        for at in range(0, count * frame_bytes, frame_bytes)
    ]


@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize("reading", range(6))
@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "batch path"])
def test_request_published_while_the_clock_is_read_is_received_later(
    monkeypatch: pytest.MonkeyPatch, together: int, reading: int, fast: bool
) -> None:
    """Each reading moves the clock on, and right after one of them a request comes."""
    rigged = RingRig(Rig())
    client = rigged.connect(ring_slots=64)
    client.send(rigged.rig.requests([0]))
    rigged.run()
    client.answers()
    rigged.rig.batcher.one_by_one_rows_max = 3
    if not fast:
        rigged.rig.batcher.close_fast_path()
    readings = 0

    def read(clock: FakeClock) -> int:
        nonlocal readings
        now_ns = clock.now_ns
        clock.now_ns += 100
        if readings == reading:
            client.send(rigged.rig.requests([100], client_time_ns=clock.now_ns))
        readings += 1
        return now_ns

    sent_ns = rigged.rig.clock.now_ns
    client.send(rigged.rig.requests(range(1, 1 + together), client_time_ns=sent_ns))
    with monkeypatch.context() as patch:
        patch.setattr(FakeClock, "__call__", read)
        rigged.run()
    came = times(client)
    for descriptor in client.stream.descriptors:
        os.close(descriptor)
    client.session.close()
    rigged.host.close()
    assert [sequence for sequence, _, _ in came[:together]] == list(range(1, 1 + together))
    assert len(came) == together + (readings > reading)
    for sequence, client_ns, received_ns in came:
        assert client_ns <= received_ns, f"request {sequence} was received before it was sent"
