"""The oracle: a model run by the ONNX reference evaluator, which follows the standard's text operator by
operator.

Slow and plain. It is the truth that other backends are compared with, and not meant to be served.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sigd.models.backend import Float32Array
from sigd.models.errors import BackendClosed, BackendFailed, ModelRefused
from sigd.models.spec import ModelSpec, read_served

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


class OracleBackend:
    """A model on the ONNX reference evaluator; see `Backend` for the contract.

    It runs exactly the rows asked for, without buckets or padding (a fixed batch whole). Denormal features
    count as zero, as everywhere; denormals inside the model are kept.

    Args:
        spec: the model.
        batch_rows_max: the largest batch, in rows. A model with a fixed batch is opened with that one
            instead.
    """

    name = "oracle"
    synchronous = True
    inputs: Float32Array
    outputs: Float32Array

    def __init__(self, spec: ModelSpec, batch_rows_max: int = 64) -> None:
        self.spec = spec
        self.batch_rows_max = batch_rows_max if spec.batch_rows is None else spec.batch_rows
        self._evaluator: ReferenceEvaluator | None = None

    def open(self) -> None:
        """Load the model and run it once. Raises as `Backend.open` says."""
        from onnx.reference import ReferenceEvaluator

        model = read_served(self.spec).model
        self.inputs = np.zeros((self.batch_rows_max, self.spec.features), np.float32)
        self.outputs = np.zeros((self.batch_rows_max, self.spec.outputs), np.float32)
        try:
            self._evaluator = ReferenceEvaluator(model)
            self._run(self.batch_rows_max)
        except Exception as error:
            self.close()
            raise ModelRefused(
                f"{self.spec.path}: the ONNX reference evaluator refuses it: {error}"
            ) from error

    def submit(self, rows: int) -> bool:
        """Run the first `rows` rows of `inputs`; True, for the outputs are there. Raises as `Backend.submit`
        says."""
        self._check(rows)
        try:
            self._run(rows)
        except Exception as error:
            raise BackendFailed(
                f"{self.spec.path}: the ONNX reference evaluator failed on a batch of {rows} rows: {error}"
            ) from error
        return True

    def ready(self) -> bool:
        """True: `submit` has finished the batch."""
        self._check(1)
        return True

    def bare_call(self, rows: int) -> Callable[[], object]:
        """One evaluation of `rows` rows: nothing of ours could be left out."""
        self._check(rows)
        return partial(self._run, rows)

    def close(self) -> None:
        """Let the evaluator go."""
        self._evaluator = None

    def _check(self, rows: int) -> None:
        if self._evaluator is None:
            raise BackendClosed(
                f"{self.spec.path}: the backend is not open: call open() first, and nothing after close()"
            )
        if not 1 <= rows <= self.batch_rows_max:
            raise ValueError(f"a batch of {rows} rows, expected 1 to {self.batch_rows_max}")

    def _run(self, rows: int) -> None:
        assert self._evaluator is not None
        run_rows = rows if self.spec.batch_rows is None else self.spec.batch_rows
        features = self.inputs[:run_rows]
        features = np.where(np.abs(features) < _SMALLEST_NORMAL, np.float32(0), features)
        with np.errstate(all="ignore"):
            (answer,) = self._evaluator.run(
                None, {self.spec.input_name: features.reshape(run_rows, *self.spec.input_dims)}
            )
        answer = np.asarray(answer)
        if answer.shape != (run_rows, *self.spec.output_dims) or answer.dtype != np.float32:
            raise ValueError(
                f"answered {answer.dtype} {answer.shape}, expected float32"
                f" {(run_rows, *self.spec.output_dims)}"
            )
        self.outputs[:run_rows] = answer.reshape(run_rows, self.spec.outputs)
