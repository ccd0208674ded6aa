"""What the conformance suite needs of a backend: one row in `BACKENDS` joins it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.backend import Backend
from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import Batches, BuildRequest
from sigd.models.native.lowering import NotCovered
from sigd.models.registry import open_backend
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Float32Array = npt.NDArray[np.float32]
OpenBackend = Callable[..., Backend]
Answers = Callable[[Backend, Float32Array], Float32Array]
Served = Callable[..., Path]

BACKENDS: dict[str, tuple[pytest.MarkDecorator, ...]] = {
    "native": (),
    "onnxruntime": (),
    "tensorrt": (pytest.mark.gpu,),
    "oracle": (),
    "echo": (),
}
"""Every backend by its name in the registry, with the marks that it runs under (`pytest.mark.gpu`)."""
SERVE_ENGINES = frozenset({"tensorrt"})
"""Those that are given an engine, built from the model."""
NOT_COVERED = {"native": frozenset({"Cast", "ReduceMax", "ReduceMean"})}
"""Operations of the suite's models that a backend refuses: an index, and arithmetic over rows."""
CHECK_NO_INDEX = frozenset({"tensorrt"})
"""Those on which an index out of its range is not an error: a GPU reads whatever is there."""
RUN_NO_MODEL = frozenset({"echo"})
"""Those that answer without the model: whatever is promised but the answers themselves is promised by them
too."""


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in BACKENDS.items()])
def backend_name(request: pytest.FixtureRequest, no_gpu_because: str) -> str:
    """Each backend in turn, those that need a GPU where there is one."""
    name = str(request.param)
    if name in SERVE_ENGINES and no_gpu_because:
        pytest.skip(no_gpu_because)
    return name


@pytest.fixture
def runs_the_model(backend_name: str) -> None:
    """For tests of the answers themselves."""
    if backend_name in RUN_NO_MODEL:
        pytest.skip(f"{backend_name} answers without running the model")


@pytest.fixture
def checked_backend_name(backend_name: str, runs_the_model: None) -> str:
    """Each backend on which a batch can fail without harm to the next."""
    if backend_name in CHECK_NO_INDEX:
        pytest.skip(f"{backend_name}: an index out of its range is not an error on a GPU")
    return backend_name


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines that were built, each named by what it was built from, for all tests together."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def served(backend_name: str, engine_folder: Path, models: ModelMaker) -> Served:
    """The file that a backend serves for a model: (path, batch_rows_max=12, backend under test) -> path."""

    def served(path: Path, batch_rows_max: int = 12, backend: str = backend_name) -> Path:
        if backend not in SERVE_ENGINES:
            return path
        if path in models.faulty:
            pytest.skip("a probe of the build makes it fail, and on a device a failure ends the context")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        engine = engine_folder / f"{digest}-{batch_rows_max}.engine"
        if not engine.exists():
            fixed = read_spec(path).batch_rows is not None
            batches = Batches() if fixed else Batches(rows_max=batch_rows_max)
            build_engine(BuildRequest(model=path, engine=engine, batches=batches))
        return engine

    return served


@pytest.fixture(scope="session")
def covered_backends() -> set[str]:
    """The names that the suite runs over."""
    return set(BACKENDS)


@pytest.fixture
def open_model(backend_name: str, served: Served) -> Iterator[OpenBackend]:
    """Opens a model on the backend under test, and closes it at the end: (path, batch_rows_max=12) ->
    Backend."""
    opened: list[Backend] = []

    def open_model(path: Path, batch_rows_max: int = 12, backend: str = backend_name) -> Backend:
        file = served(path, batch_rows_max, backend)
        try:
            opened.append(open_backend(file, backend, batch_rows_max=batch_rows_max))
        except NotCovered as error:
            if error.operation not in NOT_COVERED.get(backend, ()):
                raise
            pytest.skip(str(error))
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
