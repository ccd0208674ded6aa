"""How far one model's answers lie from another's, and how far an engine's may lie from the oracle's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.models.backend import Backend, Float32Array
from sigd.models.errors import ModelRefused
from sigd.models.manifest import NOT_MEASURED, Accuracy, Golden, Manifest, PrecisionName
from sigd.models.onnx.columns import Columns

UNDECIDED: Final = -2
"""What `decisions` says of an answer with a NaN."""
_SMALL_SHARE: Final = 1e-3
"""Answers below this share of the largest count as that large in a relative error: next to 0 it says
nothing."""
_MARGIN: Final = 2.0
"""The largest error over some rows is exceeded by other rows; not by much more than this, for rows of their
kind."""
_ROUNDING: Final = 1e-4
"""Another processor or another batch size sums in another order; as a share of the largest answer."""
_UNMEASURED: Final[dict[PrecisionName, float]] = {
    "fp32": 1e-4,
    "tf32": 5e-3,
    "fp16": 1e-2,
    "bf16": 1e-2,
    "int8": 1e-2,
}
"""What a builder may add to the error of the graph it was given, as a share of the largest answer, where the
engine itself could not be run. Generous: it is to find a wrong engine, not to grade a right one."""
_ERROR_MAX: Final[dict[PrecisionName, float]] = {
    "fp32": 1e-3,
    "tf32": 2e-2,
    "fp16": 5e-2,
    "bf16": 0.1,
    "int8": 0.5,
}
"""The most that an engine's answer may be away from the oracle's, as a share of the largest answer, whatever
was measured: an engine further off does something else than its model."""
AGREEMENT_MIN: Final[dict[PrecisionName, float]] = {
    "fp32": 0.99,
    "tf32": 0.95,
    "fp16": 0.95,
    "bf16": 0.9,
    "int8": 0.75,
}
"""The same of a model that answers integers alone: the least share of rows that are the oracle's."""


def run_rows(backend: Backend, rows: Float32Array) -> Float32Array:
    """The answers to any number of rows, in batches as large as the backend takes.

    Args:
        backend: open, with no batch under way.
        rows: float32, shape (n, features).

    Returns:
        float32, shape (n, outputs).

    Raises:
        BackendFailed: a batch could not be run.
    """
    answers = np.empty((len(rows), backend.spec.outputs), np.float32)
    for start in range(0, len(rows), backend.batch_rows_max):
        batch = rows[start : start + backend.batch_rows_max]
        backend.inputs[: len(batch)] = batch
        if not backend.submit(len(batch)):
            while not backend.ready():
                pass
        answers[start : start + len(batch)] = backend.outputs[: len(batch)]
    return answers


def decisions(outputs: Float32Array, columns: Sequence[Columns] = ()) -> npt.NDArray[np.intp]:
    """What each row's answer means: the label, where the model answers one; else of its probabilities, or of
    its first output, the largest value, the first of equals; of a single value its sign, -1 or 1, with 0 a
    decision of its own. An answer with a NaN there decides nothing: UNDECIDED.

    Args:
        outputs: float32, shape (rows, outputs).
        columns: the model's outputs; none where they are one tensor of floats.
    """
    deciding = _deciding(columns)
    own = outputs if deciding is None else outputs[:, deciding.first : deciding.first + deciding.width]
    if deciding is not None and _counts(deciding) and deciding.width == 1:
        decided = own[:, 0]
    else:
        decided = np.sign(own[:, 0]) if own.shape[1] == 1 else np.argmax(own, axis=1)
    return np.where(np.isnan(own).any(axis=1), UNDECIDED, decided).astype(np.intp)


def _deciding(columns: Sequence[Columns]) -> Columns | None:
    """The output that says what an answer means."""
    labels = [one for one in columns if _counts(one) and one.width == 1]
    probabilities = [one for one in columns if one.labels]
    return next(iter((*labels, *probabilities, *columns)), None)


def _counts(one: Columns) -> bool:
    """Whether its values are numbers of classes, or other integers: no rounding makes them differ a
    little."""
    return one.text or one.integers is not None


def measured_columns(outputs: int, columns: Sequence[Columns]) -> npt.NDArray[np.bool_]:
    """Which columns an error can be told of: all but integers. A label that rounding tips over is a whole
    number away: `agreement` counts those.

    Returns:
        bool, shape (outputs,).
    """
    measured = np.ones(outputs, np.bool_)
    for one in columns:
        measured[one.first : one.first + one.width] = not _counts(one)
    return measured


def agreement(outputs: Float32Array, reference: Float32Array, columns: Sequence[Columns] = ()) -> float:
    """Share of rows that decide the same, or, where all outputs are integers, of rows that are equal."""
    if measured_columns(outputs.shape[1], columns).any():
        return float(np.mean(decisions(outputs, columns) == decisions(reference, columns)))
    return float(np.mean((outputs == reference).all(axis=1)))


def relative_errors(outputs: Float32Array, reference: Float32Array) -> npt.NDArray[np.float64]:
    """|outputs - reference| / max(|reference|, 1e-3 * the largest |reference|), float64, the same shape."""
    truth = reference.astype(np.float64)
    scale = np.maximum(np.abs(truth), _SMALL_SHARE * np.abs(truth).max(initial=0.0))
    return np.abs(outputs - truth) / np.where(scale > 0, scale, 1.0)


def cosine(outputs: Float32Array, reference: Float32Array) -> float:
    """Cosine of the angle between the two, each taken as one long vector; 1.0 where both are zero, 0.0 where
    one is."""
    left, right = outputs.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    if lengths == 0.0:
        return float(not left.any() and not right.any())
    return float(np.clip(left @ right / lengths, -1.0, 1.0))


def measure(
    outputs: Float32Array, reference: Float32Array, measured_on: str, columns: Sequence[Columns] = ()
) -> Accuracy:
    """The accuracy of `outputs` against `reference`, both float32 of shape (rows, outputs), at least one row.
    Errors are those of `measured_columns`.

    Values that are NaN or infinite on both sides (a class that may not be chosen has the logit -inf) have no
    error.

    Raises:
        ModelRefused: an answer is NaN or infinite where the reference is finite, or the other way round.
    """
    number, expected = np.isfinite(outputs), np.isfinite(reference)
    wrong = (number != expected).any(axis=1)
    if wrong.any():
        found, wanted = (
            ("NaN or infinity", "finite") if (expected & ~number).any() else ("a number", "not finite")
        )
        raise ModelRefused(
            f"on {measured_on}: {found} in {int(wrong.sum())} of {len(outputs)} rows in which the oracle is"
            f" {wanted}: values"
            " inside leave the range of the precision, so build with a wider one (--precision fp32)"
        )
    measured = measured_columns(outputs.shape[1], columns)
    outputs_told, reference_told = (
        np.where(expected, values, np.float32(0))[:, measured] for values in (outputs, reference)
    )
    return Accuracy(
        measured_on=measured_on,
        rows=len(outputs),
        max_abs=float(np.abs(outputs_told.astype(np.float64) - reference_told).max(initial=0.0)),
        max_rel=float(relative_errors(outputs_told, reference_told).max(initial=0.0)),
        cosine=cosine(outputs_told, reference_told),
        label_agreement=agreement(outputs, reference, columns),
    )


def allowed_error(
    precision: PrecisionName, reference: Float32Array, accuracy: Accuracy | str, conversion: Accuracy | str
) -> float:
    """The most that an engine's answer to a golden row may differ from the oracle's.

    Twice what was measured on the engine, plus a share of the largest answer for rounding. Where the engine
    was not
    measured: twice what was measured on the graph it was built from, plus what the precision may add. Never
    more than `error_max`.
    """
    scale = _scale(reference)
    if isinstance(accuracy, Accuracy):
        allowed = _MARGIN * accuracy.max_abs + _ROUNDING * scale
    else:
        measured = conversion.max_abs if isinstance(conversion, Accuracy) else 0.0
        allowed = _MARGIN * measured + _UNMEASURED[precision] * scale
    return min(allowed, error_max(precision, reference))


def error_max(precision: PrecisionName, reference: Float32Array) -> float:
    """The most that an engine of that precision may be away from the oracle's answers, float32 of shape
    (rows, outputs)."""
    return _ERROR_MAX[precision] * _scale(reference)


def _scale(reference: Float32Array) -> float:
    """The largest answer that is finite."""
    return float(np.abs(reference[np.isfinite(reference)]).max(initial=0.0))


def check_golden(backend: Backend, manifest: Manifest) -> float:
    """Run the golden rows through an engine that has just been opened.

    Returns:
        The largest difference from the oracle's answers; 0 where they are integers alone.

    Raises:
        ModelRefused: an answer differs by more than the manifest allows, or is not finite.
        BackendFailed: the rows could not be run.
    """
    golden: Golden = manifest.golden
    expected = golden.output_rows()
    answers = run_rows(backend, golden.feature_rows())
    measured = measured_columns(expected.shape[1], manifest.output_columns)
    if not measured.any():
        _check_golden_integers(backend, manifest, agreement(answers, expected, manifest.output_columns))
        return 0.0
    expected, answers = expected[:, measured], answers[:, measured]
    with np.errstate(invalid="ignore"):
        differences = np.where(answers == expected, 0.0, np.abs(answers.astype(np.float64) - expected))
    largest = float(differences.max())
    if not largest <= golden.max_abs_allowed:
        raise ModelRefused(
            f"{backend.spec.path}: answers its golden rows with an error of {largest:.3g}, expected at most"
            f" {golden.max_abs_allowed:.3g}: the engine does not do here what it did when it was built, so"
            " build it again"
        )
    return largest


def _check_golden_integers(backend: Backend, manifest: Manifest, agreeing: float) -> None:
    """One row may be another, and more where more were when the engine was built; never most of them."""
    measured, rows = manifest.accuracy, manifest.golden.rows
    expected = (
        measured.label_agreement if isinstance(measured, Accuracy) else AGREEMENT_MIN[manifest.precision]
    )
    least = max(0.5, 1 - _MARGIN * (1 - expected) - 1 / rows)
    if agreeing < least:
        raise ModelRefused(
            f"{backend.spec.path}: answers {agreeing:.0%} of its {rows} golden rows as it should, expected at"
            f" least {least:.0%}: the engine does not do here what it did when it was built, so build it"
            " again"
        )


def shown(accuracy: Accuracy | str, columns: Sequence[Columns] = ()) -> str:
    """One line for people. `columns` are the model's outputs; none where they are one tensor of floats."""
    if not isinstance(accuracy, Accuracy):
        return NOT_MEASURED
    if columns and all(_counts(one) for one in columns):
        return (
            f"integers, of which {accuracy.label_agreement:.2%} of rows agree ({accuracy.rows} rows,"
            f" {accuracy.measured_on})"
        )
    return (
        f"max abs {accuracy.max_abs:.3g}, max rel {accuracy.max_rel:.3g}, cosine {accuracy.cosine:.8f},"
        " labels agree"
        f" {accuracy.label_agreement:.2%} ({accuracy.rows} rows, {accuracy.measured_on})"
    )
