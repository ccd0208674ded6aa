"""What the codec costs. Not run by default:
`pytest tests/wire/test_codec_benchmark.py --benchmark-enable`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sigd.wire.client.request_outbox import RequestOutbox
from sigd.wire.client.response_inbox import ResponseInbox
from sigd.wire.inbox import RequestInbox
from sigd.wire.layout import outcome_word
from sigd.wire.outbox import ResponseOutbox
from sigd.wire.status import Status

FEATURES = 64
OUTPUTS = 3
ROWS = [1, 64]

MakeFrame = Callable[..., bytes]


def batch(request_frame: MakeFrame, rows: int) -> bytes:
    return b"".join(request_frame(np.ones(FEATURES, np.float32), sequence=n) for n in range(rows))


def test_answer_one_alone(benchmark: BenchmarkFixture) -> None:
    outbox = ResponseOutbox(OUTPUTS, 64, 1)
    outputs = np.ones(OUTPUTS, np.float32).data.cast("B")
    outcome = outcome_word(5_000, Status.OK, 1)
    benchmark(outbox.encode_single, 1, 2, 3, 4, 5, outcome, outputs)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("mixed", [False, True], ids=["all OK", "mixed"])
def test_answer_requests(
    benchmark: BenchmarkFixture, request_frame: MakeFrame, rows: int, mixed: bool
) -> None:
    inbox = RequestInbox(FEATURES, 64)
    frames = batch(request_frame, rows)
    inbox.writable()[: len(frames)] = frames
    inbox.arrived(len(frames))
    inbox.scan(1)
    words = inbox.row_words(0, rows)
    outbox = ResponseOutbox(OUTPUTS, 64, 1)
    statuses = np.arange(rows, dtype=np.uint16) % 4 if mixed else None
    live = rows if statuses is None else int((statuses == 0).sum())
    outputs = np.ones((live, OUTPUTS), np.float32)
    sent = benchmark(outbox.encode, words, outputs, statuses, send_time_ns=9, infer_ns=5, batch_rows=rows)
    assert len(sent) == rows * outbox.frame_bytes


@pytest.mark.parametrize("rows", ROWS)
def test_client_writes_requests(benchmark: BenchmarkFixture, rows: int) -> None:
    outbox = RequestOutbox(FEATURES)
    features = np.ones((rows, FEATURES), np.float32)
    if rows == 1:
        benchmark(outbox.encode_single, features[0], 1, 2, 3, 4)
    else:
        columns = outbox.as_columns(rows, np.arange(rows), 2, 3, 4)
        benchmark(outbox.encode, features, columns)


@pytest.mark.parametrize("rows", ROWS)
def test_client_reads_responses(benchmark: BenchmarkFixture, rows: int) -> None:
    outbox = ResponseOutbox(OUTPUTS, 64, 1)
    outbox.encode_single(
        1, 2, 3, 4, 5, outcome_word(5_000, 0, 1), np.ones(OUTPUTS, np.float32).data.cast("B")
    )
    frames = rows * bytes(outbox.single)
    inbox = ResponseInbox(OUTPUTS)

    def read() -> None:
        inbox.writable()[: len(frames)] = frames
        inbox.arrived(len(frames))
        inbox.scan()
        if rows == 1:
            inbox.take_one()
        else:
            inbox.take(rows)

    benchmark(read)
