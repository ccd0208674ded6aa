"""Responses over prepared frames, against frames packed field by field."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire.fields import SIGNAL_RESPONSE
from sigd.wire.inbox import RequestInbox
from sigd.wire.layout import WordArray, frame_dtype, outcome_word
from sigd.wire.outbox import ResponseOutbox
from sigd.wire.status import Status

FEATURES = 4
ROWS_MAX = 8
SEND_NS = 5_000

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
rows_of_requests = st.lists(
    st.fixed_dictionaries(
        {
            "sequence": u64,
            "client_time_ns": u64,
            "deadline_ns": st.sampled_from([0, 1, SEND_NS - 1, SEND_NS, SEND_NS + 1, 2**64 - 1]),
            "instrument_id": u32,
            "flags": st.integers(0, 2**16 - 1),
        }
    ),
    min_size=1,
    max_size=ROWS_MAX,
)
Request = dict[str, int]
MakeFrame = Callable[..., bytes]


def pending(request_frame: MakeFrame, requests: Sequence[Request], receive_ns: int = 77) -> WordArray:
    """The requests as the daemon holds them."""
    inbox = RequestInbox(FEATURES, ROWS_MAX)
    stream = b"".join(request_frame(np.zeros(FEATURES, np.float32), **request) for request in requests)
    inbox.writable()[: len(stream)] = stream
    inbox.arrived(len(stream))
    assert inbox.scan(receive_ns) is None
    assert inbox.rows == len(requests)
    return inbox.row_words(0, inbox.rows)


def response_frame(
    request: Request,
    outputs: npt.NDArray[np.float32],
    *,
    status: int,
    infer_ns: int,
    batch_rows: int,
    generation: int,
    receive_ns: int = 77,
    send_ns: int = SEND_NS,
) -> bytes:
    """A SignalResponse as the contract writes it, one pack after the other."""
    block = struct.pack(
        "<QQQQIIIHH",
        request["sequence"],
        request["client_time_ns"],
        receive_ns,
        send_ns,
        request["instrument_id"],
        generation,
        infer_ns,
        status,
        batch_rows,
    ) + struct.pack(f"<{len(outputs)}f", *outputs)
    block += bytes(-len(block) % 8)
    return struct.pack("<HHHH", len(block), 11, 91, 1) + block


NAN = np.full(20, np.nan, np.float32)


@given(
    requests=rows_of_requests,
    statuses=st.lists(st.sampled_from(Status), min_size=ROWS_MAX, max_size=ROWS_MAX),
    outputs=st.integers(1, 9),
    generation=u32,
    infer_ns=st.integers(0, 2**32 - 1),
    batch_rows=st.integers(0, 2**16 - 1),
    name_statuses=st.booleans(),
)
def test_every_row_is_what_the_contract_says(
    request_frame: MakeFrame,
    requests: list[Request],
    statuses: list[Status],
    outputs: int,
    generation: int,
    infer_ns: int,
    batch_rows: int,
    name_statuses: bool,
) -> None:
    """Statuses of all kinds side by side, deadlines before, at and after the time of sending."""
    if not name_statuses:
        statuses = [Status.OK] * ROWS_MAX
    statuses = statuses[: len(requests)]
    live = [status is Status.OK for status in statuses]
    model = np.random.default_rng(1).standard_normal((len(requests), outputs)).astype(np.float32)
    outbox = ResponseOutbox(outputs, ROWS_MAX, generation)
    dirty = pending(request_frame, [dict.fromkeys(requests[0], 2**16 - 1)] * ROWS_MAX)
    outbox.encode(
        dirty,
        np.full((ROWS_MAX, outputs), 9.0, np.float32),
        None,
        send_time_ns=1,
        infer_ns=2**32 - 1,
        batch_rows=65_535,
    )
    sent = bytes(
        outbox.encode(
            pending(request_frame, requests),
            model[live],
            np.array(statuses, np.uint16) if name_statuses else None,
            send_time_ns=SEND_NS,
            infer_ns=infer_ns,
            batch_rows=batch_rows,
        )
    )
    expected = b""
    final = []
    for request, status, row in zip(requests, statuses, model, strict=True):
        ran = status in (Status.OK, Status.MODEL_ERROR)
        late = 0 < request["deadline_ns"] < SEND_NS and status is Status.OK
        final.append(Status.EXPIRED if late else status)
        expected += response_frame(
            request,
            row if status is Status.OK and not late else NAN[:outputs],
            status=final[-1],
            infer_ns=infer_ns if ran else 0,
            batch_rows=batch_rows if ran else 0,
            generation=generation,
        )
    assert sent == expected
    assert outbox.statuses(len(requests)).tolist() == final
    if outbox.all_ok:
        assert set(final) == {Status.OK}


@given(
    request=st.fixed_dictionaries({"sequence": u64, "client_time_ns": u64, "instrument_id": u32}),
    outputs=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
    receive_ns=u64,
    send_ns=u64,
    infer_ns=st.integers(0, 2**40),
    generation=u32,
)
def test_a_single_answer_is_the_same_bytes_as_a_batch_of_one(
    request_frame: MakeFrame,
    request: Request,
    outputs: list[float],
    receive_ns: int,
    send_ns: int,
    infer_ns: int,
    generation: int,
) -> None:
    row = np.array(outputs, np.float32)
    lone, batch = (ResponseOutbox(len(row), 1, generation) for _ in range(2))
    lone.encode_single(
        request["sequence"],
        request["client_time_ns"],
        receive_ns,
        send_ns,
        request["instrument_id"],
        outcome_word(infer_ns, Status.OK, 1),
        row.data.cast("B"),
    )
    encoded = batch.encode(
        pending(request_frame, [request], receive_ns),
        row[None],
        None,
        send_time_ns=send_ns,
        infer_ns=infer_ns,
        batch_rows=1,
    )
    assert bytes(lone.single) == bytes(encoded)
    assert bytes(encoded) == response_frame(
        request,
        row,
        status=0,
        infer_ns=min(infer_ns, 2**32 - 1),
        batch_rows=1,
        generation=generation,
        receive_ns=receive_ns,
        send_ns=send_ns,
    )


def test_a_single_answer_after_a_mixed_batch_is_clean(request_frame: MakeFrame) -> None:
    outbox = ResponseOutbox(3, ROWS_MAX, 1)
    requests = [{"sequence": 1, "client_time_ns": 2, "instrument_id": 3}] * 2
    statuses = np.array([Status.BUSY, Status.OK], np.uint16)
    row = np.array([[1, 2, 3]], np.float32)
    outbox.encode(
        pending(request_frame, requests), row, statuses, send_time_ns=SEND_NS, infer_ns=9, batch_rows=1
    )
    outbox.encode_single(1, 2, 77, SEND_NS, 3, outcome_word(5, 0, 1), row[0].data.cast("B"))
    assert bytes(outbox.single) == response_frame(
        requests[0], row[0], status=0, infer_ns=5, batch_rows=1, generation=1
    )


def test_all_ok_tells_whether_statuses_need_counting(request_frame: MakeFrame) -> None:
    outbox = ResponseOutbox(1, ROWS_MAX, 1)
    answers = np.ones((2, 1), np.float32)

    def encode(deadline_ns: int, statuses: npt.NDArray[np.uint16] | None) -> bool:
        words = pending(request_frame, [{"deadline_ns": 0}, {"deadline_ns": deadline_ns}])
        live = answers if statuses is None else answers[statuses == 0]
        outbox.encode(words, live, statuses, send_time_ns=SEND_NS, infer_ns=1, batch_rows=2)
        return outbox.all_ok

    assert encode(0, None)
    assert encode(SEND_NS, None), "at its deadline an answer is not late"
    assert not encode(SEND_NS - 1, None)
    assert outbox.statuses(2).tolist() == [Status.OK, Status.EXPIRED]
    assert not encode(0, np.array([0, Status.BUSY], np.uint16))
    assert encode(0, None)


def test_the_outputs_of_an_expired_row_are_not_shown(request_frame: MakeFrame) -> None:
    outbox = ResponseOutbox(2, ROWS_MAX, 1)
    words = pending(request_frame, [{"deadline_ns": 1}, {"deadline_ns": 0}])
    sent = outbox.encode(words, np.ones((2, 2), np.float32), None, send_time_ns=2, infer_ns=3, batch_rows=2)
    late, good = np.frombuffer(sent, frame_dtype(SIGNAL_RESPONSE, outputs=2))
    assert np.isnan(late["outputs"]).all()
    assert (good["status"], good["outputs"].tolist()) == (Status.OK, [1, 1])
    assert (late["status"], late["infer_ns"], late["batch_rows"]) == (Status.EXPIRED, 3, 2)


def test_every_answer_names_the_generation(request_frame: MakeFrame) -> None:
    outbox = ResponseOutbox(1, ROWS_MAX, 2)
    words = pending(request_frame, [{}] * ROWS_MAX)
    ones = np.ones((ROWS_MAX, 1), np.float32)
    dtype = frame_dtype(SIGNAL_RESPONSE, outputs=1)
    sent = outbox.encode(words, ones, None, send_time_ns=1, infer_ns=1, batch_rows=ROWS_MAX)
    assert set(np.frombuffer(sent, dtype)["model_generation"].tolist()) == {2}
    outbox.encode_single(1, 2, 3, 4, 5, outcome_word(6, 0, 1), memoryview(bytes(4)))
    assert np.frombuffer(outbox.single, dtype)["model_generation"] == 2


@pytest.mark.parametrize("outputs", [1, 3, 5])
def test_padding_is_zero(request_frame: MakeFrame, outputs: int) -> None:
    outbox = ResponseOutbox(outputs, ROWS_MAX, 1)
    words = pending(request_frame, [{}] * ROWS_MAX)
    filled = np.full((ROWS_MAX, outputs), np.nan, np.float32)
    sent = np.frombuffer(
        outbox.encode(words, filled, None, send_time_ns=1, infer_ns=1, batch_rows=8), np.uint8
    ).reshape(ROWS_MAX, -1)
    assert not sent[:, 56 + 4 * outputs :].any()
    assert sent[:, 56 + 4 * outputs :].shape == (ROWS_MAX, 4)


def test_requests_of_a_newer_version_are_answered_alike(request_frame: MakeFrame) -> None:
    """Their rows are longer; what is echoed stands at the same offsets."""
    values = {"sequence": 5, "client_time_ns": 6, "instrument_id": 7}
    frame = request_frame(np.zeros(FEATURES, np.float32), version=2, longer_bytes=24, **values)
    inbox = RequestInbox(FEATURES, ROWS_MAX)
    inbox.writable()[: 2 * len(frame)] = 2 * frame
    inbox.arrived(2 * len(frame))
    inbox.scan(77)
    outbox = ResponseOutbox(1, ROWS_MAX, 1)
    row = np.array([[4.0], [5.0]], np.float32)
    sent = outbox.encode(inbox.row_words(0, 2), row, None, send_time_ns=SEND_NS, infer_ns=1, batch_rows=2)
    assert bytes(sent) == b"".join(
        response_frame(values, one, status=0, infer_ns=1, batch_rows=2, generation=1) for one in row
    )


def test_outputs_that_do_not_match_the_live_rows_are_refused(request_frame: MakeFrame) -> None:
    outbox = ResponseOutbox(2, ROWS_MAX, 1)
    words = pending(request_frame, [{}] * 3)
    statuses = np.array([0, Status.BUSY, 0], np.uint16)
    with pytest.raises(ValueError):
        outbox.encode(words, np.ones((3, 2), np.float32), statuses, send_time_ns=1, infer_ns=1, batch_rows=3)


def test_outputs_that_no_frame_carries() -> None:
    with pytest.raises(ValueError, match="1 to 16370 outputs, not 0"):
        ResponseOutbox(0, 1, 1)
