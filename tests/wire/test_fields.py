"""The field tables against numbers that were typed by hand from the contract's page: nothing here is
derived."""

from __future__ import annotations

import pytest

from sigd.wire import fields

MESSAGES = {
    # name: (template id, frame bytes, {field: (offset, bytes of one element, elements)})
    "Hello": (
        1,
        80,
        {
            "features": (8, 4, 1),
            "outputs": (12, 4, 1),
            "transport": (16, 2, 1),
            "flags": (18, 2, 1),
            "ring_slots": (20, 4, 1),
            "client_name": (24, 1, 24),
            "model_name": (48, 1, 32),
        },
    ),
    "Welcome": (
        2,
        128,
        {
            "features": (8, 4, 1),
            "outputs": (12, 4, 1),
            "in_flight_max": (16, 4, 1),
            "model_generation": (20, 4, 1),
            "daemon_pid": (24, 8, 1),
            "clock_ns": (32, 8, 1),
            "transport": (40, 2, 1),
            "flags": (42, 2, 1),
            "ring_slots": (44, 4, 1),
            "request_stride": (48, 4, 1),
            "response_stride": (52, 4, 1),
            "history_steps": (56, 4, 1),
            "history_instruments_max": (60, 4, 1),
            "model_sha256": (64, 1, 32),
            "model_name": (96, 1, 32),
        },
    ),
    "Reject": (
        3,
        80,
        {"code": (8, 2, 1), "reserved16": (10, 2, 1), "reserved32": (12, 4, 1), "reason": (16, 1, 64)},
    ),
    "Heartbeat": (4, 16, {"clock_ns": (8, 8, 1)}),
    "Goodbye": (5, 16, {"code": (8, 2, 1), "reserved": (10, 1, 6)}),
    "ModelInfo": (
        6,
        80,
        {
            "model_generation": (8, 4, 1),
            "reserved": (12, 4, 1),
            "model_sha256": (16, 1, 32),
            "model_name": (48, 1, 32),
        },
    ),
    "SignalRequest": (
        10,
        None,
        {
            "sequence": (8, 8, 1),
            "client_time_ns": (16, 8, 1),
            "deadline_ns": (24, 8, 1),
            "instrument_id": (32, 4, 1),
            "flags": (36, 2, 1),
            "reserved": (38, 2, 1),
            "features": (40, 4, "features"),
        },
    ),
    "SignalResponse": (
        11,
        None,
        {
            "sequence": (8, 8, 1),
            "client_time_ns": (16, 8, 1),
            "receive_time_ns": (24, 8, 1),
            "send_time_ns": (32, 8, 1),
            "instrument_id": (40, 4, 1),
            "model_generation": (44, 4, 1),
            "infer_ns": (48, 4, 1),
            "status": (52, 2, 1),
            "batch_rows": (54, 2, 1),
            "outputs": (56, 4, "outputs"),
        },
    ),
}
CHARACTERS = {
    ("Hello", "client_name"),
    ("Hello", "model_name"),
    ("Welcome", "model_name"),
    ("Reject", "reason"),
    ("ModelInfo", "model_name"),
}
FLOATS = {("SignalRequest", "features"), ("SignalResponse", "outputs")}


def test_every_message_is_in_the_table_once() -> None:
    assert [message.name for message in fields.MESSAGES] == list(MESSAGES)


@pytest.mark.parametrize("message", fields.MESSAGES, ids=lambda message: message.name)
def test_message_is_the_contracts(message: fields.Message) -> None:
    template_id, frame_bytes, expected = MESSAGES[message.name]
    assert message.template_id == template_id
    assert message.frame_bytes == frame_bytes
    assert {
        field.name: (field.offset, fields.SIZE_BYTES[field.kind], field.count) for field in message.fields
    } == expected


def test_kinds_are_the_contracts() -> None:
    kinds = {
        (message.name, field.name): field.kind for message in fields.MESSAGES for field in message.fields
    }
    assert {key for key, kind in kinds.items() if kind == "char"} == CHARACTERS
    assert {key for key, kind in kinds.items() if kind == "f32"} == FLOATS
    assert set(kinds.values()) == {"char", "f32", "u8", "u16", "u32", "u64"}


def test_header_and_numbers_are_the_contracts() -> None:
    assert [(field.offset, field.kind, field.name) for field in fields.HEADER] == [
        (0, "u16", "block_length"),
        (2, "u16", "template_id"),
        (4, "u16", "schema_id"),
        (6, "u16", "version"),
    ]
    assert (fields.SCHEMA_ID, fields.SCHEMA_VERSION) == (91, 1)
    assert (fields.HEADER_BYTES, fields.FRAME_ALIGNMENT_BYTES) == (8, 8)
    assert fields.FEATURES_MAX == 16_373


REGION = {
    # name: (offset, bytes, written by)
    "magic": (0, 4, "daemon"),
    "layout_version": (4, 4, "daemon"),
    "ring_slots": (8, 4, "daemon"),
    "request_stride": (12, 4, "daemon"),
    "response_stride": (16, 4, "daemon"),
    "features": (20, 4, "daemon"),
    "outputs": (24, 4, "daemon"),
    "request_head": (128, 8, "client"),
    "request_tail": (256, 8, "daemon"),
    "response_head": (384, 8, "daemon"),
    "response_tail": (512, 8, "client"),
    "daemon_sleeping": (640, 4, "daemon"),
    "client_sleeping": (768, 4, "client"),
    "daemon_heartbeat_ns": (896, 8, "daemon"),
}


def test_the_region_is_the_contracts() -> None:
    assert {
        field.name: (field.offset, fields.SIZE_BYTES[field.kind], field.writer) for field in fields.REGION
    } == REGION
    assert fields.REGION_MAGIC.to_bytes(4, "little") == b"SGD1"
    assert (fields.REGION_LAYOUT_VERSION, fields.REGION_HEADER_BYTES, fields.SLOT_ALIGNMENT_BYTES) == (
        1,
        4096,
        64,
    )
