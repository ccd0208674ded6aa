"""Sizes, dtypes and words derived from the tables, against the contract's formulas."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire import fields
from sigd.wire.layout import (
    OUTPUTS_MAX,
    block_struct,
    frame_dtype,
    header_word,
    outcome_word,
    request_frame_bytes,
    response_frame_bytes,
)


@pytest.mark.parametrize(
    ("features", "frame_bytes"),
    [(1, 48), (2, 48), (3, 56), (64, 296), (70, 320), (16_372, 65_528), (16_373, 65_536)],
)
def test_request_sizes(features: int, frame_bytes: int) -> None:
    assert request_frame_bytes(features) == frame_bytes
    assert frame_dtype(fields.SIGNAL_REQUEST, features=features).itemsize == frame_bytes


@pytest.mark.parametrize(
    ("outputs", "frame_bytes"), [(1, 64), (2, 64), (3, 72), (4, 72), (10, 96), (16_370, 65_536)]
)
def test_response_sizes(outputs: int, frame_bytes: int) -> None:
    assert response_frame_bytes(outputs) == frame_bytes
    assert frame_dtype(fields.SIGNAL_RESPONSE, outputs=outputs).itemsize == frame_bytes


@pytest.mark.parametrize("features", [0, -1, 16_374, 1 << 40])
def test_features_that_no_frame_carries(features: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 16373 features, not {features}"):
        request_frame_bytes(features)


@pytest.mark.parametrize("outputs", [0, -1, OUTPUTS_MAX + 1, 1 << 40])
def test_outputs_that_no_frame_carries(outputs: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {OUTPUTS_MAX} outputs, not {outputs}"):
        response_frame_bytes(outputs)


@given(st.integers(1, 16_373))
def test_a_request_is_the_smallest_multiple_of_8_that_holds_it(features: int) -> None:
    needed = 40 + 4 * features
    assert needed <= request_frame_bytes(features) < needed + 8
    assert request_frame_bytes(features) % 8 == 0
    assert request_frame_bytes(features) - 8 < 1 << 16, "block_length is a u16"


@given(st.integers(1, OUTPUTS_MAX))
def test_a_response_is_the_smallest_multiple_of_8_that_holds_it(outputs: int) -> None:
    needed = 56 + 4 * outputs
    assert needed <= response_frame_bytes(outputs) < needed + 8
    assert response_frame_bytes(outputs) % 8 == 0
    assert response_frame_bytes(outputs) - 8 < 1 << 16, "block_length is a u16"


@pytest.mark.parametrize("message", fields.MESSAGES, ids=lambda message: message.name)
def test_dtype_offsets_are_the_tables(message: fields.Message) -> None:
    dtype = frame_dtype(message, features=5, outputs=4)
    assert dtype.fields is not None
    offsets = {name: entry[1] for name, entry in dtype.fields.items()}
    assert offsets == {field.name: field.offset for field in (*fields.HEADER, *message.fields)}
    assert dtype["block_length"].str == "<u2"


def test_header_word_is_the_header() -> None:
    assert struct.pack("<Q", header_word(10, 320)) == struct.pack("<HHHH", 312, 10, 91, 1)
    assert struct.pack("<Q", header_word(11, 72, version=7)) == struct.pack("<HHHH", 64, 11, 91, 7)


def test_outcome_word_is_three_fields() -> None:
    assert struct.pack("<Q", outcome_word(12_345, 4, 64)) == struct.pack("<IHH", 12_345, 4, 64)


def test_infer_ns_saturates_rather_than_spill_into_the_status() -> None:
    assert struct.pack("<Q", outcome_word(1 << 33, 0, 1)) == struct.pack("<IHH", 0xFFFF_FFFF, 0, 1)


def test_a_struct_only_for_messages_of_fixed_size() -> None:
    assert block_struct(fields.GOODBYE).size == 8
    with pytest.raises(ValueError, match="SignalRequest depends on the model"):
        block_struct(fields.SIGNAL_REQUEST)


def test_the_words_are_little_endian_on_this_machine() -> None:
    # the hot path reads native words; the contract says little-endian
    assert np.dtype(np.uint64).str == "<u8"
