"""Which rows of features a model can run: finite ones, and integers where the model wants integers."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sigd.models.spec import ModelSpec

_FEW_COLUMNS: Final = 16
"""Up to so many integers a row are looked at one by one on the fast path; more go the batch path, where NumPy
looks at all."""


class RowCheck:
    """The demands of one model on its rows.

    Attributes:
        integers: whether there are columns that must be integers.
        takes_nan: whether NaN is a value, which stands for a missing one.
        fits_fast_path: whether the fast path can check its rows.
    """

    def __init__(self, spec: ModelSpec) -> None:
        ranges = [
            (column, *limits)
            for one in spec.input_columns
            if (limits := one.integers) is not None
            for column in range(one.first, one.first + one.width)
        ]
        self.takes_nan = spec.takes_nan
        self.integers = bool(ranges)
        self.fits_fast_path = len(ranges) <= _FEW_COLUMNS
        self._ranges = ranges if self.fits_fast_path else []
        self._columns = np.array([column for column, _, _ in ranges], np.intp)
        self._low = np.array([low for _, low, _ in ranges], np.float32)
        self._high = np.array([high for _, _, high in ranges], np.float32)

    def good_rows(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which rows, float32 (n, features), may run."""
        good = self._good_values(rows).all(axis=1)
        if self.integers:
            good &= self._good_integers(rows[:, self._columns]).all(axis=1)
        return np.asarray(good)

    def first_bad_column(self, row: npt.NDArray[np.float32]) -> int:
        """The first column, from 0, for which a row may not run; -1 where it may."""
        good = self._good_values(row)
        if self.integers:
            good[self._columns] &= self._good_integers(row[self._columns])
        return -1 if good.all() else int(good.argmin())

    def wanted(self, column: int) -> str:
        """What a value of that column must be."""
        for place in np.flatnonzero(self._columns == column):
            return f"an integer from {self._low[place]:.0f} to {self._high[place]:.0f}"
        return "a number or NaN" if self.takes_nan else "a finite number"

    def _good_values(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        return ~np.isinf(rows) if self.takes_nan else np.isfinite(rows)

    def _good_integers(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        return np.asarray((values == np.trunc(values)) & (values >= self._low) & (values <= self._high))

    def integers_of(self, row: memoryview[float]) -> Callable[[], bool] | None:
        """Whether the integers of a row in `row`, float32, are what the model wants; None where it wants
        none."""
        if not self.integers:
            return None
        ranges = self._ranges

        def are_good() -> bool:
            for column, low, high in ranges:
                value = row[column]
                if not (low <= value <= high and value.is_integer()):
                    return False
            return True

        return are_good

    def odd_values_of(self, row: memoryview[float]) -> Callable[[], bool]:
        """Whether a row in `row`, float32, may run though a value in it is NaN, infinite or very large."""
        if not self.takes_nan:
            return _no

        def are_good() -> bool:
            return inf not in row and -inf not in row

        return are_good


def _no() -> bool:
    """No row passes here: the batch path checks them."""
    return False
