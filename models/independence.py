"""What a model's answers are checked for when it is opened, before it answers a client.

Rows must be independent: a daemon batches whatever has arrived, so a model that mixes rows (a mean over axis
0, a normalisation in training mode, a quantisation scale taken over the whole batch) would answer the same
features differently from one moment to the next. And answers must differ: a model that gives one answer to
every row has lost its input on the way.

Both are found by running rows of many magnitudes and both signs. What mixes rows by its definition is refused
from the graph, because a mixture can be too small for rows that were chosen by us.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sigd.models.backend import Backend, Float32Array
from sigd.models.errors import BackendFailed, ModelError, ModelRefused
from sigd.models.onnx.batch_axis import TRAINING_MODE
from sigd.models.onnx.columns import column_name
from sigd.models.onnx.file import read_onnx

log = logging.getLogger(__name__)

_SEED: Final = 20
_SINGLE_ROWS: Final = 24
"""Rows that run one by one where a batch is not to be had."""
_ROW_SCALES: Final = (1e-2, 1.0, 1.0, 30.0, 1e3, 5e4)
"""Typical sizes of a feature: returns, normalised values, basis points, prices."""
_EXPONENT_MAX: Final = 12.0
"""Every third row has values between 1e-3 and 1e12 side by side: something in it lies outside any clip."""
_NODES_NAMED: Final = 3
_MIXES: Final = (
    "look for an operator that works across axis 0, for training mode left on, or for dynamic quantisation"
)
_THRESHOLDS: Final = frozenset(
    {
        *(
            "ArgMax",
            "ArgMin",
            "Cast",
            "Ceil",
            "Equal",
            "Floor",
            "Gather",
            "GatherElements",
            "GatherND",
            "Greater",
        ),
        *(
            "GreaterOrEqual",
            "Hardmax",
            "If",
            "Less",
            "LessOrEqual",
            "OneHot",
            "Round",
            "Sign",
            "TreeEnsemble",
        ),
        *("TreeEnsembleClassifier", "TreeEnsembleRegressor", "Where", "SVMClassifier", "SVMRegressor"),
    }
)
"""Operators that may answer alike wherever the probed rows lie on one side of all thresholds, or that count
in steps."""


@dataclass(frozen=True, slots=True)
class _Level:
    """Rows of one kind.

    Attributes:
        rows: float32, (batch_rows_max, features): each row is kept in its place while its neighbours change.
        companies: what the neighbours are, in turns: float32 that can be broadcast to `rows`.
        required: whether the model must run them. A model that takes a feature for an index fails on large
            ones.
    """

    rows: Float32Array
    companies: tuple[Float32Array, ...]
    required: bool


def check_rows_independent(backend: Backend, real_rows: Float32Array | None = None) -> None:
    """Run the largest batch while every second row stays as it is and all others change: no answer may
    change.

    Within one bucket and one position the arithmetic for a row is the same to the bit, so no tolerance is
    needed. The arrays are zeros afterwards. A batch of one row has no neighbours, and leaves nothing to a
    normalisation in training mode.

    Args:
        backend: open, with no batch under way.
        real_rows: float32, (n, features): rows that the model will really see, where there are some.

    Raises:
        ModelRefused: an answer changed, or the graph works across the batch by its definition.
        BackendFailed: a batch of rows between 0 and 1 could not be run.
    """
    if backend.batch_rows_max == 1 and not _normalises(backend):
        return
    if backend.spec.across_batch:
        raise ModelRefused(
            f"{backend.spec.path}: {_named(backend)} works across the batch by its definition, so the answer"
            " for a"
            " row changes with the other rows of its batch, expected rows to be independent:"
            f" {_way_out(backend)}"
        )
    for level in _levels(backend, real_rows):
        try:
            _check_level(backend, level)
        except BackendFailed as error:
            if level.required or error.fatal:
                raise
    _clear(backend)


def check_answers_differ(backend: Backend) -> None:
    """Whether different rows get different answers. A model of thresholds (trees, an index) that answers
    alike is warned of, for other rows may lie on another side of them; any other is refused. The arrays are
    zeros afterwards.

    Args:
        backend: open, with no batch under way.

    Raises:
        ModelRefused: one answer for every row.
        BackendFailed: a batch of rows between 0 and 1 could not be run.
    """
    try:
        _check_answers_differ(backend)
    finally:
        _clear(backend)


def _check_answers_differ(backend: Backend) -> None:
    answers, complete = _varied_answers(backend)
    if not np.isfinite(answers).any():
        log.warning(
            "%s: answers NaN or infinity to all of %d different rows: every request will be answered"
            " MODEL_ERROR unless real"
            " features differ from these; check the model with sigd compare --data ROWS",
            backend.spec.path,
            len(answers),
        )
        return
    _warn_of_endless(backend, answers)
    if _differ(answers):
        return
    found = (
        f"{backend.spec.path}: gives one answer to {len(answers)} different rows ({_shown(answers[0])}),"
        " expected answers"
        " that depend on the features"
    )
    if backend.spec.across_batch:
        raise ModelRefused(
            f"{found}: {_named(backend)} works across the batch and leaves nothing of a single row:"
            " export it in inference mode (model.eval()), with statistics that were fixed in training"
        )
    if complete and not _has_thresholds(backend):
        raise ModelRefused(
            f"{found}: was it exported before it was trained, with weights of zeros, or in training mode"
            " (model.eval())?"
        )
    log.warning("%s; right only for a model whose thresholds lie outside these rows", found)


def _warn_of_endless(backend: Backend, answers: Float32Array) -> None:
    """Say so where an output is finite in no answer: such an answer is none for a client."""
    never = np.flatnonzero(~np.isfinite(answers).any(axis=0))
    if not len(never):
        return
    spec, first = backend.spec, int(never[0])
    log.warning(
        "%s: %s is %g in all of %d different rows, and %d outputs of %d in all are: every request will be"
        " answered MODEL_ERROR, for an answer has to be finite. Where it masks a class that may not be"
        " chosen, put a large number in its place before the export (-1e9 instead of -inf), or export the"
        " probabilities (softmax) instead of the logits",
        spec.path,
        column_name(spec.output_columns, first),
        answers[0, first],
        len(answers),
        len(never),
        spec.outputs,
    )


def _check_level(backend: Backend, level: _Level) -> None:
    for kept in (slice(0, None, 2), slice(1, None, 2)):
        first: bytes | None = None
        for company in level.companies:
            batch = np.empty_like(level.rows)
            batch[:] = company
            batch[kept] = level.rows[kept]
            answers = _answers(backend, batch)[kept].tobytes()
            if first is None:
                first = answers
            elif answers != first:
                raise _refusal(backend, batch, kept)


def _refusal(backend: Backend, batch: Float32Array, kept: slice) -> ModelRefused:
    path = backend.spec.path
    if _answers(backend, batch)[kept].tobytes() != _answers(backend, batch)[kept].tobytes():
        return ModelRefused(
            f"{path}: answers the same batch differently from one run to the next, expected answers that"
            " depend on the"
            " features alone: look for a Random operator, or for Dropout left in training mode (model.eval())"
        )
    return ModelRefused(
        f"{path}: the answer for a row changes with the other rows of its batch, expected rows to be"
        " independent:"
        f" {_MIXES}; {_way_out(backend)}"
    )


def _named(backend: Backend) -> str:
    nodes = backend.spec.across_batch
    more = len(nodes) - _NODES_NAMED
    return ", ".join(nodes[:_NODES_NAMED]) + (f" (and {more} more)" if more > 0 else "")


def _way_out(backend: Backend) -> str:
    """What to do with a model that mixes rows. A batch of one is an answer only where it gives right ones."""
    if backend.spec.batch_rows is not None:
        return "export it with a free batch axis and without what mixes rows"
    try:
        answers = _one_by_one(backend, _varied_rows(_SINGLE_ROWS, backend.spec.features))
    except BackendFailed:
        answers = np.empty((0, backend.spec.outputs), np.float32)
    inference = (
        "export it in inference mode (model.eval()), with statistics that were fixed in training; batches of"
        " one row"
        " are no way out, for a single row has nothing to be compared with"
    )
    if _normalises(backend):
        return inference
    columns = backend.spec.input_columns
    name = columns[0].name if columns else backend.spec.input_name
    together = (
        "where the rows of one call belong together (all instruments at once), give their number, and one"
        " request is"
        f" one call: --dim {name}.0=ROWS"
    )
    if not _differ(answers):
        return f"{inference}; {together}"
    alone = (
        "export it without, or serve it with batch_rows_max 1, if it was trained and tested on batches of one"
        " row"
    )
    return f"{alone}; {together}"


def _levels(backend: Backend, real_rows: Float32Array | None) -> list[_Level]:
    count, features = backend.batch_rows_max, backend.spec.features
    draw = np.random.default_rng(_SEED)
    # Within [0, 1), which suits a model that takes a feature for an index; the neighbours' range moves by
    # half.
    unit = (
        np.linspace(0.0, 0.5, features, dtype=np.float32)
        * np.linspace(1, 0.5, count, dtype=np.float32)[:, None]
    )
    levels = [_Level(unit, (_filled(0.25), _filled(0.9375)), required=True)]
    wide = draw.standard_normal((count, features), np.float32)
    levels.append(
        _Level(
            _varied_rows(count, features),
            (wide, (wide * 1e6).astype(np.float32)),
            required=False,
        )
    )
    if real_rows is not None and len(real_rows):
        real = np.resize(real_rows, (count, features)).astype(np.float32)
        levels.append(
            _Level(
                real, (np.roll(real, 1, axis=0), real[::-1], (real * -8).astype(np.float32)), required=False
            )
        )
    return levels


def _varied_rows(count: int, features: int) -> Float32Array:
    """Rows of many magnitudes and both signs, float32, (count, features); the same for the same sizes."""
    draw = np.random.default_rng(_SEED + 1)
    rows = draw.standard_normal((count, features))
    rows *= np.resize(_ROW_SCALES, count)[:, None]
    rows[1::4] = np.abs(rows[1::4])
    wild = draw.uniform(-3, _EXPONENT_MAX, (count, features))
    signs = draw.choice((-1.0, 1.0), (count, features))
    rows[2::3] = (signs * 10.0**wild)[2::3]
    return rows.astype(np.float32)


def _varied_answers(backend: Backend) -> tuple[Float32Array, bool]:
    """Answers to rows that differ, and whether all kinds of them ran. It ends with the first answer that is
    another one, for a batch of a large model takes long."""
    features = backend.spec.features
    count = max(_SINGLE_ROWS, backend.batch_rows_max)
    unit = np.linspace(0.0, 0.9375, count * features, dtype=np.float32).reshape(count, features)
    whole = np.arange(4, dtype=np.float32)[:, None].repeat(features, axis=1)
    answers = np.empty((0, backend.spec.outputs), np.float32)
    complete = True
    for rows in (unit, whole, _varied_rows(count, features)):
        try:
            for batch in _batches(backend, rows):
                answers = np.concatenate([answers, _answers(backend, batch)])
                if _differ(answers) and np.isfinite(answers).any(axis=0).all():
                    return answers, complete
        except BackendFailed as error:
            if error.fatal or rows is unit:
                raise
            complete = False
    return answers, complete


def _batches(backend: Backend, rows: Float32Array) -> Iterator[Float32Array]:
    """The first two rows of each kind say most, so they come first."""
    sizes = (min(2, backend.batch_rows_max), backend.batch_rows_max)
    first = 0
    while first < len(rows):
        size = sizes[min(first, 1)]
        yield rows[first : first + size]
        first += size


def _one_by_one(backend: Backend, rows: Float32Array) -> Float32Array:
    return np.concatenate([_answers(backend, rows[row : row + 1]) for row in range(len(rows))])


def _answers(backend: Backend, rows: Float32Array) -> Float32Array:
    """A copy of the answers to one batch."""
    backend.inputs[: len(rows)] = rows
    if not backend.submit(len(rows)):
        while not backend.ready():
            pass
    return backend.outputs[: len(rows)].copy()


def _filled(value: float) -> Float32Array:
    return np.array([value], np.float32)


def _differ(answers: Float32Array) -> bool:
    return len(answers) > 0 and bool((answers.view(np.uint32) != answers.view(np.uint32)[0]).any())


def _normalises(backend: Backend) -> bool:
    """Whether it takes mean and variance from the batch: of one row nothing is left but what rounding
    makes."""
    return any(node.endswith(TRAINING_MODE) for node in backend.spec.across_batch)


def _has_thresholds(backend: Backend) -> bool:
    """Whether the graph has an operator that may answer alike over all rows that were tried. True where it is
    not known."""
    try:
        model = read_onnx(backend.spec.path, backend.spec.sha256).model
    except ModelError:
        return True
    return any(node.op_type in _THRESHOLDS for node in model.graph.node)


def _clear(backend: Backend) -> None:
    backend.inputs[:] = 0.0
    backend.outputs[:] = 0.0


def _shown(answer: Float32Array) -> str:
    return ", ".join(f"{value:.6g}" for value in answer[:4]) + (", ..." if len(answer) > 4 else "")
