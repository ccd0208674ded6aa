"""From a stream of bytes to frames, without I/O: headers checked, frames cut, bytes moved as little as
possible.

One invariant holds at every step: 0 <= head <= tail <= capacity; the bytes between head and tail have arrived
and were not taken yet.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.fields import FRAME_ALIGNMENT_BYTES, HEADER_BYTES, SCHEMA_ID, SCHEMA_VERSION
from sigd.wire.status import RejectCode

FRAME_BYTES_MAX: Final = (0xFFFF + HEADER_BYTES) // FRAME_ALIGNMENT_BYTES * FRAME_ALIGNMENT_BYTES

_NAMES: Final = {message.template_id: message.name for message in fields.MESSAGES}
_FIXED_BYTES: Final = {
    message.template_id: message.frame_bytes for message in fields.MESSAGES if message.frame_bytes is not None
}


class Header(NamedTuple):
    """A checked header. `frame_bytes` is the length of the whole frame, these 8 bytes included."""

    frame_bytes: int
    template_id: int
    version: int


class Frame(NamedTuple):
    """One whole frame. `block` is what follows the header, copied out of the stream."""

    header: Header
    block: bytes


def check_header(word: int) -> Header:
    """Check the 8 header bytes, given as one little-endian u64.

    Frames of a known fixed size must have exactly that size in this version and at least that size in a newer
    one. The sizes of requests and responses depend on the model and are the caller's to check.

    Raises:
        FrameError: with the code that answers it: another schema or an older version, an unknown template,
            a length that is wrong or no multiple of 8.
    """
    frame_bytes = (word & 0xFFFF) + HEADER_BYTES
    template_id = word >> 16 & 0xFFFF
    schema_id = word >> 32 & 0xFFFF
    version = word >> 48
    if schema_id != SCHEMA_ID:
        raise FrameError(RejectCode.UNSUPPORTED_VERSION, f"schema {schema_id}, expected {SCHEMA_ID}")
    if version < SCHEMA_VERSION:
        raise FrameError(
            RejectCode.UNSUPPORTED_VERSION, f"schema version {version}, expected at least {SCHEMA_VERSION}"
        )
    if template_id not in _NAMES:
        raise FrameError(RejectCode.UNEXPECTED_TEMPLATE, f"unknown template {template_id}")
    if frame_bytes % FRAME_ALIGNMENT_BYTES:
        raise FrameError(
            RejectCode.MALFORMED_FRAME, f"frame of {frame_bytes} bytes, expected a multiple of 8"
        )
    expected_bytes = _FIXED_BYTES.get(template_id)
    if expected_bytes is not None:
        check_length(_NAMES[template_id], Header(frame_bytes, template_id, version), expected_bytes)
    return Header(frame_bytes, template_id, version)


def check_length(name: str, header: Header, expected_bytes: int) -> None:
    """Exactly the expected length in this version, at least that in a newer one; raises FrameError
    otherwise."""
    if header.version == SCHEMA_VERSION:
        if header.frame_bytes != expected_bytes:
            raise FrameError(
                RejectCode.MALFORMED_FRAME, f"{name} of {header.frame_bytes} bytes, expected {expected_bytes}"
            )
    elif header.frame_bytes < expected_bytes:
        raise FrameError(
            RejectCode.MALFORMED_FRAME,
            f"{name} v{header.version} of {header.frame_bytes} bytes, expected >= {expected_bytes}",
        )


class Framer:
    """Cuts a byte stream into frames of any kind: `writable()` -> bytes come in -> `arrived()` ->
    `next_frame()`.

    For the few frames of a handshake, and for clients; a daemon takes its requests through RequestInbox.
    """

    def __init__(self, capacity_bytes: int = 2 * FRAME_BYTES_MAX) -> None:
        """Raises ValueError where not even one frame would fit."""
        if capacity_bytes < FRAME_BYTES_MAX:
            raise ValueError(f"capacity of {capacity_bytes} bytes, expected at least {FRAME_BYTES_MAX}")
        self._view = memoryview(bytearray(capacity_bytes))
        self._head = 0
        self._tail = 0

    def writable(self) -> memoryview:
        """Where the next bytes belong; never empty. Frames taken before stay valid, they were copied out."""
        if self._head == self._tail:
            self._head = self._tail = 0
        elif len(self._view) - self._tail < FRAME_BYTES_MAX:
            pending = self._tail - self._head
            self._view[:pending] = self._view[self._head : self._tail]
            self._head, self._tail = 0, pending
        return self._view[self._tail :]

    def arrived(self, count_bytes: int) -> None:
        """`count_bytes` were written at the start of `writable()`."""
        assert 0 <= count_bytes <= len(self._view) - self._tail
        self._tail += count_bytes

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None where bytes are missing.

        Raises:
            FrameError: the header that stands next is no valid one; the stream cannot be read any further.
        """
        have_bytes = self._tail - self._head
        if have_bytes < HEADER_BYTES:
            return None
        start = self._head
        header = check_header(int.from_bytes(self._view[start : start + HEADER_BYTES], "little"))
        if have_bytes < header.frame_bytes:
            return None
        self._head = start + header.frame_bytes
        return Frame(header, bytes(self._view[start + HEADER_BYTES : self._head]))

    def rest(self) -> bytes:
        """The bytes that arrived and were not taken; they are taken by this."""
        taken = bytes(self._view[self._head : self._tail])
        self._head = self._tail = 0
        return taken
