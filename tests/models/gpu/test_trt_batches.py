"""Which batch runs for which number of rows."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sigd.models.backend import buckets
from sigd.models.gpu.trt_api import RowRange
from sigd.models.gpu.trt_device import batches_for


def static(*sizes: int) -> list[RowRange]:
    return [RowRange(size, size, size) for size in sizes]


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (static(1, 2, 4, 8), {1: (1, 0), 2: (2, 1), 4: (4, 2), 8: (8, 3)}),
        ([RowRange(1, 8, 8)], {1: (1, 0), 2: (2, 0), 4: (4, 0), 8: (8, 0)}),
        (static(8), {1: (8, 0), 2: (8, 0), 4: (8, 0), 8: (8, 0)}),
        ([RowRange(1, 1, 64), RowRange(1, 8, 64)], {1: (1, 0), 2: (2, 0), 4: (4, 0), 8: (8, 1)}),
        ([RowRange(3, 3, 64)], {1: (3, 0), 2: (3, 0), 4: (4, 0), 8: (8, 0)}),
    ],
    ids=["one each", "one for all", "only the largest", "the one that is fastest nearby", "a smallest batch"],
)
def test_the_smallest_batch_that_holds_them(
    ranges: list[RowRange], expected: dict[int, tuple[int, int]]
) -> None:
    assert batches_for(ranges, 8) == expected


def test_more_rows_than_any_profile_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="no profile takes 16 rows, the largest takes 8"):
        batches_for(static(1, 8), 16)


@st.composite
def row_ranges(draw: st.DrawFn) -> RowRange:
    rows_min, rows_opt, rows_max = sorted(draw(st.lists(st.integers(1, 64), min_size=3, max_size=3)))
    return RowRange(rows_min, rows_opt, rows_max)


@given(ranges=st.lists(row_ranges(), min_size=1, max_size=5), batch_rows_max=st.integers(1, 64))
def test_every_batch_is_one_that_its_profile_takes_and_no_larger_than_need_be(
    ranges: list[RowRange], batch_rows_max: int
) -> None:
    assume(any(rows.rows_max >= batch_rows_max for rows in ranges))
    chosen = batches_for(ranges, batch_rows_max)
    assert tuple(chosen) == buckets(batch_rows_max)
    for bucket, (size, profile) in chosen.items():
        assert ranges[profile].rows_min <= size <= ranges[profile].rows_max
        assert size >= bucket
        assert not any(max(bucket, rows.rows_min) < size for rows in ranges if bucket <= rows.rows_max)
