"""Another model file for a served model, without any client noticing, or the reason why not.

    validated (daemon.validation) -> loaded (daemon.loader) -> warmed up -> swapped between two batches -> the
    old closed

Whatever goes wrong before the swap leaves the old model serving. docs/decisions/ has what each of these steps
costs the requests that come meanwhile, and what the alternatives did.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import fsencode
from pathlib import Path
from time import monotonic_ns, sleep
from typing import TYPE_CHECKING, Final

from sigd.daemon.errors import DaemonError
from sigd.daemon.reload.validation import Task, Validated
from sigd.daemon.transport.connections import DRAIN_GRACE_S
from sigd.models.backend import BoundToThread
from sigd.models.errors import BackendFailed, ModelError, ModelRefused
from sigd.models.registry import open_backend
from sigd.wire.status import GoodbyeCode

if TYPE_CHECKING:
    from sigd.daemon.config.models import ModelConfig
    from sigd.daemon.reload.remembered import RememberedModels
    from sigd.daemon.reload.validator import Validator
    from sigd.daemon.runtime.loader_thread import Loader
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.models import ServedModels
    from sigd.models.backend import Backend
    from sigd.models.history import Window
    from sigd.models.native.backend import NativeBackend
    from sigd.models.onnxrt import OnnxRuntimeBackend
    from sigd.models.spec import ModelSpec

log = logging.getLogger(__name__)

STEP_NS_MAX: Final = 100_000
"""A model whose batches take longer is warmed up by the loader: no request may wait for such a batch."""
PAUSE_SHARE: Final = 300
"""Whatever holds the loop up is followed by a pause that is so many times as long: of the requests that come
meanwhile so many go unhindered for each one that meets it."""
_LOADER_STEP_S: Final = 0.0002
"""What a step of the loader costs the loop at most, which has to get Python's lock back from it."""
_LEFT_LOOK_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Reloaded:
    """How one reload went.

    Attributes:
        name: of the model.
        path: the file that was to be served.
        error: why it is not, "" where it is.
        note: what the next start does about it.
        withdrawn: clients that were told to go, for their model's shape is served no more.
    """

    name: str
    path: Path
    seconds: float
    withdrawn: int
    error: str
    note: str = ""


class Reloader:
    """Reloads the models of one daemon, one at a time.

    Args:
        configs: how each model is opened, by name.
        validator: None where everything is validated in this process.
        make_batcher: a batcher for that backend, with the counters of the one whose place it takes.
        on_fatal: called where a device failed for good while a model was opened.
        drain_timeout_s: how long clients of a model that is withdrawn may take to go.
        remembered: keeps what is served for the next start.
    """

    def __init__(
        self,
        models: ServedModels,
        configs: Mapping[str, ModelConfig],
        validator: Validator | None,
        loader: Loader,
        make_batcher: Callable[[Batcher, Backend], Batcher],
        on_fatal: Callable[[BackendFailed], None],
        drain_timeout_s: float,
        remembered: RememberedModels,
    ) -> None:
        self._models = models
        self._remembered = remembered
        self._configs = configs
        self._validator = validator
        self._loader = loader
        self._make_batcher = make_batcher
        self._on_fatal = on_fatal
        self._drain_timeout_s = drain_timeout_s
        self._under_way: asyncio.Task[list[Reloaded]] | None = None
        self._stopped = False

    async def reload(
        self, name: str = "", path: Path | None = None, *, allow_new_shape: bool = False
    ) -> list[Reloaded]:
        """Serve another file, or the same one as it is now; returns once it is served, or is not.

        Args:
            name: the model; "" is the default one where there is a `path`, and all of them where there is
                none.
            allow_new_shape: a file of another shape is served all the same, and the clients there are told to
                go.

        Raises:
            DaemonError: no model has that name, or another reload is under way, or the daemon is stopping.
        """
        if self._under_way is not None:
            raise DaemonError("a reload is under way: wait until it has ended, and try again")
        if self._stopped:
            raise DaemonError("the daemon is stopping")
        batcher = self._models.find(name)
        if batcher is None:
            names = ", ".join(repr(served.name) for served in self._models)
            raise DaemonError(f"no model is called {name!r}, expected one of {names}")
        batchers = [batcher] if name or path else list(self._models)
        self._under_way = asyncio.create_task(self._reload_each(batchers, path, allow_new_shape))
        try:
            await asyncio.wait([self._under_way])
            if self._under_way.cancelled():
                raise DaemonError("the daemon is stopping")
            return self._under_way.result()
        finally:
            self._under_way = None

    def stop(self) -> None:
        """Give up what is under way, and begin nothing more."""
        self._stopped = True
        if self._under_way is not None:
            self._under_way.cancel()

    async def _reload_each(
        self, batchers: list[Batcher], path: Path | None, allow_new_shape: bool
    ) -> list[Reloaded]:
        return [await self._reload_one(batcher, path, allow_new_shape) for batcher in batchers]

    async def _reload_one(self, batcher: Batcher, named: Path | None, allow_new_shape: bool) -> Reloaded:
        path = named or batcher.spec.path
        began_ns = monotonic_ns()
        withdrawn, reason = 0, ""
        try:
            backend = await self._open(batcher, path, allow_new_shape)
            if _shape(backend.spec) == _shape(batcher.spec):
                await self._swap(batcher, backend)
            else:
                withdrawn = await self._withdraw(batcher, backend)
        except ModelError as error:
            reason = str(error)
            if isinstance(error, BackendFailed) and error.fatal:
                self._on_fatal(error)
        except Exception as error:
            # The command is told, or the error would stay in a task that is never awaited.
            log.exception("reloading %s", batcher.name)
            reason = f"an error of the daemon itself: {type(error).__name__}: {error}"
        seconds = (monotonic_ns() - began_ns) / 1e9
        self._note(batcher, path, seconds, reason)
        note = ""
        if named is not None and not reason:
            # Beside the loop: it waits for the disk.
            note = await self._loader.run(lambda: self._remembered.remember(batcher.name, path))
        return Reloaded(batcher.name, path, seconds, withdrawn, reason, note)

    def _note(self, batcher: Batcher, path: Path, seconds: float, reason: str) -> None:
        if reason:
            batcher.counters.reloads_refused += 1
            log.error(
                "model %s is not reloaded, generation %d serves on: %s",
                batcher.name,
                batcher.generation,
                reason,
            )
            return
        batcher.counters.reloads += 1
        served = self._models.find(batcher.name)
        assert served is not None
        log.info(
            "model %s: generation %d is served, from %s, SHA-256 %s, after %.2f s",
            served.name, served.generation, path, served.spec.sha256.hex(), seconds,
        )  # fmt: skip

    # -- from a file to a backend
    # ------------------------------------------------------------------------------

    async def _open(self, batcher: Batcher, path: Path, allow_new_shape: bool) -> Backend:
        """A backend that is open, warm and of a shape that may be served. Raises ModelError."""
        config = self._configs[batcher.name]
        # The sizes are of the file that was configured: the new one may be an engine, which has its own.
        reading = config.reading.for_another()
        validated = None
        if self._validator is not None:
            task = Task(
                fsencode(path),
                config.backend,
                config.batch_rows_max,
                batcher.name,
                config.intra_op_threads,
                reading,
            )
            validated = await self._validator.validate(task)
        if validated is not None:
            _check_shape(path, validated.spec, batcher, allow_new_shape)
            return await self._load(validated, config)
        backend = await self._loader.run(
            lambda: open_backend(
                path,
                config.backend,
                config.batch_rows_max,
                batcher.name,
                config.intra_op_threads,
                config.gpu,
                reading,
            )
        )
        try:
            _check_shape(path, backend.spec, batcher, allow_new_shape)
            if isinstance(backend, BoundToThread):
                backend.take_over()
        except ModelError:
            await self._close(backend)
            raise
        return backend

    async def _load(self, validated: Validated, config: ModelConfig) -> Backend:
        """What has been validated is loaded beside the loop and warmed up on it, in steps that are no longer
        than a batch."""
        backend = _made(validated, config)
        await asyncio.sleep(PAUSE_SHARE * _LOADER_STEP_S)
        await self._loader.run(lambda: _load(backend, validated))
        await asyncio.sleep(PAUSE_SHARE * _LOADER_STEP_S)
        if validated.run_ns > STEP_NS_MAX:
            await self._loader.run(lambda: _warm_up_beside(backend))
        else:
            await _warm_up_here(backend)
        return backend

    # -- from one backend to the other
    # -------------------------------------------------------------------------

    async def _swap(self, batcher: Batcher, backend: Backend) -> None:
        swapped: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        batcher.swap(backend, swapped.set_result)
        old = await swapped
        await asyncio.sleep(PAUSE_SHARE * _LOADER_STEP_S)
        await self._close(old)

    async def _withdraw(self, old: Batcher, backend: Backend) -> int:
        """Serve another shape from now on. Connected clients get their answers from the old model, and are
        told to go."""
        old.counters.allow_batches(backend.batch_rows_max)
        self._models.replace(old, self._make_batcher(old, backend))
        sessions = old.sessions
        for session in sessions:
            session.drain(GoodbyeCode.MODEL_WITHDRAWN)
        await _until_left(old, DRAIN_GRACE_S)
        now_ns = monotonic_ns()
        for session in old.sessions:
            session.wind_up(now_ns)
        await _until_left(old, self._drain_timeout_s)
        for session in old.sessions:
            session.close()
        self._models.left(old)
        await self._close(old.backend)
        return len(sessions)

    async def _close(self, backend: Backend) -> None:
        """A device may keep its closer waiting; on the CPU it is quick, and holds the lock all the
        while."""
        if backend.synchronous:
            backend.close()
        else:
            await self._loader.run(backend.close)


def _shape(spec: ModelSpec) -> tuple[int, int, Window | None, bool]:
    """What clients were promised. Of a state only that there is one: it begins anew with the model."""
    return spec.request_values, spec.answer_values, spec.window, spec.state is not None


def _steps(spec: ModelSpec) -> str:
    if spec.state is not None:
        return " beside a state"
    return "" if spec.window is None else f" ({spec.window.steps} steps of {spec.window.features})"


def _check_shape(path: Path, spec: ModelSpec, batcher: Batcher, allow_new_shape: bool) -> None:
    served = batcher.spec
    if _shape(spec) != _shape(served) and not allow_new_shape:
        raise ModelRefused(
            f"{path}: {spec.request_values} features{_steps(spec)} -> {spec.answer_values} outputs, and"
            f" clients of {batcher.name!r} were promised {served.request_values}{_steps(served)} ->"
            f" {served.answer_values}:"
            " serve it under a name of its own, or with --allow-new-shape, which tells them to go"
        )


def _made(validated: Validated, config: ModelConfig) -> OnnxRuntimeBackend | NativeBackend:
    if validated.backend == "native":
        from sigd.models.native.backend import NativeBackend

        return NativeBackend(validated.spec, config.batch_rows_max)
    from sigd.models.onnxrt import OnnxRuntimeBackend

    return OnnxRuntimeBackend(validated.spec, config.batch_rows_max, config.intra_op_threads)


def _load(backend: OnnxRuntimeBackend | NativeBackend, validated: Validated) -> None:
    with validated.model.mapped() as parts:
        backend.load(parts)


async def _warm_up_here(backend: OnnxRuntimeBackend | NativeBackend) -> None:
    began_ns = monotonic_ns()
    for _ in backend.prepare():
        await asyncio.sleep(PAUSE_SHARE * (monotonic_ns() - began_ns) / 1e9)
        began_ns = monotonic_ns()


def _warm_up_beside(backend: OnnxRuntimeBackend | NativeBackend) -> None:
    for _ in backend.prepare():
        sleep(PAUSE_SHARE * _LOADER_STEP_S)


async def _until_left(batcher: Batcher, timeout_s: float) -> None:
    """Wait until all its clients have gone, or it takes too long."""
    deadline_ns = monotonic_ns() + int(timeout_s * 1e9)
    while batcher.sessions and monotonic_ns() < deadline_ns:
        await asyncio.sleep(_LEFT_LOOK_S)
