"""What the tests on the simulated CUDA driver share. Elsewhere they are skipped, with the command that runs
them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import Batches, BuildRequest

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

    from sigd.models.backend import Backend
    from sigd.models.manifest import RuntimeName

Float32Array = npt.NDArray[np.float32]
EngineMaker = Callable[..., Path]
Open = Callable[..., Any]
ROWS = 8
FEATURES = 4

NOT_HERE = "needs the simulated CUDA driver: `make test-simcuda` prepares it and runs this"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder where its driver is not loaded."""
    if "SIMCUDA_HOME" not in os.environ:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=NOT_HERE))


@pytest.fixture(scope="session")
def simcuda_home() -> Path:
    """What `prepare.py` made."""
    return Path(os.environ["SIMCUDA_HOME"])


@pytest.fixture
def control() -> Iterator[Any]:
    """The simulated driver's control block; whatever trouble a test made is over when it ends."""
    import simcuda_control  # type: ignore[import-not-found]

    block = simcuda_control.loaded()
    block.fix()
    yield block
    block.fix()


@pytest.fixture(scope="session")
def make_engine(models: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> EngineMaker:
    """Builds an engine with the stand-in: (model=doubled, runtime="tensorrt", **options of Batches) ->
    path."""
    folder = tmp_path_factory.mktemp("engines")
    built: dict[tuple[Path | None, str, Batches], Path] = {}

    def make_engine(model: Path | None = None, runtime: RuntimeName = "tensorrt", **options: Any) -> Path:
        batches = Batches(**(options or {"rows_max": ROWS}))
        key = (model, runtime, batches)
        if key not in built:
            path = models.doubled(FEATURES) if model is None else model
            engine = folder / f"engine-{len(built)}.engine"
            build_engine(
                BuildRequest(
                    model=path, engine=engine, runtime=runtime, compute_capability="8.6", batches=batches
                )
            )
            built[key] = engine
        return built[key]

    return make_engine


@pytest.fixture
def open_engine(make_engine: EngineMaker, control: Any) -> Iterator[Open]:
    """Opens an engine's backend and closes it at the end: (path=doubled, rows=8, **GpuOptions) -> backend.

    It is opened on a device without trouble; `control` may make some afterwards.
    """
    from sigd.models.gpu.options import GpuOptions
    from sigd.models.gpu.tensorrt import tensorrt_backend

    opened: list[Backend] = []

    def open_engine(path: Path | None = None, rows: int = ROWS, **options: Any) -> Backend:
        backend = tensorrt_backend(path or make_engine(), rows, options=GpuOptions(**options))
        backend.open()
        opened.append(backend)
        return backend

    yield open_engine
    control.fix()
    for backend in opened:
        backend.close()


@pytest.fixture
def run_batch() -> Callable[[Backend, Float32Array], Float32Array]:
    """Runs rows as one batch: (backend, features) -> copy of the outputs."""

    def run_batch(backend: Backend, features: Float32Array) -> Float32Array:
        rows = len(features)
        backend.inputs[:rows] = features
        assert backend.submit(rows) is False
        while not backend.ready():
            pass
        return backend.outputs[:rows].copy()

    return run_batch
