"""The fast path in C reads the socket of the only connection: the answers are those of the loop's reads."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.conftest import Answer, FakeClient, Rig

from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving.fast_path import receive_nothing
from sigd.wire.messages import Goodbye, Heartbeat, Hello
from sigd.wire.status import GoodbyeCode, Status

pytestmark = pytest.mark.skipif(
    not native_fast_path.is_built(), reason="the fast path in C is not built: python hatch_build.py"
)


class SocketClient(FakeClient):
    """A client whose bytes travel through a socket, which the session's `receive_round` reads first."""

    def __init__(self, rig: Rig, own_bytes: int = 0) -> None:
        super().__init__(rig)
        self.here, self.there = socket.socketpair()
        if own_bytes:
            self.there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, own_bytes)
        for end in (self.here, self.there):
            end.setblocking(False)
        self.rounds = 0

    def send(self, data: memoryview | bytes) -> None:
        """What Python sends comes behind what C has sent."""
        self.drain()
        super().send(data)

    def drain(self) -> None:
        with suppress(BlockingIOError):
            while data := self.here.recv(1 << 16):
                self.raw += data

    def deliver(self, count_bytes: int | None = None) -> int:
        """One read: by `receive_round`, or as the loop does it where that read nothing."""
        if self.paused or self.finished or self.gone or not self.unread:
            return 0
        sent = self.here.send(self.unread[:count_bytes])
        found = self.session.receive_round(self.there.fileno(), 1, 1)
        self.drain()
        if found:
            self.rounds += 1
        else:
            self.loop_reads()
        del self.unread[:sent]
        return sent

    def loop_reads(self) -> None:
        with suppress(BlockingIOError):
            while not (self.paused or self.finished):
                count = self.there.recv_into(self.session.writable())
                self.session.arrived(count, self.rig.clock())

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture
def client() -> Iterator[SocketClient]:
    """One that had the last batch to itself."""
    made = alone(Rig())
    yield made
    made.close()


def alone(rig: Rig, own_bytes: int = 0) -> SocketClient:
    client = SocketClient(rig, own_bytes)
    rig.clients.append(client)
    client.say(Hello().encode())
    client.say(rig.request(0))
    rig.run()
    client.received()
    assert rig.batcher.fast_path_owner is client.session
    return client


def test_request_is_read_and_answered_without_the_loop(client: SocketClient) -> None:
    before = client.rounds
    client.say(client.rig.requests([1]))
    assert client.rounds == before + 1
    assert client.statuses() == [(1, Status.OK)]
    assert client.rig.batcher.last_batch_ns > 0


def test_nothing_to_read_is_no_work_and_no_error(client: SocketClient) -> None:
    assert client.session.receive_round(client.there.fileno(), 8, 4) == 0
    client.here.close()
    assert client.session.receive_round(client.there.fileno(), 8, 4) == 0, "the loop finds the end by itself"


def test_bound_on_answers_in_a_round_is_kept(client: SocketClient) -> None:
    rig = client.rig
    client.here.send(rig.requests([1]))
    assert client.session.receive_round(client.there.fileno(), 8, 1) == 1
    client.here.send(rig.requests([2]))
    assert client.session.receive_round(client.there.fileno(), 0, 1) == 0, "no polls, no reads"
    client.drain()
    assert client.statuses() == [(1, Status.OK)]


def test_few_requests_at_once_are_answered_in_one_round(client: SocketClient) -> None:
    client.say(client.rig.requests([1, 2, 3]))
    assert client.statuses() == [(1, Status.OK), (2, Status.OK), (3, Status.OK)]
    assert client.rig.batcher.pending_rows == 0


def test_what_the_kernel_does_not_take_goes_by_the_peer(client: SocketClient) -> None:
    rig = Rig()
    client = alone(rig, own_bytes=2048)
    sent = client.there.send(bytes(1 << 16))  # as if answers lay unread
    assert sent < 1 << 16
    client.here.send(rig.requests([1]))
    kept: list[bytes] = []
    client.session.send_answers = lambda data: kept.append(bytes(data))
    client.session.attach()
    rig.batcher.fast_path_owner = client.session
    assert client.session.receive_round(client.there.fileno(), 8, 4) == 1
    answer = b"".join(kept)
    assert len(answer) in range(1, 65)
    client.close()


def test_client_that_is_gone_is_found_by_the_peer(client: SocketClient) -> None:
    rig = client.rig
    client.here.send(rig.requests([1]))
    client.here.shutdown(socket.SHUT_RD)
    kept: list[bytes] = []
    client.session.send_answers = lambda data: kept.append(bytes(data))
    client.session.attach()
    rig.batcher.fast_path_owner = client.session
    assert client.session.receive_round(client.there.fileno(), 8, 4) == 1
    assert len(kept) == 1, "whose own write then meets the error"


def test_stream_beside_rings_and_other_states_are_the_loops(client: SocketClient) -> None:
    fresh = client.rig.client()
    assert fresh.session.receive_round is receive_nothing, "no Hello yet"
    client.session.detach()
    assert client.session.receive_round is receive_nothing, "another model takes over"
    client.session.attach()
    client.lose()
    assert client.session.receive_round is receive_nothing


requests = st.tuples(
    st.lists(st.sampled_from([0.0, 1.0, np.nan, np.inf, -3e38, 1.8e38]), min_size=3, max_size=3),
    st.sampled_from([0, 1, 10**18]),
    st.booleans(),
)
others = st.sampled_from([Heartbeat(5).encode(), Goodbye(GoodbyeCode.DONE).encode(), b"\xff" * 16, b""])


@given(
    asked=st.lists(requests | others, min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 600), max_size=6),
)
def test_any_bytes_in_any_pieces_get_the_answers_of_the_loop(
    asked: list[tuple[list[float], int, bool] | bytes], cuts: list[int]
) -> None:
    """Odd values, passed deadlines, newer versions, control frames, garbage, frames cut anywhere."""
    data = b"".join(
        item
        if isinstance(item, bytes)
        else Rig.request(
            number, *item[0], deadline_ns=item[1], **({"version": 2, "longer_bytes": 8} if item[2] else {})
        )
        for number, item in enumerate(asked)
    )
    edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    said = []
    for by_socket in (True, False):
        rig = Rig()
        client: FakeClient = alone(rig) if by_socket else rig.connect()
        if not by_socket:
            client.say(rig.request(0))
            rig.run()
            client.received()
        for first, end in pairwise(edges):
            client.say(data[first:end])
            rig.run()
        said.append(
            [
                (item.sequence, item.status, repr(item.outputs)) if isinstance(item, Answer) else type(item)
                for item in client.received()
            ]
        )
        assert rig.batcher.pending_rows == 0
        if isinstance(client, SocketClient):
            client.close()
    assert said[0] == said[1]
