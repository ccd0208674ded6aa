"""Layouts derived from the field tables: sizes, struct formats, NumPy dtypes. All of it is asserted at
import.

Two kinds of consumer read this: the control messages go through `struct` (a few per session), requests and
responses through arrays of 64-bit words (millions a minute). The word indices below name the columns of
those.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.wire import fields
from sigd.wire.fields import (
    FEATURES_MAX,
    FRAME_ALIGNMENT_BYTES,
    HEADER_BYTES,
    SCHEMA_ID,
    SCHEMA_VERSION,
    SIZE_BYTES,
    Field,
    Message,
)

_STRUCT_CODES: Final = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "f32": "f"}
_NUMPY_CODES: Final = {"u8": "u1", "u16": "<u2", "u32": "<u4", "u64": "<u8", "f32": "<f4"}

BLOCK_LENGTH_MAX: Final = 0xFFFF
REQUEST_FEATURES_OFFSET: Final = 40
RESPONSE_OUTPUTS_OFFSET: Final = 56
OUTPUTS_MAX: Final = ((BLOCK_LENGTH_MAX + HEADER_BYTES) // 8 * 8 - RESPONSE_OUTPUTS_OFFSET) // 4


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def request_frame_bytes(features: int) -> int:
    """Bytes of a whole SignalRequest frame, header and padding included.

    Raises:
        ValueError: `features` is not within 1..16,373.
    """
    if not 1 <= features <= FEATURES_MAX:
        raise ValueError(f"a request carries 1 to {FEATURES_MAX} features, not {features}")
    return round_up(REQUEST_FEATURES_OFFSET + 4 * features, FRAME_ALIGNMENT_BYTES)


def response_frame_bytes(outputs: int) -> int:
    """Bytes of a whole SignalResponse frame, header and padding included.

    Raises:
        ValueError: `outputs` is below 1 or too large for a frame.
    """
    frame_bytes = round_up(RESPONSE_OUTPUTS_OFFSET + 4 * outputs, FRAME_ALIGNMENT_BYTES)
    if outputs < 1 or frame_bytes - HEADER_BYTES > BLOCK_LENGTH_MAX:
        raise ValueError(f"a response carries 1 to {OUTPUTS_MAX} outputs, not {outputs}")
    return frame_bytes


def header_word(template_id: int, frame_bytes: int, version: int = SCHEMA_VERSION) -> int:
    """The 8 header bytes as one little-endian u64, so that a reader compares a header in one step."""
    return (frame_bytes - HEADER_BYTES) | template_id << 16 | SCHEMA_ID << 32 | version << 48


def _resolve(field: Field, features: int, outputs: int) -> int:
    if isinstance(field.count, int):
        return field.count
    return {"features": features, "outputs": outputs}[field.count]


def _frame_bytes(message: Message, features: int, outputs: int) -> int:
    if message.frame_bytes is not None:
        return message.frame_bytes
    if message is fields.SIGNAL_REQUEST:
        return request_frame_bytes(features)
    return response_frame_bytes(outputs)


def frame_dtype(message: Message, features: int = 1, outputs: int = 1) -> np.dtype[np.void]:
    """The whole frame as a NumPy structured dtype, header and padding included; char fields are `S`
    strings."""
    names: list[str] = []
    formats: list[object] = []
    offsets: list[int] = []
    for field in (*fields.HEADER, *message.fields):
        count = _resolve(field, features, outputs)
        is_array = isinstance(field.count, str) or count > 1
        if field.kind == "char":
            formats.append(f"S{count}")
        else:
            formats.append((_NUMPY_CODES[field.kind], (count,)) if is_array else _NUMPY_CODES[field.kind])
        names.append(field.name)
        offsets.append(field.offset)
    itemsize = _frame_bytes(message, features, outputs)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})


def block_struct(message: Message) -> struct.Struct:
    """The block of a message of fixed size (without the header) as a `struct.Struct`; byte arrays are `s`
    fields."""
    if message.frame_bytes is None:
        raise ValueError(f"the size of {message.name} depends on the model")
    codes = [
        f"{field.count}s"
        if field.count != 1 and field.kind in ("char", "u8")
        else _STRUCT_CODES[field.kind] * int(field.count)
        for field in message.fields
    ]
    return struct.Struct("<" + "".join(codes))


def _assert_table(message: Message) -> None:
    """No gap, no overlap, natural alignment, and the size that the contract states."""
    end = HEADER_BYTES
    for field in message.fields:
        size = SIZE_BYTES[field.kind]
        assert field.offset == end, f"{message.name}.{field.name} stands at {field.offset}, expected {end}"
        assert field.offset % size == 0, f"{message.name}.{field.name} is not aligned to {size} bytes"
        end += size * (field.count if isinstance(field.count, int) else 0)
    if message.frame_bytes is not None:
        assert end == message.frame_bytes, f"{message.name} ends at {end}, expected {message.frame_bytes}"
        assert block_struct(message).size == message.frame_bytes - HEADER_BYTES, message.name
        assert message.frame_bytes % FRAME_ALIGNMENT_BYTES == 0, message.name
    else:
        assert isinstance(message.fields[-1].count, str), f"{message.name}: only its last field varies"
        assert frame_dtype(message, 64, 3).itemsize == _frame_bytes(message, 64, 3), message.name


for _message in fields.MESSAGES:
    _assert_table(_message)
assert fields.SIGNAL_REQUEST.fields[-1].offset == REQUEST_FEATURES_OFFSET
assert fields.SIGNAL_RESPONSE.fields[-1].offset == RESPONSE_OUTPUTS_OFFSET
assert request_frame_bytes(FEATURES_MAX) - HEADER_BYTES <= BLOCK_LENGTH_MAX
assert response_frame_bytes(OUTPUTS_MAX) - HEADER_BYTES <= BLOCK_LENGTH_MAX

HEADER_STRUCT: Final = struct.Struct("<HHHH")
assert HEADER_STRUCT.size == HEADER_BYTES

# Columns of a request frame seen as u64 words (frame offset / 8).
REQUEST_HEADER_WORD: Final = 0
REQUEST_SEQUENCE_WORD: Final = 1
REQUEST_CLIENT_TIME_WORD: Final = 2
REQUEST_DEADLINE_WORD: Final = 3
REQUEST_INSTRUMENT_WORD: Final = 4  # low half instrument_id, high half flags and reserved

# Columns of a response frame seen as u64 words.
RESPONSE_SEQUENCE_WORD: Final = 1
RESPONSE_CLIENT_TIME_WORD: Final = 2
RESPONSE_RECEIVE_TIME_WORD: Final = 3
RESPONSE_SEND_TIME_WORD: Final = 4
RESPONSE_INSTRUMENT_WORD: Final = 5  # low half instrument_id, high half model_generation
RESPONSE_OUTCOME_WORD: Final = 6  # infer_ns, status << 32, batch_rows << 48

_BY_NAME = {field.name: field.offset for field in fields.SIGNAL_REQUEST.fields}
assert _BY_NAME["sequence"] == 8 * REQUEST_SEQUENCE_WORD
assert _BY_NAME["client_time_ns"] == 8 * REQUEST_CLIENT_TIME_WORD
assert _BY_NAME["deadline_ns"] == 8 * REQUEST_DEADLINE_WORD
assert _BY_NAME["instrument_id"] == 8 * REQUEST_INSTRUMENT_WORD
_BY_NAME = {field.name: field.offset for field in fields.SIGNAL_RESPONSE.fields}
assert _BY_NAME["sequence"] == 8 * RESPONSE_SEQUENCE_WORD
assert _BY_NAME["client_time_ns"] == 8 * RESPONSE_CLIENT_TIME_WORD
assert _BY_NAME["receive_time_ns"] == 8 * RESPONSE_RECEIVE_TIME_WORD
assert _BY_NAME["send_time_ns"] == 8 * RESPONSE_SEND_TIME_WORD
assert _BY_NAME["instrument_id"] == 8 * RESPONSE_INSTRUMENT_WORD
assert _BY_NAME["model_generation"] == 8 * RESPONSE_INSTRUMENT_WORD + 4
assert _BY_NAME["infer_ns"] == 8 * RESPONSE_OUTCOME_WORD
assert _BY_NAME["status"] == 8 * RESPONSE_OUTCOME_WORD + 4
assert _BY_NAME["batch_rows"] == 8 * RESPONSE_OUTCOME_WORD + 6

WordArray = npt.NDArray[np.uint64]
"""Frames as words: shape (rows, frame_bytes / 8), dtype uint64."""


def outcome_word(infer_ns: int, status: int, batch_rows: int) -> int:
    """infer_ns, status and batch_rows as the one word they share. infer_ns saturates at its field's 32
    bits."""
    return min(infer_ns, 0xFFFF_FFFF) | status << 32 | batch_rows << 48
