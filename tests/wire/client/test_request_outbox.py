"""Requests as the client writes them, read back by the daemon's inbox and by the contract's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire.client.request_outbox import RequestOutbox
from sigd.wire.errors import ShapeError

MakeFrame = Callable[..., bytes]
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


def row(features: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    bits = np.random.default_rng(seed).integers(0, 2**32, features, dtype=np.uint32)
    return bits.view(np.float32)


@given(st.integers(1, 9), st.lists(st.tuples(u64, u64, u64, u32), max_size=5))
def test_single_and_many_are_the_contracts_bytes(
    request_frame: MakeFrame, features: int, numbers: list[tuple[int, int, int, int]]
) -> None:
    rows = np.array([row(features, seed) for seed in range(len(numbers))], np.float32).reshape(-1, features)
    expected = [
        request_frame(values, sequence=a, client_time_ns=b, deadline_ns=c, instrument_id=d)
        for values, (a, b, c, d) in zip(rows, numbers, strict=True)
    ]
    outbox = RequestOutbox(features)
    lone = [bytes(outbox.encode_single(values, *four)) for values, four in zip(rows, numbers, strict=True)]
    assert lone == expected
    columns = outbox.as_columns(len(rows), *np.array(numbers, np.uint64).reshape(-1, 4).T)
    assert bytes(outbox.encode(outbox.as_rows(rows), columns)) == b"".join(expected)


def test_one_number_for_all_rows(request_frame: MakeFrame) -> None:
    outbox = RequestOutbox(2)
    rows = np.ones((3, 2), np.float32)
    columns = outbox.as_columns(3, [7, 8, 9], 5, 2**64 - 1, 2**32 - 1)
    expected = [
        request_frame(
            rows[0],
            sequence=sequence,
            client_time_ns=5,
            deadline_ns=2**64 - 1,
            instrument_id=2**32 - 1,
        )
        for sequence in (7, 8, 9)
    ]
    assert bytes(outbox.encode(outbox.as_rows(rows), columns)) == b"".join(expected)


def test_fewer_rows_after_more_leave_nothing_behind(request_frame: MakeFrame) -> None:
    outbox = RequestOutbox(3)
    many = np.full((40, 3), 7, np.float32)
    outbox.encode(many, outbox.as_columns(40, 2**64 - 1, 2**64 - 1, 2**64 - 1, 2**32 - 1))
    few = np.ones((2, 3), np.float32)
    sent = bytes(outbox.encode(few, outbox.as_columns(2, 1, 2, 3, 4)))
    frame = request_frame(few[0], sequence=1, client_time_ns=2, deadline_ns=3, instrument_id=4)
    assert sent == 2 * frame


@pytest.mark.parametrize(
    "values", [[1, 2, 3, 4], (1.0, 2.0, 3.0, 4.0), np.arange(1, 5), np.arange(1.0, 5.0), [[1, 2], [3, 4]]]
)
def test_what_converts_to_a_row(request_frame: MakeFrame, values: Any) -> None:
    expected = request_frame(np.array([1, 2, 3, 4], np.float32))
    outbox = RequestOutbox(4)
    assert bytes(outbox.encode_single(values, 0, 0, 0, 0)) == expected
    batch = outbox.as_rows([values, values])
    assert bytes(outbox.encode(batch, outbox.as_columns(2, 0, 0, 0, 0))) == 2 * expected


def test_axes_are_flattened_in_c_order() -> None:
    fortran = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    frame = RequestOutbox(6).encode_single(fortran, 0, 0, 0, 0)
    assert np.frombuffer(frame, np.float32, 6, 40).tolist() == [0, 1, 2, 3, 4, 5]
    rows = RequestOutbox(6).as_rows(np.stack([fortran, fortran + 6]))
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("values", "shape"), [([1, 2, 3], r"\(3,\)"), (1.0, r"\(\)"), ([], r"\(0,\)"), ([[1] * 5], r"\(1, 5\)")]
)
def test_a_row_of_another_shape(values: Any, shape: str) -> None:
    with pytest.raises(ShapeError, match=rf"features of shape {shape}, expected \(4,\)"):
        RequestOutbox(4).encode_single(values, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros(4), r"\(4,\), expected \(4, 4\)"),
        (np.zeros((4, 3)), r"\(4, 3\), expected \(4, 4\)"),
        (np.zeros((2, 2, 3)), r"\(2, 2, 3\), expected \(2, 4\)"),
        (np.float32(1), r"\(\), expected \(0, 4\)"),
    ],
)
def test_rows_of_another_shape(values: Any, expected: str) -> None:
    with pytest.raises(ShapeError, match=expected):
        RequestOutbox(4).as_rows(values)


def test_one_feature_is_a_row_of_one() -> None:
    outbox = RequestOutbox(1)
    with pytest.raises(ShapeError, match=r"\(\), expected \(1,\)"):
        outbox.encode_single(5.0, 0, 0, 0, 0)
    with pytest.raises(ShapeError, match=r"\(4,\), expected \(4, 1\)"):
        outbox.as_rows(np.zeros(4))
    assert outbox.as_rows(np.zeros((4, 1))).shape == (4, 1)


@pytest.mark.parametrize(
    ("position", "name", "largest"),
    [
        (0, "sequence", 2**64 - 1),
        (1, "client_time_ns", 2**64 - 1),
        (2, "deadline_ns", 2**64 - 1),
        (3, "instrument_id", 2**32 - 1),
    ],
)
def test_numbers_that_their_field_cannot_hold(position: int, name: str, largest: int) -> None:
    outbox = RequestOutbox(4)
    before = bytes(outbox.encode_single([1, 2, 3, 4], 9, 9, 9, 9))
    for value in (-1, largest + 1, 1.5):
        numbers: list[Any] = [0, 0, 0, 0]
        numbers[position] = value
        with pytest.raises(ShapeError, match=rf"{name} of .*, expected whole numbers within 0\.\.{largest}"):
            outbox.encode_single([5, 6, 7, 8], *numbers)
        numbers[position] = [0, value]
        with pytest.raises(ShapeError, match=rf"{name} of .*, expected whole numbers within 0\.\.{largest}"):
            outbox.as_columns(2, *numbers)
    assert bytes(outbox.encode_single([1, 2, 3, 4], 9, 9, 9, 9)) == before


def test_a_row_of_numbers_where_one_is_expected() -> None:
    with pytest.raises(ShapeError, match="expected one number each"):
        RequestOutbox(4).encode_single([1, 2, 3, 4], np.array([7]), 0, 0, 0)  # type: ignore[arg-type]


def test_a_column_of_another_length() -> None:
    with pytest.raises(ShapeError, match=r"deadline_ns of shape \(3,\), expected one .* each of 2 rows"):
        RequestOutbox(4).as_columns(2, 0, 0, [1, 2, 3], 0)


@pytest.mark.parametrize("features", [0, 16_374])
def test_features_that_no_frame_carries(features: int) -> None:
    with pytest.raises(ValueError, match="1 to 16373"):
        RequestOutbox(features)


def test_the_largest_request_goes_alone() -> None:
    outbox = RequestOutbox(16_373)
    assert outbox.rows_max >= 1
    assert len(outbox.encode_single(np.zeros(16_373), 0, 0, 0, 0)) == 65_536
