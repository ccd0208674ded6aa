"""The echo backend: no model at all, so that what the daemon itself costs can be measured.

It takes the shape of a model and answers each row with the row's own first features, as they are; where the
model has more outputs than features the rest is zero. It is never chosen by "auto", it calls itself "echo" to
clients, whatever the file is called, and it says when it is opened that its answers are no signals.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from sigd.models.backend import Float32Array, buckets
from sigd.models.errors import BackendClosed
from sigd.models.onnx.file import read_onnx
from sigd.models.spec import ModelSpec

log = logging.getLogger(__name__)


class EchoBackend:
    """A model's shape without the model; see `Backend` for the contract.

    Args:
        spec: the model whose shape it takes.
        batch_rows_max: the largest batch, in rows. A model with a fixed batch is opened with that one
            instead.
    """

    name = "echo"
    synchronous = True
    inputs: Float32Array
    outputs: Float32Array

    def __init__(self, spec: ModelSpec, batch_rows_max: int = 64) -> None:
        self.spec = spec
        self.batch_rows_max = batch_rows_max if spec.batch_rows is None else spec.batch_rows
        # For each number of rows the copy that answers them; empty while the backend is not open.
        self._copies: dict[int, Callable[[], object]] = {}

    def open(self) -> None:
        """Make the arrays. Raises ModelRefused where the file has changed since its spec was read."""
        read_onnx(self.spec.path, self.spec.sha256)
        self.inputs = np.zeros((self.batch_rows_max, self.spec.features), np.float32)
        self.outputs = np.zeros((self.batch_rows_max, self.spec.outputs), np.float32)
        copied = min(self.spec.features, self.spec.outputs)
        # One call of NumPy's own and no Python frame: the less it costs, the better it shows what the rest
        # does.
        self._copies = {
            rows: partial(self.outputs[:rows, :copied].__setitem__, ..., self.inputs[:rows, :copied])
            for rows in range(1, self.batch_rows_max + 1)
        }
        for rows in buckets(self.batch_rows_max):
            self._copies[rows]()
            self._copies[rows]()
        log.warning(
            "the backend echo runs no model: its answers are no signals, it is for measuring the daemon"
        )

    def submit(self, rows: int) -> bool:
        """Copy the first `rows` rows; True, for the outputs are there. Raises as `Backend.submit` says."""
        try:
            self._copies[rows]()
        except KeyError:
            raise self._failure(rows) from None
        return True

    def ready(self) -> bool:
        """True: `submit` has finished the batch."""
        if not self._copies:
            raise self._closed()
        return True

    def bare_call(self, rows: int) -> Callable[[], object]:
        """The copy of `rows` rows."""
        if rows not in self._copies:
            raise self._failure(rows)
        return self._copies[rows]

    def close(self) -> None:
        """Let the arrays go."""
        self._copies = {}

    def _failure(self, rows: int) -> Exception:
        if not self._copies:
            return self._closed()
        return ValueError(f"a batch of {rows} rows, expected 1 to {self.batch_rows_max}")

    def _closed(self) -> BackendClosed:
        return BackendClosed(
            f"{self.spec.path}: the backend is not open: call open() first, and nothing after close()"
        )
