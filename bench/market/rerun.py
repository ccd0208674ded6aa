"""Recorded requests through a model once more: is every answer what it was, to the bit?

A batch is run as it was: the same rows side by side in the same places, padded to the same bucket, because
what is beside a row may change its last bits, though nothing else about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from sigd.bench.errors import BadRequest
from sigd.bench.market.recorded_steps import RecordedSteps
from sigd.models.accuracy import decisions
from sigd.models.backend import Backend, Float32Array
from sigd.models.carried_state import answer_columns
from sigd.models.onnx.columns import Columns, side_by_side
from sigd.models.spec import ModelSpec
from sigd.wire.recording.reader import Damage, Exchanges, SessionFacts, Unread
from sigd.wire.status import Status

OTHER_SHAPE: Final = "another shape"
STEPS_MISSING: Final = "its steps are not all recorded"
LIMIT: Final = "past the limit"

Batch = list[Exchanges]


class FirstDifference(msgspec.Struct, frozen=True, kw_only=True):
    """The first answer that differs: its client, and the outputs then and now."""

    client: str
    sequence: int
    request: int
    recorded: list[float]
    replayed: list[float]


class Compared(msgspec.Struct, kw_only=True):
    """Answers of one model in the recording beside those of the model that was run now.

    Attributes:
        recorded_sha256, sha256: of the file then and of the file now, in hex.
        requests: that were answered OK and run again.
        equal: those of them whose outputs are the same to the bit.
        max_difference, mean_difference: of single outputs, absolute.
        decisions_changed: requests whose answer means something else; see `sigd.models.accuracy.decisions`.
        batches: that were run.
        incomplete: those of them that are only in part in the recording, so that rows may have another place
            now.
    """

    model: str
    generation: int
    recorded_sha256: str
    sha256: str
    file: str
    backend: str
    requests: int = 0
    equal: int = 0
    max_difference: float = 0.0
    mean_difference: float = 0.0
    decisions_changed: int = 0
    batches: int = 0
    incomplete: int = 0
    first_difference: FirstDifference | None = None

    @property
    def same_model(self) -> bool:
        """Whether the file is the one whose answers were recorded."""
        return self.sha256 == self.recorded_sha256

    def passed(self, tolerance: float | None) -> bool:
        """Within the tolerance; without one the same model must give the same bits, and another one may
        differ."""
        if tolerance is not None:
            return self.max_difference <= tolerance
        return self.equal == self.requests or not self.same_model


OpenModel = Callable[[SessionFacts], Backend]
"""The model to run in the place of one that was recorded, open."""


class Rerun:
    """Runs batches again and compares.

    Attributes:
        compared: by the model's name, generation and digest.
        requests: seen so far, run or not.
        by_status: recorded answers, by status.
        left_out: requests that were not run again, by the reason.
        not_recorded: requests that were answered and have no place in the recording, between those that have
            one.
    """

    def __init__(self, open_model: OpenModel, limit: int | None = None) -> None:
        """`limit`: run no more requests than that."""
        self._open_model = open_model
        self._limit = limit
        self._replayed = 0
        self._next = -1
        self.compared: dict[tuple[str, int, str], Compared] = {}
        self.requests = 0
        self.by_status = {status.name: 0 for status in Status}
        self.left_out: dict[str, int] = {}
        self.not_recorded = 0
        self.unreadable = 0
        self._damaged = False
        self._steps = RecordedSteps()

    def start_recording(self) -> None:
        """What follows is numbered from its own start."""
        self._next = -1
        self._damaged = False
        self._steps = RecordedSteps()

    def on_damage(self) -> None:
        """What is missing before the next batch could not be read."""
        self._damaged = True
        self._steps.forget()

    def run(self, batch: Batch) -> None:
        """Run one batch, all parts of which one model answered.

        Raises:
            BadRequest: the model is not to be had.
            BackendFailed: it failed on the batch.
        """
        for part in batch:
            self._account(part)
        facts = batch[0].facts
        # A state that is carried is the model's own.
        backend = self._open_model(facts) if facts.states else None
        if backend is not None and not _fits(backend.spec, facts):
            answered = sum(np.count_nonzero(part.responses["status"] == Status.OK) for part in batch)
            self._leave_out(OTHER_SHAPE, int(answered))
            return
        given = [self._steps.rows_of(part, None if backend is None else backend.spec) for part in batch]
        rows, known = (np.concatenate(arrays) for arrays in zip(*given, strict=True))
        answers = np.concatenate([part.responses for part in batch])
        ran = answers["batch_rows"] > 0
        # Rows that did not run were nowhere in the batch.
        rows, answers, known = rows[ran], answers[ran], known[ran]
        chosen = self._chosen(answers["status"] == Status.OK, known)
        count = int(np.count_nonzero(chosen))
        if not count and (backend is None or not len(rows)):
            return
        if backend is None:
            backend = self._open_model(facts)
            if (backend.spec.features, backend.spec.outputs) != (rows.shape[1], facts.outputs):
                self._leave_out(OTHER_SHAPE, count)
                return
        self._replayed += count
        whole = int(answers["batch_rows"][0])
        outputs = _run(backend, rows, whole)
        self._steps.keep(outputs)
        if not count:
            # Only states were to be had of it.
            return
        compared = self._compared_with(facts, backend)
        compared.batches += 1
        compared.incomplete += int(np.count_nonzero(known)) < whole
        numbers = np.concatenate([part.first + np.arange(len(part.requests)) for part in batch])[ran]
        clients = [part.facts.client for part in batch for _ in range(len(part.requests))]
        names = [name for name, it_ran in zip(clients, ran, strict=True) if it_ran]
        columns = backend.spec.output_columns
        if backend.spec.state is not None:
            columns = side_by_side(backend.spec.state.answer)
            outputs = outputs[:, answer_columns(backend.spec.state)]
        _compare(compared, answers, outputs, chosen, numbers, names, columns)

    def _chosen(self, answered: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which rows are compared, of those that were answered; why not the others is noted."""
        chosen = answered & known
        if not known[answered].all():
            self._leave_out(STEPS_MISSING, int(np.count_nonzero(answered & ~known)))
        if self._limit is not None and self._replayed + np.count_nonzero(chosen) > self._limit:
            past = np.flatnonzero(chosen)[max(self._limit - self._replayed, 0) :]
            self._leave_out(LIMIT, len(past))
            chosen[past] = False
        return chosen

    @property
    def replayed(self) -> int:
        """Requests that were run again."""
        return self._replayed

    def miss(self, item: Unread) -> None:
        """Requests that are there and cannot be read."""
        self._follow(item.first, item.requests)
        self._steps.forget()
        self.unreadable += item.requests

    def _follow(self, first: int, requests: int) -> None:
        """What lies between the request before and this one is missing."""
        if max(self._next, 0) < first:
            self._steps.forget()
        if 0 <= self._next < first:
            if self._damaged:
                self.unreadable += first - self._next
            else:
                self.not_recorded += first - self._next
        self._damaged = False
        self._next = first + requests

    def _account(self, part: Exchanges) -> None:
        self._follow(part.first, len(part.requests))
        self.requests += len(part.requests)
        counts = np.bincount(part.responses["status"], minlength=len(Status)).tolist()
        for status in Status:
            self.by_status[status.name] += counts[status]
            if status is not Status.OK and counts[status]:
                self._leave_out(status.name, counts[status])

    def _leave_out(self, reason: str, count: int) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + count

    def _compared_with(self, facts: SessionFacts, backend: Backend) -> Compared:
        key = (facts.model, facts.generation, facts.sha256)
        found = self.compared.get(key)
        if found is None:
            found = self.compared[key] = Compared(
                model=facts.model,
                generation=facts.generation,
                recorded_sha256=facts.sha256,
                sha256=backend.spec.sha256.hex(),
                file=str(backend.spec.path),
                backend=backend.name,
            )
        return found


def batches(items: Iterable[Exchanges | Damage | Unread]) -> Iterator[Batch | Damage | Unread]:
    """The exchanges put together as they ran; what is damaged in between comes as it is."""
    parts: Batch = []
    for item in items:
        if isinstance(item, Damage | Unread):
            if parts:
                yield parts
            parts = []
            yield item
            continue
        if parts and not _together(parts, item):
            yield parts
            parts = []
        parts.append(item)
    if parts:
        yield parts


def _fits(spec: ModelSpec, facts: SessionFacts) -> bool:
    """Whether a model takes the steps of a client whose state was carried, and answers as many values."""
    return spec.state is not None and (spec.state.features, spec.answer_values) == (
        facts.features,
        facts.outputs,
    )


def _together(parts: Batch, item: Exchanges) -> bool:
    first = parts[0]
    return (
        item.batch != 0
        and item.batch == first.batch
        and (item.facts.model, item.facts.generation, item.facts.sha256)
        == (first.facts.model, first.facts.generation, first.facts.sha256)
    )


def _run(backend: Backend, rows: Float32Array, whole: int) -> Float32Array:
    """The outputs of a batch of which `rows` are known, and that had `whole` rows."""
    most = backend.batch_rows_max
    outputs = np.empty((len(rows), backend.spec.outputs), np.float32)
    for first in range(0, len(rows), most):
        part = rows[first : first + most]
        size = max(len(part), min(whole, most))
        backend.inputs[: len(part)] = part
        backend.inputs[len(part) : size] = 0
        if not backend.submit(size):
            while not backend.ready():
                pass
        outputs[first : first + most] = backend.outputs[: len(part)]
    return outputs


def _compare(
    compared: Compared,
    answers: npt.NDArray[np.void],
    outputs: Float32Array,
    chosen: npt.NDArray[np.bool_],
    numbers: npt.NDArray[np.int64],
    clients: list[str],
    columns: Sequence[Columns],
) -> None:
    """Add the chosen rows of a batch. `columns` are the model's outputs."""
    recorded, replayed = answers["outputs"][chosen], outputs[chosen]
    differ = (recorded.view(np.uint32) != replayed.view(np.uint32)).any(axis=1)
    before = compared.requests
    compared.requests += len(recorded)
    compared.equal += int(np.count_nonzero(~differ))
    if not differ.any():
        compared.mean_difference *= before / compared.requests
        return
    # What was finite and is none now is as far away as can be.
    difference = np.nan_to_num(np.abs(recorded.astype(np.float64) - replayed), nan=np.inf)
    compared.max_difference = max(compared.max_difference, float(difference.max()))
    total = compared.mean_difference * before + float(difference.mean(axis=1).sum())
    compared.mean_difference = total / compared.requests
    changed = decisions(recorded, columns) != decisions(replayed, columns)
    compared.decisions_changed += int(np.count_nonzero(changed))
    if compared.first_difference is None:
        row = int(differ.argmax())
        at = int(np.flatnonzero(chosen)[row])
        compared.first_difference = FirstDifference(
            client=clients[at],
            sequence=int(answers["sequence"][at]),
            request=int(numbers[at]),
            recorded=recorded[row].tolist(),
            replayed=replayed[row].tolist(),
        )


def nothing_to_run(rerun: Rerun) -> BadRequest:
    """Why no request was run again."""
    if not rerun.requests:
        return BadRequest("no request is recorded there yet")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in rerun.left_out.items())
    return BadRequest(
        f"none of the {rerun.requests:,} recorded requests can be run again: {reasons}; only what was"
        " answered OK,"
        " and has the shape of the model, can be"
    )
