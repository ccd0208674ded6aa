"""Regions and rings against numbers typed from the contract, and against a peer that writes nonsense."""

from __future__ import annotations

import platform
import struct

import numpy as np
import pytest

from sigd.wire.errors import FrameError
from sigd.wire.layout import header_word, request_frame_bytes, response_frame_bytes
from sigd.wire.region import RegionLayout, region_layout
from sigd.wire.ring import Region, RingConsumer, RingProducer, make_fence, why_not_here
from sigd.wire.status import RejectCode

FEATURES, OUTPUTS, SLOTS = 5, 3, 4
REQUEST_BYTES, RESPONSE_BYTES = 64, 72
REQUEST_HEAD, REQUEST_TAIL, RESPONSE_HEAD, RESPONSE_TAIL = 128, 256, 384, 512
DAEMON_SLEEPING, CLIENT_SLEEPING, HEARTBEAT = 640, 768, 896


class Memory:
    """A region of four slots, its daemon's and its client's ends, and its raw bytes."""

    def __init__(self) -> None:
        self.layout = region_layout(SLOTS, FEATURES, OUTPUTS)
        self.bytes = bytearray(self.layout.region_bytes)
        self.daemon = Region.create(memoryview(self.bytes), self.layout)
        self.client = Region.attach(memoryview(self.bytes))

    def u64(self, offset: int) -> int:
        value: int = struct.unpack_from("<Q", self.bytes, offset)[0]
        return value

    def set_u64(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.bytes, offset, value)

    def u32(self, offset: int) -> int:
        value: int = struct.unpack_from("<I", self.bytes, offset)[0]
        return value


@pytest.fixture
def memory() -> Memory:
    return Memory()


def frames(*numbers: int, template_id: int = 10, frame_bytes: int = REQUEST_BYTES) -> bytes:
    """Frames that differ in their sequence, side by side."""
    head = struct.pack("<Q", header_word(template_id, frame_bytes))
    return b"".join(head + struct.pack("<Q", number) + bytes(frame_bytes - 16) for number in numbers)


def take(ring: RingConsumer, rows_max: int = 100) -> list[int]:
    """The sequences of what is there."""
    into = bytearray(8 * ring.frame_bytes)
    rows = ring.take(memoryview(into), rows_max)
    return [struct.unpack_from("<Q", into, row * ring.frame_bytes + 8)[0] for row in range(rows)]


# Layout


def test_a_region_is_laid_out_as_the_contract_says() -> None:
    # n = 64: a request of 296 bytes in a slot of 320; m = 3: a response of 72 in a slot of 128
    layout = region_layout(256, 64, 3)
    assert layout == RegionLayout(256, 64, 3, 320, 128)
    assert layout.response_offset == 4096 + 81_920
    assert layout.region_bytes == 4096 + 81_920 + 32_768
    # slots whose sum is no multiple of a page: both parts are rounded up
    layout = region_layout(2, 3, 1)
    assert layout == RegionLayout(2, 3, 1, 64, 64)
    assert (layout.response_offset, layout.region_bytes) == (8192, 12_288)


@pytest.mark.parametrize("ring_slots", [-1, 0, 3, 12, 131_072])
def test_slots_that_no_ring_has(ring_slots: int) -> None:
    with pytest.raises(ValueError, match=f"power of two of slots, at most 65536, not {ring_slots}"):
        region_layout(ring_slots, 1, 1)


def test_the_header_is_the_contracts(memory: Memory) -> None:
    assert bytes(memory.bytes[:28]) == b"SGD1" + struct.pack("<6I", 1, SLOTS, 64, 128, FEATURES, OUTPUTS)
    assert memory.client.layout == memory.layout
    assert not any(memory.bytes[28:4096])


def test_the_daemons_heartbeat(memory: Memory) -> None:
    memory.daemon.daemon_heartbeat_ns = 2**63 + 5
    assert memory.u64(HEARTBEAT) == 2**63 + 5
    assert memory.client.daemon_heartbeat_ns == 2**63 + 5


def test_too_little_memory_is_no_region() -> None:
    layout = region_layout(SLOTS, FEATURES, OUTPUTS)
    with pytest.raises(ValueError, match=f"region of {layout.region_bytes - 1} bytes, expected 12288"):
        Region.create(memoryview(bytearray(layout.region_bytes - 1)), layout)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, 0x31444752, "begins with 0x31444752, expected 0x31444753"),
        (4, 2, "layout 2, expected 1"),
        (8, 0, "power of two"),
        (8, 5, "power of two"),
        (8, 1 << 31, "power of two"),
        (8, 64, "region of 12288 bytes, expected"),
        (12, 0, "stride of 0 bytes, expected 64"),
        (12, 96, "stride of 96 bytes, expected 64 or a longer multiple"),
        (12, 1 << 30, "stride of 1073741824 bytes"),
        (16, 64, "stride of 64 bytes, expected 128"),
        (20, 0, "1 to 16373 features, not 0"),
        (20, 40, "stride of 64 bytes, expected 256"),
        (24, 0xFFFF_FFFF, "1 to 16370 outputs"),
    ],
)
def test_a_client_refuses_what_is_no_region(memory: Memory, offset: int, value: int, reason: str) -> None:
    struct.pack_into("<I", memory.bytes, offset, value)
    with pytest.raises(FrameError, match=reason) as caught:
        Region.attach(memoryview(memory.bytes))
    assert caught.value.code is RejectCode.PROTOCOL_VIOLATION


def test_a_region_cut_short(memory: Memory) -> None:
    for size in (0, 27, 4095, memory.layout.response_offset + SLOTS * 128 - 1):
        with pytest.raises(FrameError, match=f"region of {size} bytes"):
            Region.attach(memoryview(memory.bytes)[:size])
    # the last page need not be whole
    Region.attach(memoryview(memory.bytes)[: memory.layout.response_offset + SLOTS * 128])


def test_a_newer_daemon_may_have_longer_slots() -> None:
    layout = RegionLayout(SLOTS, FEATURES, OUTPUTS, 128, 256)
    memory = bytearray(layout.region_bytes)
    Region.create(memoryview(memory), layout)
    assert Region.attach(memoryview(memory)).layout == layout


def test_where_the_rings_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert why_not_here() == ""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "x86-64, and this machine is aarch64" in why_not_here()


# Frames


def test_the_four_counters_and_who_moves_them(memory: Memory) -> None:
    requests_out, requests_in = memory.client.requests_out(), memory.daemon.requests_in()
    responses_out, responses_in = memory.daemon.responses_out(), memory.client.responses_in()
    requests_out.publish(frames(1, 2, 3))
    assert memory.u64(REQUEST_HEAD) == 3
    assert take(requests_in, rows_max=2) == [1, 2]
    assert memory.u64(REQUEST_TAIL) == 2
    responses_out.publish(frames(1, template_id=11, frame_bytes=RESPONSE_BYTES))
    assert memory.u64(RESPONSE_HEAD) == 1
    assert take(responses_in) == [1]
    assert memory.u64(RESPONSE_TAIL) == 1


def test_count_c_lives_in_slot_c_mod_slots(memory: Memory) -> None:
    requests_out, requests_in = memory.client.requests_out(), memory.daemon.requests_in()
    for number in range(SLOTS + 2):
        requests_out.publish(frames(number))
        assert take(requests_in) == [number]
    slots = [memory.u64(4096 + slot * 64 + 8) for slot in range(SLOTS)]
    assert slots == [4, 5, 2, 3]
    responses = memory.daemon.responses_out()
    responses.publish(frames(7, 8, template_id=11, frame_bytes=RESPONSE_BYTES))
    assert [memory.u64(memory.layout.response_offset + slot * 128 + 8) for slot in range(SLOTS)] == [
        7,
        8,
        0,
        0,
    ]


@pytest.mark.parametrize("burst", [1, 2, 3, 9, 16])
def test_bursts_of_every_size_wrap(burst: int) -> None:
    layout = region_layout(16, FEATURES, OUTPUTS)
    memory = memoryview(bytearray(layout.region_bytes))
    out, into = Region.create(memory, layout).requests_out(), Region.attach(memory).requests_in()
    buffer = memoryview(bytearray(16 * REQUEST_BYTES))
    for first in range(0, 5 * burst, burst):
        sent = frames(*range(first, first + burst))
        out.publish(sent)
        assert into.take(buffer, 16) == burst
        assert bytes(buffer[: len(sent)]) == sent


def test_no_more_than_there_is_room_for(memory: Memory) -> None:
    requests_out, requests_in = memory.client.requests_out(), memory.daemon.requests_in()
    assert requests_out.room() == SLOTS
    requests_out.publish(frames(1, 2, 3))
    assert requests_out.room() == 1
    with pytest.raises(ValueError, match="2 frames, the ring has room for 1"):
        requests_out.publish(frames(4, 5))
    assert memory.u64(REQUEST_HEAD) == 3
    assert take(requests_in) == [1, 2, 3]
    requests_out.publish(frames(4, 5, 6, 7))
    with pytest.raises(ValueError, match="1 frames, the ring has room for 0"):
        requests_out.publish(frames(8))


def test_half_a_frame_is_not_published(memory: Memory) -> None:
    with pytest.raises(ValueError, match="65 bytes, expected a multiple of 64"):
        memory.client.requests_out().publish(bytes(65))
    assert memory.u64(REQUEST_HEAD) == 0


def test_no_more_than_the_reader_holds(memory: Memory) -> None:
    memory.client.requests_out().publish(frames(1, 2, 3))
    requests_in = memory.daemon.requests_in()
    assert requests_in.take(memoryview(bytearray(REQUEST_BYTES - 1)), 9) == 0
    assert requests_in.take(memoryview(bytearray(3 * REQUEST_BYTES - 1)), 9) == 2
    assert requests_in.take(memoryview(bytearray(REQUEST_BYTES)), 0) == 0
    assert requests_in.waiting() == 1
    assert take(requests_in) == [3]
    assert requests_in.waiting() == 0


def test_a_longer_frame_of_a_newer_client_is_cut() -> None:
    # three features: 56 bytes in a slot of 64, so that a newer version may append 8
    layout = region_layout(16, 3, 1)
    memory = memoryview(bytearray(layout.region_bytes))
    requests_in = Region.create(memory, layout).requests_in()
    buffer = memoryview(bytearray(16 * 56))
    for burst in (1, 12):
        for slot in range(16):
            struct.pack_into("<QQ", memory, 4096 + slot * 64, header_word(10, 64, version=2), slot)
        struct.pack_into("<Q", memory, REQUEST_HEAD, requests_in.taken + burst)
        assert requests_in.take(buffer, 16) == burst
        for row in range(burst):
            assert struct.unpack_from("<Q", buffer, row * 56)[0] == header_word(10, 56)


# A peer that writes nonsense


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (7, "head at 7, expected 2..6"),
        (1, "head at 1, expected 2..6"),
        (2**64 - 1, "expected 2..6"),
        (0, "2..6"),
    ],
)
@pytest.mark.parametrize("look", ["take", "waiting"])
def test_a_head_that_no_producer_can_have(memory: Memory, head: int, reason: str, look: str) -> None:
    memory.client.requests_out().publish(frames(1, 2))
    requests_in = memory.daemon.requests_in()
    take(requests_in)
    memory.set_u64(REQUEST_HEAD, head)
    with pytest.raises(FrameError, match=reason) as caught:
        take(requests_in) if look == "take" else requests_in.waiting()
    assert caught.value.code is RejectCode.PROTOCOL_VIOLATION
    assert memory.u64(REQUEST_TAIL) == 2


def test_a_head_that_runs_back_over_frames_not_taken_yet(memory: Memory) -> None:
    memory.client.requests_out().publish(frames(1, 2, 3))
    requests_in = memory.daemon.requests_in()
    assert take(requests_in, rows_max=1) == [1]
    memory.set_u64(REQUEST_HEAD, 2)
    with pytest.raises(FrameError, match=r"head at 2, expected 3\.\.5"):
        take(requests_in)


@pytest.mark.parametrize("tail", [2, 5, 2**64 - 1, 0])
def test_a_tail_that_no_consumer_can_have(memory: Memory, tail: int) -> None:
    responses = memory.daemon.responses_out()
    responses.publish(frames(1, 2, 3, 4, template_id=11, frame_bytes=RESPONSE_BYTES))
    memory.set_u64(RESPONSE_TAIL, 3)
    assert responses.room() == 3
    memory.set_u64(RESPONSE_TAIL, tail)
    with pytest.raises(FrameError, match=rf"tail at {tail}, expected within 3\.\.4") as caught:
        responses.room()
    assert caught.value.code is RejectCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize(
    ("word", "code", "reason"),
    [
        (0, RejectCode.UNSUPPORTED_VERSION, "schema 0, expected 91"),
        (header_word(10, 56), RejectCode.MALFORMED_FRAME, "56 bytes, expected 64"),
        (header_word(10, 72), RejectCode.MALFORMED_FRAME, "72 bytes, expected 64"),
        (header_word(10, 72, version=2), RejectCode.PROTOCOL_VIOLATION, "72 bytes in a slot of 64"),
        (header_word(10, 61), RejectCode.MALFORMED_FRAME, "multiple of 8"),
        (header_word(99, 64), RejectCode.UNEXPECTED_TEMPLATE, "unknown template 99"),
        (header_word(4, 16), RejectCode.PROTOCOL_VIOLATION, "template 4 in a ring of SignalRequest"),
        (header_word(11, 64), RejectCode.PROTOCOL_VIOLATION, "template 11 in a ring of SignalRequest"),
    ],
)
@pytest.mark.parametrize("burst", [1, 3, 12])
def test_a_slot_that_holds_no_request(word: int, code: RejectCode, reason: str, burst: int) -> None:
    layout = region_layout(16, FEATURES, OUTPUTS)
    memory = memoryview(bytearray(layout.region_bytes))
    requests_out, requests_in = (
        Region.create(memory, layout).requests_out(),
        Region.attach(memory).requests_in(),
    )
    requests_out.publish(frames(*range(burst)))
    struct.pack_into("<Q", memory, 4096 + (burst - 1) * 64, word)
    with pytest.raises(FrameError, match=reason) as caught:
        take(requests_in) if burst < 8 else requests_in.take(memoryview(bytearray(16 * 64)), 16)
    assert caught.value.code is code
    assert requests_in.taken == 0


def test_a_slot_that_changes_after_it_was_taken_changes_nothing(memory: Memory) -> None:
    memory.client.requests_out().publish(frames(1))
    buffer = bytearray(REQUEST_BYTES)
    memory.daemon.requests_in().take(memoryview(buffer), 1)
    memory.bytes[4096 : 4096 + 64] = bytes(64)
    assert bytes(buffer) == frames(1)


# Sleeping


@pytest.mark.parametrize("side", ["daemon", "client"])
def test_flags_and_doorbells(memory: Memory, side: str) -> None:
    out: RingProducer
    into: RingConsumer
    if side == "daemon":
        out, into, flag, frame = (
            memory.client.requests_out(),
            memory.daemon.requests_in(),
            DAEMON_SLEEPING,
            frames(1),
        )
    else:
        out, into, flag = memory.daemon.responses_out(), memory.client.responses_in(), CLIENT_SLEEPING
        frame = frames(1, template_id=11, frame_bytes=RESPONSE_BYTES)
    assert out.publish(frame) is False, "awake: no doorbell"
    take(into)
    assert into.may_sleep() is True
    assert memory.u32(flag) == 1
    assert out.publish(frame) is True
    assert out.publish(frame) is True, "until it is awake"
    into.awake()
    assert memory.u32(flag) == 0
    assert into.may_sleep() is False, "something came"
    into.awake()
    assert take(into) == [1, 1]


def test_a_fence_returns_again_and_again() -> None:
    fence = make_fence()
    for _ in range(3):
        fence()


def test_both_frames_are_whole_words() -> None:
    # the bulk copy moves words
    assert all(
        request_frame_bytes(count) % 8 == 0 == response_frame_bytes(count) % 8 for count in range(1, 99)
    )
    assert np.dtype(np.uint64).itemsize == 8
