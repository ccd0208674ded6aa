"""Recorded requests once more: run as they were, compared to the bit, and what could not be run is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.bench.errors import BadRequest
from sigd.bench.market.rerun import Compared, Rerun, batches, nothing_to_run
from sigd.models.spec import ModelSpec
from sigd.wire import fields
from sigd.wire.errors import RecordingDamaged
from sigd.wire.layout import frame_dtype
from sigd.wire.recording.reader import Damage, Exchanges, SessionFacts, Unread
from sigd.wire.status import Status

SHA256 = bytes(range(32))


class FakeBackend:
    """Outputs are the first two features, times `factor`, plus the number of rows in the batch.

    Attributes:
        seen: a copy of each batch.
    """

    name = "fake"

    def __init__(
        self, *, factor: float = 1.0, batch_rows_max: int = 8, sha256: bytes = SHA256, features: int = 3
    ) -> None:
        self.spec = ModelSpec("m", Path("m.onnx"), sha256, "i", "o", features, 2, (features,), (2,), None, 17)
        self.factor = np.float32(factor)
        self.batch_rows_max = batch_rows_max
        self.inputs = np.full((batch_rows_max, features), 99, np.float32)
        self.outputs = np.zeros((batch_rows_max, 2), np.float32)
        self.seen: list[npt.NDArray[np.float32]] = []
        self.synchronous = True
        self._polls = 0

    def submit(self, rows: int) -> bool:
        self.seen.append(self.inputs[:rows].copy())
        self.outputs[:rows] = self.inputs[:rows, :2] * self.factor + rows
        return self.synchronous

    def ready(self) -> bool:
        self._polls += 1
        return self._polls % 3 == 0

    open = close = bare_call = None


def facts(**changed: Any) -> SessionFacts:
    return SessionFacts(
        **{
            "client": "engine",
            "transport": "stream",
            "model": "m",
            "path": "m.onnx",
            "sha256": SHA256.hex(),
            "generation": 1,
            "features": 3,
            "outputs": 2,
            "backend": "fake",
            "batch_rows_max": 8,
            **changed,
        }
    )


def exchange(
    rows: list[float], *, first: int = 0, batch: int = 0, whole: int | None = None, **of_facts: Any
) -> Exchanges:
    """Requests whose first feature is given, answered OK as FakeBackend does."""
    whole = len(rows) if whole is None else whole
    requests = np.zeros(len(rows), frame_dtype(fields.SIGNAL_REQUEST, 3, 2))
    responses = np.zeros(len(rows), frame_dtype(fields.SIGNAL_RESPONSE, 3, 2))
    requests["features"][:, 0] = rows
    requests["sequence"] = responses["sequence"] = np.arange(first, first + len(rows)) * 10
    responses["outputs"] = requests["features"][:, :2] + whole
    responses["batch_rows"] = whole
    return Exchanges(of_facts.pop("session", 1), facts(**of_facts), batch, first, requests, responses)


def rerun_of(backend: FakeBackend, items: list[Exchanges], limit: int | None = None) -> Rerun:
    rerun = Rerun(lambda _: backend, limit)  # type: ignore[arg-type,return-value]
    for batch in batches(items):
        assert not isinstance(batch, Damage | Unread)
        rerun.run(batch)
    return rerun


def only(rerun: Rerun) -> Compared:
    (compared,) = rerun.compared.values()
    return compared


def test_what_ran_together_is_run_together_and_else_alone() -> None:
    backend = FakeBackend()
    rerun = rerun_of(
        backend,
        [
            exchange([1, 2], first=0, batch=7, whole=5),
            exchange([3, 4, 5], first=2, batch=7, whole=5, session=2, client="other"),
            exchange([6], first=5),
            exchange([7], first=6),
            exchange([8], first=7, batch=8),
            exchange([9], first=8, batch=9),
        ],
    )
    assert [batch[:, 0].tolist() for batch in backend.seen] == [[1, 2, 3, 4, 5], [6], [7], [8], [9]]
    compared = only(rerun)
    assert (compared.requests, compared.equal, compared.batches, compared.incomplete) == (9, 9, 5, 0)
    assert (rerun.requests, rerun.replayed, rerun.left_out, rerun.not_recorded) == (9, 9, {}, 0)
    assert compared.same_model
    assert compared.passed(None)
    assert compared.passed(0.0)


@pytest.mark.parametrize("change", [{"model": "n"}, {"generation": 2}, {"sha256": "00"}])
def test_two_models_share_no_batch(change: dict[str, Any]) -> None:
    backend = FakeBackend()
    rerun_of(backend, [exchange([1], batch=7), exchange([2], first=1, batch=7, **change)])
    assert [len(batch) for batch in backend.seen] == [1, 1]


def test_a_batch_that_is_there_only_in_part_is_padded_to_what_it_was() -> None:
    backend = FakeBackend()
    rerun = rerun_of(backend, [exchange([1, 2], batch=7, whole=5)])
    assert [batch[:, 0].tolist() for batch in backend.seen] == [[1, 2, 0, 0, 0]]
    assert (only(rerun).equal, only(rerun).incomplete) == (2, 1)


def test_a_model_with_smaller_batches_gets_several() -> None:
    backend = FakeBackend(batch_rows_max=2)
    rerun = rerun_of(backend, [exchange([1, 2, 3], batch=7)])
    assert [batch[:, 0].tolist() for batch in backend.seen] == [[1, 2], [3, 0]]
    assert only(rerun).max_difference == 1.0


def test_a_backend_beside_the_caller_is_waited_for() -> None:
    backend = FakeBackend()
    backend.synchronous = False
    assert only(rerun_of(backend, [exchange([1], first=n) for n in range(3)])).equal == 3


def test_what_did_not_run_is_left_out_and_has_no_place_in_the_batch() -> None:
    item = exchange([1, 2, 3, 4, 5, 6], batch=7, whole=3)
    statuses = [Status.OK, Status.EXPIRED, Status.MODEL_ERROR, Status.BUSY, Status.EXPIRED, Status.OK]
    item.responses["status"] = statuses
    # The second of the two that expired did so after it had run.
    item.responses["batch_rows"] = [4, 0, 4, 0, 4, 4]
    item.responses["outputs"] = item.requests["features"][:, :2] + 4
    item.responses["outputs"][1:5] = np.nan
    backend = FakeBackend()
    rerun = rerun_of(backend, [item])
    assert [batch[:, 0].tolist() for batch in backend.seen] == [[1, 3, 5, 6]]
    assert (only(rerun).requests, only(rerun).equal) == (2, 2)
    assert rerun.left_out == {"EXPIRED": 2, "MODEL_ERROR": 1, "BUSY": 1}
    assert rerun.by_status == {
        "OK": 2,
        "EXPIRED": 2,
        "BUSY": 1,
        "BAD_INPUT": 0,
        "MODEL_ERROR": 1,
        "DRAINING": 0,
        "CONFLATED": 0,
        "WARMING_UP": 0,
        "STORED": 0,
    }


def test_a_difference_is_measured_and_the_first_one_told() -> None:
    items = [
        exchange([1.0], first=0),
        exchange([0.0, 8.0], first=1, batch=7, client="b"),
        exchange([-4.0], first=3),
    ]
    items[1].responses["outputs"][1] = [2, 11]
    rerun = rerun_of(FakeBackend(), items)
    compared = only(rerun)
    assert (compared.requests, compared.equal, compared.decisions_changed) == (4, 3, 1)
    assert compared.max_difference == 9.0
    assert compared.mean_difference == pytest.approx((8 + 9) / 2 / 4)
    first = compared.first_difference
    assert first is not None
    assert (first.client, first.request, first.sequence) == ("b", 2, 20)
    assert (first.recorded, first.replayed) == ([2, 11], [10, 2])
    assert not compared.passed(None)
    assert compared.passed(9.0)
    assert not compared.passed(8.9)


def test_a_single_output_decides_by_its_sign() -> None:
    backend = FakeBackend()
    backend.spec = replace(backend.spec, outputs=1, output_dims=(1,))
    backend.outputs = np.zeros((8, 1), np.float32)
    backend.submit = lambda rows: True  # type: ignore[method-assign]
    items = [exchange([1, 2, 3], outputs=1)]
    answers = np.zeros(3, frame_dtype(fields.SIGNAL_RESPONSE, 3, 1))
    answers["batch_rows"] = 3
    answers["outputs"][:, 0] = [-6.0, 0.0, 2.0]
    compared = only(rerun_of(backend, [replace(items[0], responses=answers)]))
    assert (compared.equal, compared.decisions_changed) == (1, 2)


def test_a_bit_is_a_difference_even_between_two_zeros() -> None:
    item = exchange([-1.0])
    item.responses["outputs"] = [[-0.0, 1.0]]
    compared = only(rerun_of(FakeBackend(), [item]))
    assert (compared.equal, compared.max_difference) == (0, 0.0)
    assert not compared.passed(None)
    assert compared.passed(0.0)


def test_what_is_no_number_any_more_is_within_no_tolerance() -> None:
    with np.errstate(invalid="ignore"):
        compared = only(rerun_of(FakeBackend(factor=float("inf")), [exchange([1.0])]))
    assert not compared.passed(1e30)


def test_another_model_may_differ_unless_there_is_a_tolerance() -> None:
    compared = only(rerun_of(FakeBackend(factor=2, sha256=bytes(32)), [exchange([3.0])]))
    assert not compared.same_model
    assert compared.equal == 0
    assert compared.passed(None)
    assert not compared.passed(2.9)
    assert compared.passed(3.0)


def test_no_more_than_the_limit_is_run() -> None:
    backend = FakeBackend()
    rerun = rerun_of(
        backend, [exchange([1, 2, 3], batch=7), exchange([4], first=3), exchange([5], first=4)], limit=2
    )
    assert rerun.replayed == only(rerun).requests == 2
    assert rerun.left_out == {"past the limit": 3}
    assert [batch[:, 0].tolist() for batch in backend.seen] == [[1, 2, 3]], (
        "the batch is as it was all the same"
    )


def test_another_shape_is_left_out() -> None:
    rerun = rerun_of(FakeBackend(features=4), [exchange([1, 2])])
    assert (rerun.replayed, rerun.left_out) == (0, {"another shape": 2})
    assert "another shape 2" in str(nothing_to_run(rerun))
    assert isinstance(nothing_to_run(rerun), BadRequest)


def test_numbers_that_are_missing_were_not_recorded() -> None:
    rerun = rerun_of(
        FakeBackend(), [exchange([1], first=100), exchange([2], first=101), exchange([3], first=110)]
    )
    assert rerun.not_recorded == 8
    rerun.start_recording()
    rerun.run([exchange([1], first=0)])
    rerun.run([exchange([1], first=5)])
    assert rerun.not_recorded == 12


def test_damage_comes_in_its_place_and_parts_no_batch_in_silence() -> None:
    damage = Damage(Path("x"), RecordingDamaged(1, "cut"))
    one, other = exchange([1], batch=7, whole=2), exchange([2], first=1, batch=7, whole=2)
    assert list(batches([one, damage, other])) == [[one], damage, [other]]
    assert list(batches([one, other, damage])) == [[one, other], damage]


def test_an_empty_recording_is_told_as_one() -> None:
    assert str(nothing_to_run(Rerun(lambda _: pytest.fail("there is no one to run for"), None))) == (
        "no request is recorded there yet"
    )


def test_what_is_missing_where_it_is_damaged_is_no_gap_of_the_recorder() -> None:
    rerun = rerun_of(FakeBackend(), [exchange([1], first=0), exchange([2], first=4)])
    assert (rerun.not_recorded, rerun.unreadable) == (3, 0)
    rerun.on_damage()
    rerun.run([exchange([3], first=10)])
    rerun.run([exchange([4], first=12)])
    assert (rerun.not_recorded, rerun.unreadable) == (4, 5)
    rerun.miss(Unread(13, 2))
    assert (rerun.not_recorded, rerun.unreadable) == (4, 7)
