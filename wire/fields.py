"""The one source of the wire: every message as a table of fields. Layouts, the SBE schema and headers derive
from it.

Little-endian throughout. Offsets count from the first byte of the frame, so the 8-byte header occupies 0..7
and the first field of every block stands at 8. Times are CLOCK_MONOTONIC nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SCHEMA_ID: Final = 91
SCHEMA_VERSION: Final = 1
SCHEMA_SEMANTIC_VERSION: Final = "1.0.0"
HEADER_BYTES: Final = 8
FRAME_ALIGNMENT_BYTES: Final = 8
FEATURES_MAX: Final = 16_373
"""Largest n of the contract; its frame of 65,536 bytes has a block_length that still fits the u16."""

SIZE_BYTES: Final = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "f32": 4, "char": 1}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a block.

    Attributes:
        offset: bytes from the first byte of the frame.
        kind: element type, a key of SIZE_BYTES.
        name: the field's name in every language; its unit, where it has one, ends the name.
        meaning: one sentence for people.
        count: number of elements; "features" or "outputs" where the model decides.
    """

    offset: int
    kind: str
    name: str
    meaning: str
    count: int | str = 1


@dataclass(frozen=True, slots=True)
class Message:
    """One message: template id, direction, and its fields in order. `frame_bytes` of None depends on the
    model."""

    template_id: int
    name: str
    meaning: str
    frame_bytes: int | None
    fields: tuple[Field, ...]


HEADER: Final = (
    Field(0, "u16", "block_length", "bytes after this header"),
    Field(2, "u16", "template_id", "which message"),
    Field(4, "u16", "schema_id", "always 91"),
    Field(6, "u16", "version", "version of the schema that the sender wrote"),
)

HELLO: Final = Message(
    1,
    "Hello",
    "client to daemon, first of all: what the client will send and expects",
    80,
    (
        Field(8, "u32", "features", "features per request that the client will send; 0 takes the model's"),
        Field(12, "u32", "outputs", "outputs per response that the client expects; 0 takes the model's"),
        Field(16, "u16", "transport", "0 stream, 1 shared memory"),
        Field(18, "u16", "flags", "bit 0: conflate by instrument; bit 1: history kept by the daemon"),
        Field(
            20, "u32", "ring_slots", "shared memory: slots wanted, a power of two; 0 is the daemon's default"
        ),
        Field(24, "char", "client_name", "UTF-8, zero-padded; for logs and metrics", 24),
        Field(48, "char", "model_name", "UTF-8, zero-padded; empty is the default model", 32),
    ),
)

WELCOME: Final = Message(
    2,
    "Welcome",
    "daemon to client: the session is open, this is what was granted",
    128,
    (
        Field(8, "u32", "features", "features per request; with history of one step"),
        Field(12, "u32", "outputs", "outputs per response"),
        Field(16, "u32", "in_flight_max", "requests that this client may have unanswered"),
        Field(20, "u32", "model_generation", "rises by one with each model swap"),
        Field(24, "u64", "daemon_pid", "process id of the daemon"),
        Field(32, "u64", "clock_ns", "the daemon's clock when it wrote this"),
        Field(40, "u16", "transport", "granted: 0 stream, 1 shared memory"),
        Field(
            42,
            "u16",
            "flags",
            "granted: bits 0 and 1 as in Hello; bit 2: this model takes NaN for a missing value",
        ),
        Field(44, "u32", "ring_slots", "shared memory: slots granted"),
        Field(48, "u32", "request_stride", "shared memory: bytes per request slot"),
        Field(52, "u32", "response_stride", "shared memory: bytes per response slot"),
        Field(56, "u32", "history_steps", "with history: steps that the model looks at"),
        Field(60, "u32", "history_instruments_max", "with history: instruments that this client may have"),
        Field(64, "u8", "model_sha256", "digest of the file that is being served", 32),
        Field(96, "char", "model_name", "UTF-8, zero-padded", 32),
    ),
)

REJECT: Final = Message(
    3,
    "Reject",
    "daemon to client, then the connection closes: what was wrong and what was expected",
    80,
    (
        Field(8, "u16", "code", "a RejectCode"),
        Field(10, "u16", "reserved16", "0"),
        Field(12, "u32", "reserved32", "0"),
        Field(16, "char", "reason", "UTF-8, zero-padded", 64),
    ),
)

HEARTBEAT: Final = Message(
    4,
    "Heartbeat",
    "either way; the daemon answers each with one of its own",
    16,
    (Field(8, "u64", "clock_ns", "the sender's clock"),),
)

GOODBYE: Final = Message(
    5,
    "Goodbye",
    "either way; after its own the daemon answers what it has accepted, then closes",
    16,
    (
        Field(8, "u16", "code", "a GoodbyeCode"),
        Field(10, "u8", "reserved", "0", 6),
    ),
)

MODEL_INFO: Final = Message(
    6,
    "ModelInfo",
    "either way; a client asks which model a generation is, the daemon answers with digest and name",
    80,
    (
        Field(8, "u32", "model_generation", "as in an answer; in a question 0 is the current one"),
        Field(12, "u32", "reserved", "0"),
        Field(16, "u8", "model_sha256", "digest of that generation's file; zeros where it is not known", 32),
        Field(48, "char", "model_name", "UTF-8, zero-padded; zeros where the generation is not known", 32),
    ),
)

SIGNAL_REQUEST: Final = Message(
    10,
    "SignalRequest",
    "client to daemon: one row of features; answered by exactly one SignalResponse",
    None,
    (
        Field(8, "u64", "sequence", "the client's own number; echoed"),
        Field(16, "u64", "client_time_ns", "opaque; echoed"),
        Field(24, "u64", "deadline_ns", "daemon's clock after which the answer is worthless; 0 is none"),
        Field(32, "u32", "instrument_id", "echoed; the key of conflation and of history"),
        Field(36, "u16", "flags", "with history: bit 0 RESET, bit 1 STORE_ONLY; else 0"),
        Field(38, "u16", "reserved", "0"),
        Field(40, "f32", "features", "model inputs; more than two axes are flattened in C order", "features"),
    ),
)

SIGNAL_RESPONSE: Final = Message(
    11,
    "SignalResponse",
    "daemon to client, in the order of the requests on that connection",
    None,
    (
        Field(8, "u64", "sequence", "as in the request"),
        Field(16, "u64", "client_time_ns", "as in the request"),
        Field(24, "u64", "receive_time_ns", "daemon's clock when the request was decoded"),
        Field(32, "u64", "send_time_ns", "daemon's clock when the response was written"),
        Field(40, "u32", "instrument_id", "as in the request"),
        Field(44, "u32", "model_generation", "the model that answered"),
        Field(48, "u32", "infer_ns", "time in the model, for the batch that this row was in"),
        Field(52, "u16", "status", "a Status"),
        Field(54, "u16", "batch_rows", "rows in that batch"),
        Field(56, "f32", "outputs", "NaN unless status is OK", "outputs"),
    ),
)

MESSAGES: Final = (HELLO, WELCOME, REJECT, HEARTBEAT, GOODBYE, MODEL_INFO, SIGNAL_REQUEST, SIGNAL_RESPONSE)

REGION_MAGIC: Final = 0x31444753
"""The bytes "SGD1"."""
REGION_LAYOUT_VERSION: Final = 1
REGION_HEADER_BYTES: Final = 4096
"""Where the request slots begin; the response slots begin at a multiple of it."""
SLOT_ALIGNMENT_BYTES: Final = 64
"""A slot's stride is the frame's length rounded up to a cache line."""


@dataclass(frozen=True, slots=True)
class RegionField:
    """One field at the start of a shared-memory region.

    Attributes:
        offset: bytes from the start of the region.
        kind: element type, a key of SIZE_BYTES.
        name: the field's name in every language; its unit, where it has one, ends the name.
        writer: the side that writes it; the daemon's fields before the first counter are written once.
        meaning: one sentence for people.
    """

    offset: int
    kind: str
    name: str
    writer: str
    meaning: str


REGION: Final = (
    RegionField(0, "u32", "magic", "daemon", "0x31444753"),
    RegionField(4, "u32", "layout_version", "daemon", "1"),
    RegionField(8, "u32", "ring_slots", "daemon", "slots of each ring, a power of two"),
    RegionField(12, "u32", "request_stride", "daemon", "bytes per request slot"),
    RegionField(16, "u32", "response_stride", "daemon", "bytes per response slot"),
    RegionField(20, "u32", "features", "daemon", "features per request"),
    RegionField(24, "u32", "outputs", "daemon", "outputs per response"),
    RegionField(128, "u64", "request_head", "client", "requests published since the start"),
    RegionField(256, "u64", "request_tail", "daemon", "requests taken since the start"),
    RegionField(384, "u64", "response_head", "daemon", "responses published since the start"),
    RegionField(512, "u64", "response_tail", "client", "responses taken since the start"),
    RegionField(640, "u32", "daemon_sleeping", "daemon", "1: ring the request doorbell after publishing"),
    RegionField(768, "u32", "client_sleeping", "client", "1: ring the response doorbell after publishing"),
    RegionField(896, "u64", "daemon_heartbeat_ns", "daemon", "the daemon's clock, at least every 100 ms"),
)
"""The start of a shared-memory region. What either side writes while it runs has two cache lines of its own,
since processors fetch lines in pairs."""
