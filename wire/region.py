"""A shared-memory region: where its parts stand, and its header. No I/O: a region is a memoryview here."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sigd.wire.errors import FrameError
from sigd.wire.fields import (
    REGION,
    REGION_HEADER_BYTES,
    REGION_LAYOUT_VERSION,
    REGION_MAGIC,
    SIZE_BYTES,
    SLOT_ALIGNMENT_BYTES,
)
from sigd.wire.layout import request_frame_bytes, response_frame_bytes, round_up
from sigd.wire.status import RejectCode

RING_SLOTS_MAX: Final = 65_536
STRIDE_BYTES_MAX: Final = 65_536
OFFSETS: Final = {field.name: field.offset for field in REGION}
"""Bytes from the start of the region, by the names of fields.REGION."""

_HEADER: Final = struct.Struct("<IIIIIII")
_TWO_LINES_BYTES: Final = 128


def _assert_table() -> None:
    """The constant fields are the struct; the others stand each on two cache lines of their own."""
    constant, live = REGION[:7], REGION[7:]
    assert [field.offset for field in constant] == list(range(0, _HEADER.size, 4))
    assert {field.kind for field in constant} == {"u32"}
    assert all(field.offset % _TWO_LINES_BYTES == 0 for field in live)
    assert len({field.offset for field in REGION}) == len(REGION)
    assert REGION[-1].offset + SIZE_BYTES[REGION[-1].kind] <= REGION_HEADER_BYTES


_assert_table()


@dataclass(frozen=True, slots=True)
class RegionLayout:
    """Where everything stands in a region.

    Attributes:
        ring_slots: slots of each ring, a power of two.
        features, outputs: per request and per response.
        request_stride, response_stride: bytes per slot, multiples of 64.
    """

    ring_slots: int
    features: int
    outputs: int
    request_stride: int
    response_stride: int

    @property
    def response_offset(self) -> int:
        """Bytes from the start of the region to the response slots."""
        return REGION_HEADER_BYTES + round_up(self.ring_slots * self.request_stride, REGION_HEADER_BYTES)

    @property
    def region_bytes(self) -> int:
        """Bytes of the whole region, a multiple of a page."""
        slots_bytes = self.ring_slots * self.response_stride
        return round_up(self.response_offset + slots_bytes, REGION_HEADER_BYTES)


def region_layout(ring_slots: int, features: int, outputs: int) -> RegionLayout:
    """The layout of a region for that many slots a ring and a model of that shape.

    Raises:
        ValueError: ring_slots is no power of two within 1..65,536, or no frame has that shape.
    """
    if not 1 <= ring_slots <= RING_SLOTS_MAX or ring_slots & (ring_slots - 1):
        raise ValueError(f"a ring has a power of two of slots, at most {RING_SLOTS_MAX}, not {ring_slots}")
    return RegionLayout(
        ring_slots,
        features,
        outputs,
        round_up(request_frame_bytes(features), SLOT_ALIGNMENT_BYTES),
        round_up(response_frame_bytes(outputs), SLOT_ALIGNMENT_BYTES),
    )


def violation(reason: str) -> FrameError:
    """What a side is told that writes into a region outside the rules."""
    return FrameError(RejectCode.PROTOCOL_VIOLATION, reason)


def write_header(view: memoryview, layout: RegionLayout) -> None:
    """Make zeroed memory a region: what a daemon does.

    Raises:
        ValueError: `view` is shorter than layout.region_bytes.
    """
    if len(view) < layout.region_bytes:
        raise ValueError(f"a region of {len(view)} bytes, expected {layout.region_bytes}")
    _HEADER.pack_into(
        view,
        0,
        REGION_MAGIC,
        REGION_LAYOUT_VERSION,
        layout.ring_slots,
        layout.request_stride,
        layout.response_stride,
        layout.features,
        layout.outputs,
    )


def read_header(view: memoryview) -> RegionLayout:
    """The layout of a region that a daemon made: what a client does.

    Raises:
        FrameError: it is no region of this layout version, or its numbers do not agree with each other.
    """
    if len(view) < REGION_HEADER_BYTES:
        raise violation(f"region of {len(view)} bytes, expected at least {REGION_HEADER_BYTES}")
    magic, version, ring_slots, *strides, features, outputs = _HEADER.unpack_from(view)
    if magic != REGION_MAGIC:
        raise violation(f"region begins with {magic:#x}, expected {REGION_MAGIC:#x}")
    if version != REGION_LAYOUT_VERSION:
        raise violation(f"region layout {version}, expected {REGION_LAYOUT_VERSION}")
    try:
        smallest = region_layout(ring_slots, features, outputs)
    except ValueError as error:
        raise violation(f"region: {error}") from None
    for stride, least in zip(strides, (smallest.request_stride, smallest.response_stride), strict=True):
        # A newer daemon's frames may be longer.
        if stride < least or stride % SLOT_ALIGNMENT_BYTES or stride > STRIDE_BYTES_MAX:
            raise violation(f"region stride of {stride} bytes, expected {least} or a longer multiple of 64")
    layout = RegionLayout(ring_slots, features, outputs, *strides)
    # A daemon need not round the last slots up to a page.
    if len(view) < layout.response_offset + ring_slots * layout.response_stride:
        raise violation(f"region of {len(view)} bytes, expected {layout.region_bytes}")
    return layout
