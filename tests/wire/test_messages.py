"""Control messages: there and back, cut in every way, and what is no message."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire.errors import FrameError
from sigd.wire.framer import Frame, Framer
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome, fit_utf8
from sigd.wire.status import RejectCode

Message = Hello | Welcome | Reject | Heartbeat | Goodbye
KINDS: dict[int, Any] = {1: Hello, 2: Welcome, 3: Reject, 4: Heartbeat, 5: Goodbye}
FRAME_BYTES = {1: 80, 2: 128, 3: 80, 4: 16, 5: 16}

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


def text_of(size_bytes: int) -> st.SearchStrategy[str]:
    """Text that fits and does not end in what padding is made of."""
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=size_bytes).filter(
        lambda text: len(text.encode()) <= size_bytes
    )


hellos = st.builds(
    Hello,
    features=u32,
    outputs=u32,
    transport=u16,
    flags=u16,
    ring_slots=u32,
    client_name=text_of(24),
    model_name=text_of(32),
)
welcomes = st.builds(
    Welcome,
    features=u32,
    outputs=u32,
    in_flight_max=u32,
    model_generation=u32,
    daemon_pid=u64,
    clock_ns=u64,
    model_sha256=st.binary(min_size=32, max_size=32),
    model_name=text_of(32),
    transport=u16,
    flags=u16,
    ring_slots=u32,
    request_stride=u32,
    response_stride=u32,
)
messages = st.one_of(
    hellos,
    welcomes,
    st.builds(Reject, code=u16, reason=text_of(64)),
    st.builds(Heartbeat, clock_ns=u64),
    st.builds(Goodbye, code=u16),
)


def take_messages(framer: Framer) -> list[Message]:
    found = []
    while (frame := framer.next_frame()) is not None:
        found.append(KINDS[frame.header.template_id].decode(frame.block))
    return found


@given(st.lists(messages, max_size=4))
def test_round_trip_in_every_cut(three_ways: Callable[..., list[object]], sent: list[Message]) -> None:
    assert three_ways(Framer, take_messages, b"".join(message.encode() for message in sent)) == sent


@given(messages, st.integers(2, 2**16 - 1), st.integers(1, 5))
def test_a_newer_versions_longer_block_is_read(message: Message, version: int, longer_words: int) -> None:
    frame = bytearray(message.encode() + b"\xee" * 8 * longer_words)
    struct.pack_into("<H", frame, 0, len(frame) - 8)
    struct.pack_into("<H", frame, 6, version)
    framer = Framer()
    framer.writable()[: len(frame)] = frame
    framer.arrived(len(frame))
    assert take_messages(framer) == [message]


def test_bytes_of_each_message() -> None:
    """Against frames typed by hand from the contract."""
    hello = Hello(
        features=64, outputs=3, transport=1, flags=1, ring_slots=256, client_name="eng", model_name="lob"
    )
    assert hello.encode() == (
        bytes([72, 0, 1, 0, 91, 0, 1, 0])
        + bytes([64, 0, 0, 0, 3, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0])
        + b"eng".ljust(24, b"\0")
        + b"lob".ljust(32, b"\0")
    )
    welcome = Welcome(64, 3, 256, 2, 0x11, 0x22, bytes(range(32)), "lob", 1, 1, 512, 320, 128)
    assert welcome.encode() == (
        bytes([120, 0, 2, 0, 91, 0, 1, 0])
        + bytes([64, 0, 0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0])
        + bytes([0x11, 0, 0, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0])
        + bytes([1, 0, 1, 0, 0, 2, 0, 0, 64, 1, 0, 0, 128, 0, 0, 0])
        + bytes(8)
        + bytes(range(32))
        + b"lob".ljust(32, b"\0")
    )
    assert Reject(4, "no").encode() == (
        bytes([72, 0, 3, 0, 91, 0, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0]) + b"no".ljust(64, b"\0")
    )
    assert Heartbeat(0x0102).encode() == bytes([8, 0, 4, 0, 91, 0, 1, 0, 2, 1, 0, 0, 0, 0, 0, 0])
    assert Goodbye(2).encode() == bytes([8, 0, 5, 0, 91, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0])


@given(messages)
def test_every_message_has_the_contracts_size(message: Message) -> None:
    frame = message.encode()
    block_length, template_id, schema_id, version = struct.unpack_from("<HHHH", frame)
    assert len(frame) == block_length + 8 == FRAME_BYTES[template_id]
    assert (schema_id, version) == (91, 1)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_a_short_block_is_malformed(kind: Any) -> None:
    size_bytes = FRAME_BYTES[next(key for key, value in KINDS.items() if value is kind)] - 8
    kind.decode(bytes(size_bytes))
    for short_bytes in (0, 1, size_bytes - 1):
        with pytest.raises(FrameError, match=rf"{kind.__name__} block of {short_bytes} bytes") as caught:
            kind.decode(bytes(short_bytes))
        assert caught.value.code == RejectCode.MALFORMED_FRAME


@pytest.mark.parametrize(
    ("frame", "kind", "offset", "name"),
    [
        (Hello(), Hello, 16, "client_name"),
        (Hello(), Hello, 40, "model_name"),
        (Reject(1, ""), Reject, 8, "reason"),
        (Welcome(1, 1, 1, 1, 1, 1, bytes(32), ""), Welcome, 88, "model_name"),
    ],
)
def test_a_name_that_is_not_utf8_is_malformed(frame: Message, kind: Any, offset: int, name: str) -> None:
    block = bytearray(frame.encode()[8:])
    block[offset] = 0xFF
    with pytest.raises(FrameError, match=f"{name} is not UTF-8") as caught:
        kind.decode(block)
    assert caught.value.code == RejectCode.MALFORMED_FRAME


@given(st.text(), st.integers(0, 64))
def test_fit_utf8_cuts_at_a_character(text: str, size_bytes: int) -> None:
    fitted = fit_utf8(text, size_bytes)
    assert len(fitted) <= size_bytes
    assert text.encode("utf-8", "replace").startswith(fitted)
    kept = fitted.decode()
    if len(text.encode("utf-8", "replace")) > size_bytes:
        following = text.encode("utf-8", "replace").decode()[len(kept)]
        assert len(fitted) + len(following.encode()) > size_bytes, "nothing more would have fitted"


def test_long_names_and_reasons_are_cut() -> None:
    hello = Hello(client_name="ä" * 13, model_name="m" * 40)
    assert Hello.decode(hello.encode()[8:]) == Hello(client_name="ä" * 12, model_name="m" * 32)
    assert Reject.decode(Reject(1, "é" * 40).encode()[8:]).reason == "é" * 32
    assert Reject.decode(Reject(1, "x" + "é" * 40).encode()[8:]).reason == "x" + "é" * 31


def test_a_block_may_be_any_bytes_like() -> None:
    block = Goodbye(1).encode()[8:]
    frame = Frame.__new__(Frame, None, block)  # type: ignore[arg-type]
    assert (
        Goodbye.decode(frame.block) == Goodbye.decode(memoryview(block)) == Goodbye.decode(bytearray(block))
    )
