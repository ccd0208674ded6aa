"""Streams of one client, most of them spoilt, and what the contract makes of them.

`read_stream` is written from the contract and from nothing else: it says which whole frames come before the
first wrong byte of a stream, and which code answers that byte.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sigd.wire.fields import FEATURES_MAX
from sigd.wire.framer import FRAME_BYTES_MAX
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome

FIXED_BYTES: Final = {1: 80, 2: 128, 3: 80, 4: 16, 5: 16, 6: 80}
REQUEST: Final = 10
RESPONSE: Final = 11
STREAM_BYTES_MAX: Final = 200_000


class Failed(Exception):
    """A reader did not do what the contract says."""


def demand(condition: bool, what: str) -> None:
    """An assert that `python -O` keeps."""
    if not condition:
        raise Failed(what)


@dataclass(frozen=True)
class Reading:
    """The whole frames before the first wrong byte, and the Reject code of that byte; 0 where none is
    wrong."""

    frames: list[bytes]
    code: int


def read_stream(stream: bytes, features: int | None) -> Reading:
    """By the contract. `features` checks the size of requests; None leaves that open, as a handshake does."""
    frames: list[bytes] = []
    offset = 0
    while len(stream) - offset >= 8:
        block_bytes, template, schema, version = struct.unpack_from("<HHHH", stream, offset)
        size = block_bytes + 8
        if schema != 91 or version < 1:
            return Reading(frames, 2)
        if template not in FIXED_BYTES and template not in (REQUEST, RESPONSE):
            return Reading(frames, 3)
        known = FIXED_BYTES.get(template, size)
        if template == REQUEST and features is not None:
            known = (40 + 4 * features + 7) // 8 * 8
        if size % 8 or size < known or (version == 1 and size != known):
            return Reading(frames, 1)
        if len(stream) - offset < size:
            break
        frames.append(stream[offset : offset + size])
        offset += size
    return Reading(frames, 0)


def frame(template: int, block: bytes, version: int = 1) -> bytes:
    """Any frame at all."""
    return struct.pack("<HHHH", len(block), template, 91, version) + block


class Traffic:
    """Frames of one client and ways to spoil them, all drawn from `draw`."""

    def __init__(self, draw: random.Random, features: int) -> None:
        self._draw = draw
        self._features = features
        self._pool = [self._request() for _ in range(8)]
        self._odd = [
            Heartbeat(draw.getrandbits(64)).encode(),
            Heartbeat(draw.getrandbits(64)).encode(),
            frame(4, Heartbeat(7).encode()[8:] + bytes(8), version=2),
            Goodbye(draw.randrange(3)).encode(),
            Hello(features=features).encode(),
            Welcome(1, 1, 1, 1, 1, 1, bytes(32), "x").encode(),
            Reject(1, "x").encode(),
            frame(RESPONSE, bytes(64)),
        ]
        # A request of a newer version has a longer block, as long as a frame may be.
        longer = min(8 * draw.randrange(1, 9), FRAME_BYTES_MAX - len(self._pool[0]))
        self._newer = [
            frame(REQUEST, old[8:] + b"\xee" * longer, version=draw.randrange(2, 5)) for old in self._pool[:2]
        ]

    def _request(self) -> bytes:
        draw = self._draw
        values = np.frombuffer(draw.randbytes(4 * self._features), np.int8, self._features).astype(np.float32)
        if draw.random() < 0.1:
            where = draw.randrange(min(self._features, draw.choice((2, FEATURES_MAX))))
            values[where] = draw.choice([np.nan, np.inf, -np.inf, 3e38, 3e38, 1e-41])
        deadline_ns = draw.choice([0, 0, 0, 1, draw.randrange(1_000, 30_000), 2**64 - 1])
        head = struct.pack("<QQQIHH", 0, draw.getrandbits(64), deadline_ns, draw.randrange(4), 0, 0)
        block = head + values.tobytes()
        return frame(REQUEST, block + bytes(-len(block) % 8))

    def stream(self) -> bytearray:
        """Frames back to back, their sequences counting up, and mostly something wrong with them."""
        draw = self._draw
        frames = bytearray()
        # mostly as many frames as a batch or two have; now and then more than a daemon takes in at once
        most = 40 if draw.random() < 0.98 else 4_000
        most = max(1, min(most, STREAM_BYTES_MAX // len(self._pool[0])))
        for sequence in range(draw.randrange(1, most + 1)):
            luck = draw.random()
            if luck < 0.04:
                # Goodbye and what a client may not send would end nearly every stream early: rarer still
                odd = draw.choice(self._odd if luck < 0.005 else self._odd[:3])
                frames += odd
                continue
            one = bytearray(draw.choice(self._newer if luck < 0.1 else self._pool))
            struct.pack_into("<Q", one, 8, sequence)
            frames += one
        if draw.random() < 0.03:
            burst = draw.randrange(17, 60) * draw.choice(self._odd[:3])
            frames[:] = burst + frames if draw.random() < 0.5 else frames + burst
        for _ in range(draw.choice((0, 1, 1, 1, 2, 5))):
            draw.choice(SPOILERS)(draw, frames)
        return frames


def flip_bits(draw: random.Random, stream: bytearray) -> None:
    for _ in range(draw.randrange(1, 5)):
        if stream:
            stream[draw.randrange(len(stream))] ^= 1 << draw.randrange(8)


def cut_off(draw: random.Random, stream: bytearray) -> None:
    del stream[draw.randrange(len(stream) + 1) :]


def cut_out(draw: random.Random, stream: bytearray) -> None:
    start = draw.randrange(len(stream) + 1)
    del stream[start : start + draw.choice((1, 4, 8, 64, 500))]


def repeat(draw: random.Random, stream: bytearray) -> None:
    start = draw.randrange(len(stream) + 1)
    part = stream[start : start + draw.choice((1, 8, 56, 300))]
    at = draw.randrange(len(stream) + 1)
    stream[at:at] = part


def overwrite(draw: random.Random, stream: bytearray) -> None:
    start = draw.randrange(len(stream) + 1)
    noise = draw.randbytes(draw.choice((1, 2, 8, 40, 200)))
    stream[start : start + len(noise)] = noise


def append_noise(draw: random.Random, stream: bytearray) -> None:
    stream += draw.randbytes(draw.choice((1, 7, 8, 9, 100, 1000)))


def write_header(draw: random.Random, stream: bytearray) -> None:
    """A plausible header in a random place, most often where one stands."""
    words = len(stream) // 8
    if not words:
        return
    offset = 0
    while draw.random() < 0.9 and len(stream) - offset >= 8:
        step = struct.unpack_from("<H", stream, offset)[0] + 8
        if len(stream) - offset - step < 8:
            break
        offset += step
    if draw.random() < 0.2:
        offset = 8 * draw.randrange(words)
    values = [
        draw.choice((0, 7, 8, 64, 72, 120, 0x7FF8, 0xFFF0, 0xFFF8, 0xFFFF, draw.getrandbits(16))),
        draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 10, 11, 12, 0xFFFF)),
        draw.choice((0, 90, 91, 91, 91, 92, 0x5B00)),
        draw.choice((0, 1, 1, 2, 3, 0xFFFF)),
    ]
    field = draw.randrange(5)
    if field == 4:
        struct.pack_into("<HHHH", stream, offset, *values)
    else:
        struct.pack_into("<H", stream, offset + 2 * field, values[field])


def drown(draw: random.Random, stream: bytearray) -> None:
    stream[:] = draw.randbytes(draw.randrange(2000))


SPOILERS: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (
    *(flip_bits, cut_off, cut_out, repeat, overwrite, append_noise),
    *(write_header, write_header, write_header, drown),
)


def chunks(draw: random.Random, stream: bytes) -> Iterator[bytes]:
    """The stream as reads: each a frame, as far as there are frames, or of a size that is drawn for each
    stream."""
    by_frame = draw.random() < 0.25
    largest = max(draw.choice((3, 60, 400, 5_000, 100_000)), len(stream) // 300)
    offset = 0
    while offset < len(stream):
        if by_frame and len(stream) - offset >= 2:
            size = struct.unpack_from("<H", stream, offset)[0] + 8
        else:
            size = draw.randrange(1, largest + 1)
        yield stream[offset : offset + size]
        offset += size
