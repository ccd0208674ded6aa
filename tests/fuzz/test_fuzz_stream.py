"""The fuzz loop with a small budget, and that it would notice: each part must fail where its subject is
spoilt."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from tests.fuzz import fuzz_stream
from tests.fuzz.conversation import Due, Served, owed
from tests.fuzz.live_daemon import LiveDaemon
from tests.fuzz.sessions import as_in_a_daemon, greeting
from tests.fuzz.streams import Failed, Reading, Traffic, frame, read_stream

from sigd.daemon.serving import session as session_module
from sigd.daemon.serving.batcher import Batcher
from sigd.wire import framer as framer_module
from sigd.wire import inbox as inbox_module
from sigd.wire.inbox import RequestInbox
from sigd.wire.messages import Goodbye, Heartbeat, Hello
from sigd.wire.status import Status

REQUEST_OF_4 = frame(10, bytes(48))


def test_decoder() -> None:
    assert sum(fuzz_stream.fuzz_decoder(seed=7, index=index) for index in range(300)) > 1_000


def test_sessions() -> None:
    with as_in_a_daemon():
        assert sum(fuzz_stream.fuzz_sessions(seed=7, index=index) for index in range(5)) > 500


def test_live_daemon() -> None:
    draw = random.Random(7)
    with LiveDaemon(draw) as daemon:
        traffic = Traffic(draw, daemon.served.features)
        answered = sum(daemon.play(greeting(draw, daemon.served) + traffic.stream()) for _ in range(100))
    assert answered > 100


def test_the_same_seed_gives_the_same_streams() -> None:
    first, again, other = (
        [bytes(Traffic(random.Random(seed), 3).stream()) for _ in range(3)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_stream.main(["--frames", "200", "--live-frames", "0", "--seed", "3", "--quiet"]) == 0
    assert "no failure; frames judged: decoder 2" in capsys.readouterr().out
    assert fuzz_stream.main(["--seed", "3", "--part", "sessions", "--stream", "1", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("where", "name", "instead"),
    [
        (inbox_module, "check_length", lambda *_: None),
        (RequestInbox, "_take_rows", lambda self, offset, whole, now_ns: 0),
        (framer_module, "SCHEMA_VERSION", 2),
    ],
)
def test_a_spoilt_decoder_is_found_out(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, instead: Any
) -> None:
    monkeypatch.setattr(where, name, instead)
    with pytest.raises(Failed):
        sum(fuzz_stream.fuzz_decoder(seed=7, index=index) for index in range(300))


def answer_nothing(self: Any, segment: Any, *_: Any) -> None:
    segment.session.in_batch_rows = 0


@pytest.mark.parametrize(
    ("where", "name", "instead"),
    [
        (Batcher, "_answer", answer_nothing),
        (session_module, "Goodbye", Heartbeat),
    ],
)
def test_a_spoilt_session_is_found_out(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, instead: Any
) -> None:
    monkeypatch.setattr(where, name, instead)
    with as_in_a_daemon(), pytest.raises(Failed):
        sum(fuzz_stream.fuzz_sessions(seed=7, index=index) for index in range(20))


def test_a_failure_says_how_to_see_it_again() -> None:
    with pytest.raises(Failed) as caught, fuzz_stream.replayable(5, "decoder", 17):
        raise Failed("odd")
    assert caught.value.__notes__ == ["replay: --seed 5 --part decoder --stream 17"]


class TestContract:
    """The judge itself, by hand."""

    def test_frames_and_what_is_missing(self) -> None:
        good = REQUEST_OF_4 + Heartbeat(1).encode()
        assert read_stream(b"", 4) == Reading([], 0)
        assert read_stream(good, 4) == Reading([REQUEST_OF_4, Heartbeat(1).encode()], 0)
        assert read_stream(good[:-1], 4) == Reading([REQUEST_OF_4], 0)
        assert read_stream(good + bytes(7), 4).code == 0
        assert read_stream(good + bytes(8), 4) == Reading([REQUEST_OF_4, Heartbeat(1).encode()], 2)

    @pytest.mark.parametrize(
        ("header", "code"),
        [
            ((48, 10, 91, 1), 0),
            ((56, 10, 91, 2), 0),
            ((48, 10, 92, 1), 2),
            ((48, 10, 91, 0), 2),
            ((48, 12, 91, 1), 3),
            ((49, 10, 91, 1), 1),
            ((56, 10, 91, 1), 1),
            ((40, 10, 91, 2), 1),
            ((72, 1, 91, 1), 0),
            ((80, 1, 91, 1), 1),
            ((80, 1, 91, 3), 0),
        ],
    )
    def test_headers(self, header: tuple[int, int, int, int], code: int) -> None:
        assert read_stream(struct.pack("<HHHH", *header), 4).code == code

    def test_what_is_owed(self) -> None:
        served = Served(4, 2, "model", 8, doubling=False)
        hello = Hello(features=4, flags=1).encode()
        talk = owed(hello + REQUEST_OF_4 + Heartbeat(1).encode() + Goodbye().encode() + REQUEST_OF_4, served)
        assert [one.template for one in talk.due] == [2, 11, 4, 5]
        assert (talk.closes, talk.conflates) == (True, True)
        assert owed(hello + hello, served).due[1:] == [Due(3, codes=frozenset({3}))]
        assert owed(hello + bytes(8), served).due[1:] == [Due(3, codes=frozenset({2}))]
        assert owed(hello[:79], served).due == []

    @pytest.mark.parametrize(
        ("hello", "codes"),
        [
            (Hello(features=5), {4}),
            (Hello(outputs=3), {4}),
            (Hello(model_name="other"), {5}),
            (Hello(transport=1), {6}),
            (Hello(flags=2), {4}),
            (Hello(features=5, model_name="other", transport=1), {4, 5, 6}),
            (Heartbeat(1), {3}),
        ],
    )
    def test_hellos_that_are_refused(self, hello: Hello | Heartbeat, codes: set[int]) -> None:
        served = Served(4, 2, "model", 8, doubling=False)
        assert owed(hello.encode(), served).due == [Due(3, codes=frozenset(codes))]


def test_statuses_are_the_contracts() -> None:
    """The judge has numbers of its own."""
    from tests.fuzz import conversation

    for status in Status:
        if status is not Status.DRAINING:
            assert getattr(conversation, status.name) == status
