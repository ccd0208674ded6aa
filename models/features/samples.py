"""Samples of a batch of events."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Samples(NamedTuple):
    """The samples that the events of a batch gave.

    Attributes:
        event: int64, shape (n,): the number of each sample's event in the batch.
        mid_e8: float64, shape (n,): the mid at each sample, 1e-8 of the quote currency.
        features: float32, shape (n, 64).
    """

    event: npt.NDArray[np.int64]
    mid_e8: npt.NDArray[np.float64]
    features: npt.NDArray[np.float32]
