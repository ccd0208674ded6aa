"""The client's end of a request stream: requests are written over prepared frames, then sent as one piece.

The counterpart of `inbox`, which reads them. No I/O: what to send comes back as a view.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.wire import fields
from sigd.wire.errors import ShapeError
from sigd.wire.layout import (
    REQUEST_CLIENT_TIME_WORD,
    REQUEST_DEADLINE_WORD,
    REQUEST_FEATURES_OFFSET,
    REQUEST_INSTRUMENT_WORD,
    REQUEST_SEQUENCE_WORD,
    WordArray,
    header_word,
    request_frame_bytes,
)
from sigd.wire.status import RequestFlag

_COLUMNS: Final = (
    ("sequence", 2**64 - 1),
    ("client_time_ns", 2**64 - 1),
    ("deadline_ns", 2**64 - 1),
    ("instrument_id", 2**32 - 1),
    ("flags", 2**16 - 1),
)
_SINGLE: Final = struct.Struct("<QQQIH")
_FLAGS_SHIFT: Final = 32
"""Above instrument_id in the word that they share."""
_BATCH_BYTES_MAX: Final = 1 << 20


class RequestOutbox:
    """Prepared SignalRequest frames of one connection.

    Attributes:
        features: n, features per request.
        frame_bytes: bytes of one request.
        rows_max: how many requests `encode` takes at once.
    """

    def __init__(self, features: int) -> None:
        """Raises ValueError where no frame can carry that many features."""
        self.features = features
        self.frame_bytes = request_frame_bytes(features)
        self.rows_max = max(1, _BATCH_BYTES_MAX // self.frame_bytes)
        self._single = self._prepare(1)
        self._single_bytes = self._single.data.cast("B")
        self._single_features = self._feature_columns(self._single)[0]
        self._rows = self._prepare(1)

    def _prepare(self, rows: int) -> WordArray:
        words = np.zeros((rows, self.frame_bytes // 8), np.uint64)
        words[:, 0] = header_word(fields.SIGNAL_REQUEST.template_id, self.frame_bytes)
        return words

    def _feature_columns(self, words: WordArray) -> npt.NDArray[np.float32]:
        first = REQUEST_FEATURES_OFFSET // 4
        return words.view(np.float32)[:, first : first + self.features]

    def encode_single(
        self,
        features: npt.ArrayLike,
        sequence: int,
        client_time_ns: int,
        deadline_ns: int,
        instrument_id: int,
        flags: int = RequestFlag.NONE,
    ) -> memoryview:
        """One request. The view is valid until the next call.

        Args:
            features: n numbers, float32 or what converts to it; more than one axis is flattened in C order.
            flags: what is to happen to the history, where one is kept.

        Raises:
            ShapeError: not n features, or a number that its field cannot hold.
        """
        row = np.asarray(features, np.float32)
        if row.shape != (self.features,):
            row = self._flatten(row, rows=None)
        try:
            _SINGLE.pack_into(
                self._single_bytes, 8, sequence, client_time_ns, deadline_ns, instrument_id, flags
            )
        except (struct.error, TypeError) as error:
            self.as_columns(1, sequence, client_time_ns, deadline_ns, instrument_id, flags)
            raise ShapeError(
                f"sequence, times, instrument_id and flags: {error}, expected one number each"
            ) from error
        self._single_features[:] = row
        return self._single_bytes

    def as_rows(self, features: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The features as float32, shape (k, n).

        Args:
            features: shape (k, n), or (k, ...) with n numbers a row, which are flattened in C order.

        Raises:
            ShapeError: any other shape.
        """
        rows = np.asarray(features, np.float32)
        if rows.ndim == 2 and rows.shape[1] == self.features:
            return rows
        return self._flatten(rows, rows=rows.shape[0] if rows.ndim else 0)

    @staticmethod
    def as_columns(rows: int, *numbers: npt.ArrayLike) -> WordArray:
        """sequence, client_time_ns, deadline_ns, instrument_id and flags of `rows` requests, shape (5, rows).

        Args:
            numbers: for each of the five one number for all rows, or one a row; without flags they are 0.

        Raises:
            ShapeError: a shape that does not fit, or a number that its field cannot hold.
        """
        columns = np.zeros((len(_COLUMNS), rows), np.uint64)
        for column, (name, largest), value in zip(columns, _COLUMNS, numbers, strict=False):
            column[:] = _whole_numbers(name, value, largest, rows)
        return columns

    def encode(self, features: npt.NDArray[np.float32], columns: WordArray) -> memoryview:
        """At most `rows_max` rows, as `as_rows` and `as_columns` gave them. The view is valid until the next
        call."""
        rows = len(features)
        if rows > len(self._rows):
            self._rows = self._prepare(min(self.rows_max, 2 * rows))
        words = self._rows[:rows]
        words[:, REQUEST_SEQUENCE_WORD] = columns[0]
        words[:, REQUEST_CLIENT_TIME_WORD] = columns[1]
        words[:, REQUEST_DEADLINE_WORD] = columns[2]
        words[:, REQUEST_INSTRUMENT_WORD] = columns[3] | columns[4] << np.uint64(_FLAGS_SHIFT)
        self._feature_columns(words)[:] = features
        return self._rows.data.cast("B")[: rows * self.frame_bytes]

    def _flatten(self, features: npt.NDArray[np.float32], rows: int | None) -> npt.NDArray[np.float32]:
        shape = (self.features,) if rows is None else (rows, self.features)
        numbers = self.features if rows is None else rows * self.features
        if features.size != numbers or features.ndim < len(shape):
            raise ShapeError(f"features of shape {features.shape}, expected {shape}")
        return features.reshape(shape)


def _whole_numbers(name: str, value: npt.ArrayLike, largest: int, rows: int) -> npt.NDArray[np.integer]:
    numbers = np.asarray(value)
    if numbers.ndim and numbers.shape != (rows,):
        raise ShapeError(
            f"{name} of shape {numbers.shape}, expected one number or one for each of {rows} rows"
        )
    # whole numbers beyond 64 bits make an array of objects
    if numbers.dtype.kind not in "iu":
        raise ShapeError(f"{name} of {value!r}, expected whole numbers within 0..{largest}")
    if numbers.size and (int(numbers.min()) < 0 or int(numbers.max()) > largest):
        raise ShapeError(
            f"{name} of {numbers.min()} to {numbers.max()}, expected whole numbers within 0..{largest}"
        )
    return numbers
