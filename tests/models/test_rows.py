"""Rows from files and from a seed."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models.onnx.test_missing import write_tree

from sigd.models.features.catalogue import FEATURE_COUNT, LOWER_BOUNDS, UPPER_BOUNDS
from sigd.models.onnx.columns import Columns, side_by_side
from sigd.models.reading import Missing, ReadOptions
from sigd.models.rows import RowsRefused, drawn_rows, read_rows, seeded_rows
from sigd.models.spec import ModelSpec, read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


@pytest.fixture
def spec(models: ModelMaker) -> ModelSpec:
    """Reads [2, 16]."""
    return read_spec(models.conv())


def saved(folder: Path, rows: Any) -> Path:
    path = folder / "rows.npy"
    np.save(path, rows)
    return path


def test_integers_are_spread_over_their_table_and_else_are_0_or_1() -> None:
    columns = side_by_side(
        [
            Columns("x", "float16", (2,)),
            Columns("instrument", "int64", (), table=50),
            Columns("up", "bool", ()),
        ]
    )
    drawn = drawn_rows(columns, 4, 1000, seed=1)
    assert set(drawn[:, 2]) == set(range(50))
    assert set(drawn[:, 3]) == {0, 1}
    np.testing.assert_array_equal(drawn[:, :2], drawn_rows((), 4, 1000, seed=1)[:, :2])


def test_a_table_longer_than_its_numbers_is_not_left() -> None:
    (columns,) = side_by_side([Columns("instrument", "int8", (), table=1000)])
    assert drawn_rows([columns], 1, 1000, seed=1).max() == 127


def test_a_seed_gives_the_same_rows_again(spec: ModelSpec) -> None:
    rows = seeded_rows(spec, 10, seed=3)
    assert rows.shape == (10, 32)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, seeded_rows(spec, 10, seed=3))
    assert (rows != seeded_rows(spec, 10, seed=4)).any()


@pytest.mark.parametrize("shape", [(6, 32), (6, 2, 16)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_rows_may_be_flat_or_shaped(
    tmp_path: Path, spec: ModelSpec, shape: tuple[int, ...], dtype: Any
) -> None:
    values = np.arange(6 * 32).reshape(shape).astype(dtype)
    rows = read_rows(saved(tmp_path, values), spec, 100).rows
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, values.reshape(6, 32))


def test_too_many_rows_are_thinned_evenly(tmp_path: Path, spec: ModelSpec) -> None:
    values = np.repeat(np.arange(101, dtype=np.float32)[:, None], 32, axis=1)
    assert read_rows(saved(tmp_path, values), spec, 5).rows[:, 0].tolist() == [0, 25, 50, 75, 100]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((6, 31), np.float32), r"holds float32 \(6, 31\), expected floats of shape"),
        (np.zeros((6, 32), np.int64), "holds int64"),
        (np.zeros(32, np.float32), r"holds float32 \(32,\)"),
        (np.zeros((0, 32), np.float32), "holds no row"),
        (np.array([[0.0] * 32, [np.nan] * 32]), r"1 rows of 2 hold a NaN .*the first is row 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, spec: ModelSpec, values: Any, message: str) -> None:
    with pytest.raises(RowsRefused, match=message):
        read_rows(saved(tmp_path, values), spec, 100)


def test_a_pickle_is_not_read(tmp_path: Path, spec: ModelSpec) -> None:
    path = saved(tmp_path, np.array([object()]))
    with pytest.raises(RowsRefused, match=r"not a \.npy file"):
        read_rows(path, spec, 100)


def test_a_file_that_is_not_there_or_no_array_is_refused(tmp_path: Path, spec: ModelSpec) -> None:
    with pytest.raises(RowsRefused, match=r"gone\.npy: cannot be read: No such file"):
        read_rows(tmp_path / "gone.npy", spec, 100)
    text = tmp_path / "text.npy"
    text.write_text("features")
    with pytest.raises(RowsRefused, match=r"not a \.npy file"):
        read_rows(text, spec, 100)


def test_a_capture_needs_a_model_of_the_catalogues_features(tmp_path: Path, spec: ModelSpec) -> None:
    with pytest.raises(RowsRefused, match=r"a market capture gives 64 features a row, .* reads 32"):
        read_rows(tmp_path / "btcusdt.gz", spec, 100)


def test_a_damaged_capture_is_refused(tmp_path: Path, models: ModelMaker) -> None:
    path = tmp_path / "btcusdt.gz"
    path.write_bytes(gzip.compress(b"not a line of a capture\n"))
    with pytest.raises(RowsRefused, match=r"btcusdt\.gz:1"):
        read_rows(path, read_spec(models.mlp(features=FEATURE_COUNT)), 100)


def test_a_capture_gives_features_of_the_catalogue(capture_dir: Path, models: ModelMaker) -> None:
    spec = read_spec(models.mlp(features=FEATURE_COUNT))
    rows = read_rows(min(capture_dir.glob("*.gz")), spec, 20).rows
    assert rows.shape == (20, FEATURE_COUNT)
    assert (rows >= LOWER_BOUNDS).all()
    assert (rows <= UPPER_BOUNDS).all()
    assert len(np.unique(rows, axis=0)) > 10


def test_rows_have_holes_where_the_model_reads_nan_as_missing(tmp_path: Path) -> None:
    path = write_tree(tmp_path)
    rows = seeded_rows(read_spec(path), 256, 3)
    assert 0 < np.isnan(rows).mean() < 0.1
    whole = seeded_rows(read_spec(path, options=ReadOptions(missing=Missing.REFUSE)), 256, 3)
    assert np.isfinite(whole).all()
    assert (rows[::2] == whole[::2]).all()
