"""The client's book of requests that wait for their answers: each answer must echo the oldest of them."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.wire.errors import ProtocolBroken

_SEQUENCE_MASK: Final = 2**64 - 1


class Unanswered:
    """Sequences of one connection, oldest first.

    Attributes:
        next_sequence: one more than the last one sent; wraps at 64 bits.
    """

    def __init__(self) -> None:
        self.next_sequence = 0
        self._sequences: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._sequences)

    def next_sequences(self, count: int) -> npt.NDArray[np.uint64]:
        """`count` sequences from next_sequence on."""
        return np.uint64(self.next_sequence) + np.arange(count, dtype=np.uint64)

    def append(self, sequence: int) -> None:
        """A request was sent, or is about to be."""
        self._sequences.append(sequence)
        self.next_sequence = (sequence + 1) & _SEQUENCE_MASK

    def extend(self, sequences: npt.NDArray[np.uint64]) -> None:
        """Requests were sent in this order; at least one."""
        numbers = sequences.tolist()
        self._sequences.extend(numbers)
        self.next_sequence = (numbers[-1] + 1) & _SEQUENCE_MASK

    def answer(self, sequence: int) -> None:
        """An answer came. Raises ProtocolBroken where it is not the oldest request's."""
        if not self._sequences:
            raise ProtocolBroken(f"the daemon answered sequence {sequence}, which was not asked")
        expected = self._sequences.popleft()
        if sequence != expected:
            raise ProtocolBroken(f"the daemon answered sequence {sequence}, expected {expected}")

    def answer_many(self, sequences: npt.NDArray[np.uint64]) -> None:
        """Answers came in this order. Raises ProtocolBroken as `answer` does."""
        for sequence in sequences.tolist():
            self.answer(sequence)
