"""Numbers drawn from a seed, the same with every version of NumPy: its bit generators promise their streams,
its distributions do not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

_BITS = 24
"""Of a float32's fraction: every draw is exact."""


class Draws:
    """A stream of numbers."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, bound: float, *shape: int) -> Float32Array:
        """Float32 of that shape, from -bound up to bound."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape))), np.uint64) >> np.uint64(64 - _BITS)
        unit = raw.astype(np.float32) * np.float32(2.0 ** (1 - _BITS)) - np.float32(1)
        return (unit * np.float32(bound)).reshape(shape)

    def below(self, bound: int) -> int:
        """A whole number from 0 up to bound - 1; bound is small, so the remainder's bias does not count."""
        return int(self._bits.random_raw()) % bound
