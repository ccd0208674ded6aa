"""The fast path in C with a native engine: the same bits as its twin in Python, and as the batch path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import uvloop

from sigd.bench.profile.client import ServedClient
from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving.fast_path import NATIVE_ROWS_MAX
from sigd.models.registry import open_backend
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

pytest.importorskip("sigd.models.native._kernels")
ROWS = 20


def answers(client: ServedClient, together: int) -> npt.NDArray[np.uint8]:
    """What the daemon gives for ROWS requests, so many at a time: frames, as bytes."""
    frames = np.frombuffer(client.frames, np.uint8).reshape(client.rows_max, -1)[:ROWS]
    frame_bytes = client.responses.frame_bytes
    got = bytearray(ROWS * frame_bytes)
    for first in range(0, ROWS, together):
        client.requests.publish(frames[first : first + together].tobytes())
        done = 0
        while done < together:
            client.poll()
            at = (first + done) * frame_bytes
            done += client.responses.take(memoryview(got)[at:], together)
    return np.frombuffer(got, np.uint8).reshape(ROWS, frame_bytes)


@pytest.fixture(params=[False, True], ids=["python", "c"])
def client(
    request: pytest.FixtureRequest, models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> ServedClient:
    if not request.param:
        monkeypatch.setattr(native_fast_path, "Path", None)
    elif not native_fast_path.is_built():
        pytest.skip("the fast path in C is not built: python hatch_build.py")
    backend = open_backend(models.mlp(8, (16,), 3), "native", batch_rows_max=64)
    return ServedClient(uvloop.new_event_loop(), backend)


def test_native_engine_gives_the_bits_of_the_batch_path(client: ServedClient) -> None:
    backend = client.batcher.backend
    rows = np.frombuffer(client.frames, np.uint8).reshape(client.rows_max, -1)[:ROWS, 40:]
    backend.inputs[:ROWS] = rows.copy().view(np.float32)[:, :8]
    backend.submit(ROWS)
    expected = backend.outputs[:ROWS].tobytes()
    for together in (1, 4, ROWS):
        got = answers(client, together)
        assert (got[:, 52] == Status.OK).all()
        assert got[:, 8].tolist() == list(range(ROWS))
        assert got[:, 56:68].tobytes() == expected
    client.close()


def test_native_engine_answers_many_requests_one_by_one(client: ServedClient) -> None:
    answers(client, 1)
    rows = answers(client, ROWS)[:, 54]
    in_c = native_fast_path.is_built()
    assert client.batcher.one_by_one_rows_max == (NATIVE_ROWS_MAX if in_c else 3)
    assert (set(rows.tolist()) == {1}) == in_c
    client.close()
