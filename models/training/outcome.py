"""What is predicted: whether the mid is down, flat or up after a horizon, and how horizon and flat are
chosen.

Both are chosen by class balance on the training part alone: the shortest horizon of a fixed ladder at which
some threshold of a fixed ladder leaves no class a majority; of such thresholds the one that brings flat
closest to a third. A shorter horizon is easier to predict and worth less; a longer one has fewer independent
outcomes to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sigd.models.onnx.file import read_onnx
from sigd.models.training.errors import CannotTrain
from sigd.models.training.samples import Float64Array, Int64Array, Samples

CLASSES = ("down", "flat", "up")
DOWN, FLAT, UP = 0, 1, 2
UNKNOWN = -1

HORIZONS_MS = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
FLAT_BPS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)

_ROUNDING_BPS = 1e-9
"""A move this small is rounding; the smallest real one, half a tick, is thousands of times larger."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The question that the model answers.

    Attributes:
        horizon_ns: how long after the sample the mid is looked at.
        flat_bps: moves of at most this size are flat, basis points of the mid.
    """

    horizon_ns: int
    flat_bps: float

    def classes(self, samples: Samples, delay_ns: int = 0) -> Int64Array:
        """The class of each sample: 0 down, 1 flat, 2 up; -1 where the capture ends before the horizon."""
        return classes_of(samples.moves_bps(self.horizon_ns, delay_ns), self.flat_bps)


def classes_of(moves_bps: Float64Array, flat_bps: float) -> Int64Array:
    """Moves as classes; NaN is -1."""
    threshold = flat_bps + _ROUNDING_BPS
    classes = np.full(len(moves_bps), FLAT, np.int64)
    classes[moves_bps > threshold] = UP
    classes[moves_bps < -threshold] = DOWN
    classes[np.isnan(moves_bps)] = UNKNOWN
    return classes


def shares_of(classes: Int64Array) -> Float64Array:
    """The share of each class among the known ones, shape (3,)."""
    counts = np.bincount(classes[classes != UNKNOWN], minlength=len(CLASSES))
    shares: Float64Array = counts / max(1, counts.sum())
    return shares


def choose_outcome(samples: Samples, allowed: npt.NDArray[np.bool_]) -> Outcome:
    """The outcome by the rule of this module. `allowed` marks the samples whose outcomes may be looked at.

    Raises:
        CannotTrain: at no horizon is every class short of a majority: the market hardly moved.
    """
    for horizon_ms in HORIZONS_MS:
        moves_bps = samples.moves_bps(horizon_ms * 1_000_000)[allowed]
        balanced = []
        for flat_bps in FLAT_BPS:
            shares = shares_of(classes_of(moves_bps, flat_bps))
            if 0 < shares.max() <= 0.5:
                balanced.append((abs(float(shares[FLAT]) - 1 / 3), flat_bps))
        if balanced:
            return Outcome(horizon_ms * 1_000_000, min(balanced)[1])
    raise CannotTrain(
        f"at no horizon up to {HORIZONS_MS[-1]} ms is every class short of a majority; expected a capture in"
        " which "
        "the mid moves, and a few minutes of it"
    )


def outcome_of_model(path: Path) -> Outcome | None:
    """The outcome that an ONNX file says it was trained for; None where it says nothing.

    Raises:
        ModelRefused: the file is no ONNX model.
    """
    properties = {entry.key: entry.value for entry in read_onnx(path).model.metadata_props}
    if "horizon_ns" not in properties or "flat_bps" not in properties:
        return None
    return Outcome(int(properties["horizon_ns"]), float(properties["flat_bps"]))
