"""The daemon's end of a response stream: answers are written over prepared frames, then sent as one piece.

The frames stand ready with header and padding; a batch fills in what differs. Nothing is allocated for a
response but NumPy's short-lived views.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.wire import fields
from sigd.wire.layout import (
    REQUEST_DEADLINE_WORD,
    REQUEST_INSTRUMENT_WORD,
    RESPONSE_OUTCOME_WORD,
    RESPONSE_OUTPUTS_OFFSET,
    RESPONSE_RECEIVE_TIME_WORD,
    RESPONSE_SEND_TIME_WORD,
    RESPONSE_SEQUENCE_WORD,
    WordArray,
    header_word,
    outcome_word,
    response_frame_bytes,
)
from sigd.wire.status import Status

_INSTRUMENT_HALF: Final = 10  # u32 column of instrument_id in a response
_GENERATION_HALF: Final = 11  # u32 column of model_generation
_REQUEST_INSTRUMENT_HALF: Final = 2 * REQUEST_INSTRUMENT_WORD
_STATUS_COLUMN: Final = 26  # u16 column of status
_SINGLE: Final = struct.Struct("<QQQQQQ")

StatusArray = npt.NDArray[np.uint16]


class ResponseOutbox:
    """Prepared SignalResponse frames of one connection.

    Attributes:
        rows_max: how many answers fit at once.
        frame_bytes: bytes of one response.
        all_ok: True where every row encoded last has the status OK.
        header: theirs, as one word.
        bytes: the frames; the first k * frame_bytes are what to send after encoding k rows.
    """

    __slots__ = (
        "_floats",
        "_halves",
        "_quarters",
        "_single_outputs",
        "_storage",
        "_words",
        "all_ok",
        "bytes",
        "frame_bytes",
        "generation_word",
        "header",
        "rows_max",
        "single",
    )

    def __init__(self, outputs: int, rows_max: int, model_generation: int) -> None:
        """Room for `rows_max` responses of `outputs` outputs each."""
        self.rows_max = rows_max
        self.frame_bytes = response_frame_bytes(outputs)
        self._storage = np.zeros(rows_max * self.frame_bytes, np.uint8)
        self._words: WordArray = self._storage.view(np.uint64).reshape(rows_max, -1)
        self._halves = self._storage.view(np.uint32).reshape(rows_max, -1)
        self._quarters = self._storage.view(np.uint16).reshape(rows_max, -1)
        first = RESPONSE_OUTPUTS_OFFSET // 4
        self._floats = self._storage.view(np.float32).reshape(rows_max, -1)[:, first : first + outputs]
        self.header = header_word(fields.SIGNAL_RESPONSE.template_id, self.frame_bytes)
        self._words[:, 0] = self.header
        self.bytes = self._storage.data
        self.single = self.bytes[: self.frame_bytes]
        self._single_outputs = self.bytes[RESPONSE_OUTPUTS_OFFSET : RESPONSE_OUTPUTS_OFFSET + 4 * outputs]
        self.all_ok = True
        self._halves[:, _GENERATION_HALF] = model_generation
        self.generation_word = model_generation << 32

    def encode_single(
        self,
        sequence: int,
        client_time_ns: int,
        receive_time_ns: int,
        send_time_ns: int,
        instrument_id: int,
        outcome: int,
        outputs: memoryview,
    ) -> None:
        """One OK answer into `single`. `outputs` are its 4 * m bytes; `outcome` is layout.outcome_word()."""
        _SINGLE.pack_into(
            self.bytes,
            8,
            sequence,
            client_time_ns,
            receive_time_ns,
            send_time_ns,
            instrument_id | self.generation_word,
            outcome,
        )
        self._single_outputs[:] = outputs

    def encode(
        self,
        requests: WordArray,
        outputs: npt.NDArray[np.float32],
        statuses: StatusArray | None,
        *,
        send_time_ns: int,
        infer_ns: int,
        batch_rows: int,
        ran: npt.NDArray[np.intp] | None = None,
    ) -> memoryview:
        """Answer `requests` (words of k pending rows, see RequestInbox.row_words), k <= rows_max.

        Args:
            outputs: float32, shape (live, m): the outputs of the rows whose status is OK, in order.
            statuses: one a row, or None where all are OK.
            send_time_ns: a row that is OK but whose deadline lies before it becomes EXPIRED.
            infer_ns: time in the model for the batch; rows that did not run get 0, and 0 batch rows.
            ran: which rows ran; None: those that are OK or MODEL_ERROR.

        Returns:
            The bytes to send, a view that is valid until the next encoding.
        """
        count = len(requests)
        words = self._words[:count]
        # sequence and client_time_ns stand side by side in both frames
        words[:, RESPONSE_SEQUENCE_WORD:RESPONSE_RECEIVE_TIME_WORD] = requests[:, 1:3]
        words[:, RESPONSE_RECEIVE_TIME_WORD] = requests[:, 0]
        words[:, RESPONSE_SEND_TIME_WORD] = send_time_ns
        halves = self._halves[:count]
        halves[:, _INSTRUMENT_HALF] = requests.view(np.uint32)[:, _REQUEST_INSTRUMENT_HALF]
        words[:, RESPONSE_OUTCOME_WORD] = outcome_word(infer_ns, Status.OK, batch_rows)
        self.all_ok = statuses is None
        if statuses is None:
            self._floats[:count] = outputs
        else:
            self._encode_mixed(count, outputs, statuses, ran)
        deadlines = requests[:, REQUEST_DEADLINE_WORD]
        if np.count_nonzero(deadlines):
            self._expire(count, deadlines, send_time_ns)
        return self.bytes[: count * self.frame_bytes]

    def statuses(self, count: int) -> StatusArray:
        """Statuses of the first `count` rows encoded last. A view."""
        return self._quarters[:count, _STATUS_COLUMN]

    def _encode_mixed(
        self,
        count: int,
        outputs: npt.NDArray[np.float32],
        statuses: StatusArray,
        ran: npt.NDArray[np.intp] | None,
    ) -> None:
        live = statuses == Status.OK
        floats = self._floats[:count]
        floats[~live] = np.nan
        floats[live] = outputs
        idle = ~live & (statuses != Status.MODEL_ERROR)
        if ran is not None:
            idle[ran] = False
        self._words[:count, RESPONSE_OUTCOME_WORD][idle] = 0
        self._quarters[:count, _STATUS_COLUMN] = statuses

    def _expire(self, count: int, deadlines: npt.NDArray[np.uint64], send_time_ns: int) -> None:
        status = self._quarters[:count, _STATUS_COLUMN]
        late = (deadlines != 0) & (deadlines < send_time_ns) & (status == Status.OK)
        if late.any():
            self.all_ok = False
            status[late] = Status.EXPIRED
            self._floats[:count][late] = np.nan


assert _INSTRUMENT_HALF * 4 == 40
assert _GENERATION_HALF * 4 == 44
assert _STATUS_COLUMN * 2 == 52
