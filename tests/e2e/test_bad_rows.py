"""A row that makes the model fail is its own client's loss, and nothing else's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

ROWS = 20
BAD_ROW = 7
OUTSIDE = 50.0
"""An index outside of the model's table."""


@pytest.mark.parametrize("shared_memory", [False, True], ids=["stream", "rings"])
def test_bad_row_costs_no_other_row_its_answer(
    start_daemon: StartDaemon, models: ModelMaker, shared_memory: bool
) -> None:
    daemon = start_daemon("--model", str(models.failing(4)), "--linger-us", "20000")
    rows = np.zeros((ROWS, 4), np.float32)
    spoilt = rows.copy()
    spoilt[BAD_ROW, 0] = OUTSIDE
    with (
        daemon.connect(client_name="good", shared_memory=shared_memory) as good,
        daemon.connect(client_name="bad", shared_memory=shared_memory) as bad,
    ):
        for _ in range(3):
            bad.send_many(spoilt, instrument_id=np.arange(ROWS))
            good.send_many(rows)
            wrong = bad.receive_many(ROWS)
            assert (good.receive_many(ROWS)["status"] == Status.OK).all()
            assert np.flatnonzero(wrong["status"]).tolist() == [BAD_ROW]
            assert wrong["status"][BAD_ROW] == Status.MODEL_ERROR
        assert wrong["batch_rows"].max() > ROWS, "the two shared batches"
        assert [bad.request(row).status for row in (spoilt[BAD_ROW], rows[0])] == [
            Status.MODEL_ERROR,
            Status.OK,
        ]
    assert f"client 'bad', instrument {BAD_ROW}" in daemon.said()


@pytest.mark.parametrize("rows_at_once", [1, 64])
def test_bad_rows_without_end_cost_no_other_client_an_answer(
    start_daemon: StartDaemon, models: ModelMaker, rows_at_once: int
) -> None:
    daemon = start_daemon("--model", str(models.failing(4)))
    good_rows, done = np.ones((rows_at_once, 4), np.float32), threading.Event()
    spoilt = np.zeros((64, 4), np.float32)
    spoilt[0, 0] = OUTSIDE
    failed: list[int] = []

    def send_bad_rows() -> None:
        with daemon.connect(client_name="bad") as bad:
            while not done.is_set():
                bad.send_many(spoilt)
                failed.append(int(np.count_nonzero(bad.receive_many(64)["status"])))

    thread = threading.Thread(target=send_bad_rows)
    with daemon.connect(client_name="good") as good:
        thread.start()
        try:
            while len(failed) < 20 and thread.is_alive():
                good.send_many(good_rows)
                assert (good.receive_many(rows_at_once)["status"] == Status.OK).all()
        finally:
            done.set()
            thread.join()
    assert len(failed) >= 20
    assert set(failed) == {1}, "of each burst the bad row alone"
