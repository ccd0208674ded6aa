"""What is kept of the answers of two models to the same rows. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.daemon.shadow.statistics import DIFFERENCE_BOUNDS, OUTPUTS_SHOWN, OutputStatistics, Statistics
from sigd.models.accuracy import decisions
from sigd.models.onnx.columns import Columns

Float64Array = npt.NDArray[np.float64]
Outputs = npt.NDArray[np.float32]
"""Shape (rows, outputs)."""

DRIFT_ROWS: Final = 10_000
"""A row's weight in the drift has fallen to 1/e after that many more."""


class Moments:
    """Mean and standard deviation of each column, of rows whose weight falls exponentially.

    After a block of n rows the weight of all before it is multiplied by exp(-n / DRIFT_ROWS); sums of squares
    of two blocks are joined as Chan, Golub and LeVeque do (Algorithms for computing the sample variance,
    1983), which does not cancel where the mean is large beside the deviation. Until DRIFT_ROWS have come it
    is nearly the plain mean.
    """

    def __init__(self, columns: int) -> None:
        self.weight = 0.0
        self.mean: Float64Array = np.zeros(columns)
        self._squares: Float64Array = np.zeros(columns)

    def add(self, block: Float64Array) -> None:
        """Rows, the newest."""
        rows = len(block)
        kept = self.weight * exp(-rows / DRIFT_ROWS)
        self._squares *= kept / self.weight if self.weight else 0.0
        mean = block.mean(axis=0)
        apart = mean - self.mean
        self.weight = kept + rows
        self._squares += ((block - mean) ** 2).sum(axis=0) + apart**2 * (kept * rows / self.weight)
        self.mean = self.mean + apart * (rows / self.weight)

    @property
    def deviation(self) -> Float64Array:
        """Standard deviation, of the population."""
        return np.sqrt(self._squares / self.weight) if self.weight else np.zeros_like(self.mean)


class Drift:
    """How far the shadow's outputs have moved away from the served model's.

    The measure is Glass's delta (Glass, Primary, secondary, and meta-analysis of research, 1976), for each
    output:

        drift = (mean of the shadow - mean of the served) / standard deviation of the served

    with the moments of `Moments`. 0.1 moves the mean by a tenth of what the output varies by; it says nothing
    about single rows, which agreement and differences do. Where the served output does not vary there is
    none.
    """

    def __init__(self, outputs: int) -> None:
        columns = min(outputs, OUTPUTS_SHOWN)
        self._columns = columns
        self._served = Moments(columns)
        self._shadow = Moments(columns)

    def add(self, served: Float64Array, shadow: Float64Array) -> None:
        """The newest rows of both."""
        self._served.add(served[:, : self._columns])
        self._shadow.add(shadow[:, : self._columns])

    def outputs(self) -> list[OutputStatistics]:
        """As it is now."""
        columns = zip(
            self._served.mean.tolist(),
            self._served.deviation.tolist(),
            self._shadow.mean.tolist(),
            self._shadow.deviation.tolist(),
            strict=True,
        )
        return [
            OutputStatistics(mean, deviation, other, other_deviation, _drift(mean, deviation, other))
            for mean, deviation, other, other_deviation in columns
        ]


def _drift(served_mean: float, served_deviation: float, shadow_mean: float) -> float | None:
    # Of equal numbers rounding leaves a deviation of their last digits.
    varies = served_deviation > abs(served_mean) * _ROUNDING
    return (shadow_mean - served_mean) / served_deviation if varies else None


_ROUNDING: Final = sqrt(float(np.finfo(np.float64).eps))


class Comparison:
    """Counts, from where another one stood on.

    Args:
        before: what a process before this one counted.
        outputs: of both models.
        columns: what the outputs are; none where they are one tensor of floats.
    """

    def __init__(self, before: Statistics, outputs: int, columns: Sequence[Columns] = ()) -> None:
        self.compared, self.agreed = before.compared, before.agreed
        self.skipped, self.left_out, self.failed = before.skipped, before.left_out, before.failed
        self._differences = np.array(before.differences, np.int64)
        self._difference_sum, self._difference_max = before.difference_sum, before.difference_max
        self._outputs = outputs
        self._columns = columns
        self._generation = 0
        self._drift = Drift(outputs)

    def add(self, served: Outputs, shadow: Outputs, generation: int) -> None:
        """Answers to the same rows; the served ones are finite.

        Args:
            generation: of the served model. Drift is of one generation: with another it begins anew.
        """
        if generation != self._generation:
            self._generation = generation
            self._drift = Drift(self._outputs)
        finite = np.isfinite(shadow).all(axis=1)
        if not finite.all():
            self.failed += len(shadow) - int(np.count_nonzero(finite))
            served, shadow = served[finite], shadow[finite]
        if not len(served):
            return
        self.compared += len(served)
        agreed = decisions(served, self._columns) == decisions(shadow, self._columns)
        self.agreed += int(np.count_nonzero(agreed))
        one, other = served.astype(np.float64), shadow.astype(np.float64)
        apart = np.abs(other - one).max(axis=1)
        # A difference that is just a bound is in its bucket, as Prometheus has it.
        buckets = np.searchsorted(DIFFERENCE_BOUNDS, apart, side="left")
        self._differences += np.bincount(buckets, minlength=len(DIFFERENCE_BOUNDS) + 1)
        self._difference_sum += float(apart.sum())
        self._difference_max = max(self._difference_max, float(apart.max()))
        self._drift.add(one, other)

    def statistics(self) -> Statistics:
        """As it is now."""
        return Statistics(
            compared=self.compared,
            agreed=self.agreed,
            skipped=self.skipped,
            left_out=self.left_out,
            failed=self.failed,
            differences=self._differences.tolist(),
            difference_sum=self._difference_sum,
            difference_max=self._difference_max,
            generation=self._generation,
            outputs=self._drift.outputs(),
        )
