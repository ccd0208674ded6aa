"""Rows of features to calibrate, check and compare models with: from a file, or drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from sigd.models.backend import Float32Array
from sigd.models.errors import ModelError
from sigd.models.onnx.columns import Columns
from sigd.models.spec import ModelSpec

if TYPE_CHECKING:
    from sigd.models.market.capture import CaptureReader

CAPTURE_STRIDE: Final = 50
"""Of a capture every 50th sample is taken: its neighbours, microseconds away, are nearly the same row."""

_MISSING_SHARE: Final = 1 / 16


class RowsRefused(ModelError):
    """The file does not hold rows for that model; the message says what was expected."""


class RowsRead(NamedTuple):
    """What `read_rows` found.

    Attributes:
        rows: float32, shape (n, features).
        capture: what has read the capture that they come from, and knows what is wrong with it as far as it
            was read; None where they come from another file.
    """

    rows: Float32Array
    capture: CaptureReader | None


def seeded_rows(spec: ModelSpec, rows: int, seed: int) -> Float32Array:
    """Rows as `drawn_rows` makes them. Where the graph reads NaN as a missing value, one float of 16 is
    missing in every second row."""
    drawn = drawn_rows(spec.input_columns, spec.features, rows, seed)
    if spec.reads_missing and spec.takes_nan:
        draw = np.random.default_rng((seed, 1))
        missing = np.zeros(drawn.shape, np.bool_)
        missing[1::2] = draw.random(missing[1::2].shape, np.float32) < _MISSING_SHARE
        for one in spec.input_columns:
            if one.integers is not None:
                missing[:, one.first : one.first + one.width] = False
        drawn[missing] = np.nan
    return drawn


def drawn_rows(columns: Sequence[Columns], features: int, rows: int, seed: int) -> Float32Array:
    """Rows of values that a model takes, the same for the same seed.

    Args:
        columns: of its inputs; those that no input has are floats.
        features: all columns of a row.

    Returns:
        float32, shape (rows, features). Floats are standard normal. Integers that number the rows of a table
        are spread over it; others are 0 or 1, which every such input has.
    """
    drawn = np.random.default_rng(seed).standard_normal((rows, features), np.float32)
    draw = np.random.default_rng((seed, 2))
    for one in columns:
        if one.integers is not None:
            greatest = min(one.table - 1, one.integers[1]) if one.table else 1
            own = slice(one.first, one.first + one.width)
            drawn[:, own] = draw.integers(0, greatest, (rows, one.width), endpoint=True)
    return drawn


def read_rows(path: Path, spec: ModelSpec, rows_max: int, *, salvage: bool = False) -> RowsRead:
    """The rows in a file, at most `rows_max`, spread evenly where there are more.

    Args:
        path: `.npy` of float32 or float64, shape (n, features) or (n, *input_dims); or a market capture
            (`.gz`) for a model that reads the features of sigd's own catalogue.
        spec: the model that is to read them.
        rows_max: the most rows.
        salvage: read what is whole of a damaged capture.

    Returns:
        Rows of which every value is one that the model takes: finite, or NaN where it stands for a missing
        one.

    Raises:
        RowsRefused: not such a file, or rows of another shape, or a value that is not finite.
    """
    try:
        if path.suffix == ".gz":
            rows, capture = _read_capture(path, spec, rows_max, salvage=salvage)
        else:
            rows, capture = _read_npy(path, spec), None
    except OSError as error:
        raise RowsRefused(f"{path}: cannot be read: {error.strerror or error}") from error
    if not len(rows):
        raise RowsRefused(f"{path}: holds no row, expected at least one")
    chosen = np.linspace(0, len(rows) - 1, min(rows_max, len(rows))).astype(np.intp)
    rows = np.ascontiguousarray(rows[chosen], np.float32)
    bad = ~(~np.isinf(rows) if spec.takes_nan else np.isfinite(rows)).all(axis=1)
    if bad.any():
        raise RowsRefused(
            f"{path}: {int(bad.sum())} rows of {len(rows)} hold {'' if spec.takes_nan else 'a NaN or '}an"
            " infinity (the first"
            f" is row {chosen[bad.argmax()]}), expected finite float32 features: drop those rows"
        )
    for one in spec.input_columns:
        own = rows[:, one.first : one.first + one.width]
        if one.integers is not None and not (own == np.trunc(own)).all():
            raise RowsRefused(
                f"{path}: columns {one.first} to {one.first + one.width - 1} are the integers of input"
                f" {one.name!r}, and some"
                " hold a fraction: put the columns in the order that sigd inspect prints"
            )
    return RowsRead(rows, capture)


def _read_npy(path: Path, spec: ModelSpec) -> Float32Array:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise RowsRefused(
            f"{path}: not a .npy file ({error}), expected one as numpy.save writes it, or a capture (.gz)"
        ) from error
    shapes = {(spec.features,), spec.input_dims}
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or rows.shape[1:] not in shapes:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else "several arrays"
        raise RowsRefused(
            f"{path}: holds {found}, expected floats of shape"
            f" {' or '.join(str(('n', *shape)) for shape in shapes)}: one row"
            f" for each vector of features that {spec.path.name} reads"
        )
    return rows.reshape(len(rows), spec.features)


def _read_capture(path: Path, spec: ModelSpec, rows_max: int, *, salvage: bool) -> RowsRead:
    from sigd.models.features import FeatureStream
    from sigd.models.features.catalogue import FEATURE_COUNT
    from sigd.models.market.capture import CaptureReader
    from sigd.models.market.errors import SALVAGE, CaptureError

    if spec.features != FEATURE_COUNT:
        raise RowsRefused(
            f"{path}: a market capture gives {FEATURE_COUNT} features a row, {spec.path.name} reads"
            f" {spec.features}: save its"
            " own features with numpy.save and give that file"
        )
    reader, stream = CaptureReader(path, salvage=salvage), FeatureStream()
    reader.watch(stream)
    rows: list[Float32Array] = []
    try:
        for event in reader:
            if stream.on_event(event) and stream.samples % CAPTURE_STRIDE == 1:
                rows.append(stream.features.copy())
                if len(rows) == rows_max:
                    break
    except CaptureError as error:
        raise RowsRefused(f"{path}: {error}{SALVAGE if error.salvageable else ''}") from error
    return RowsRead(np.array(rows, np.float32).reshape(len(rows), spec.features), reader)
