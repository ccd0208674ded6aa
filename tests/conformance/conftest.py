"""What the conformance suite needs of a backend: one row in `BACKENDS` joins it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.backend import Backend
from sigd.models.registry import open_backend

Float32Array = npt.NDArray[np.float32]
OpenBackend = Callable[..., Backend]
Answers = Callable[[Backend, Float32Array], Float32Array]

BACKENDS: dict[str, tuple[pytest.MarkDecorator, ...]] = {
    "onnxruntime": (),
    "oracle": (),
}
"""Every backend by its name in the registry, with the marks that it runs under (`pytest.mark.gpu`)."""


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in BACKENDS.items()])
def backend_name(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def covered_backends() -> set[str]:
    """The names that the suite runs over."""
    return set(BACKENDS)


@pytest.fixture
def open_model(backend_name: str) -> Iterator[OpenBackend]:
    """Opens a model on the backend under test, and closes it at the end: (path, batch_rows_max=12) -> Backend."""
    opened: list[Backend] = []

    def open_model(path: Path, batch_rows_max: int = 12, backend: str = backend_name) -> Backend:
        opened.append(open_backend(path, backend, batch_rows_max=batch_rows_max))
        return opened[-1]

    yield open_model
    for backend in opened:
        backend.close()


@pytest.fixture
def answers() -> Answers:
    """Runs rows as one batch and copies the answers: (backend, rows of features) -> rows of outputs."""

    def answers(backend: Backend, features: Float32Array) -> Float32Array:
        rows = len(features)
        backend.inputs[:rows] = features
        finished = backend.submit(rows)
        assert finished == backend.synchronous
        while not finished:
            finished = backend.ready()
        return backend.outputs[:rows].copy()

    return answers
