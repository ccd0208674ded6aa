"""How far a build is, told to the watcher, and how it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sigd.models.build.builder_types import Module


class BuildProgress(Protocol):
    """A watcher of progress. Phases nest and finish in reverse order; calls may come from any thread, one at
    a time."""

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of that many steps begins, inside `parent`."""

    def step_done(self, name: str, step: int) -> None:
        """Step number `step`, from 0, of the latest phase of that name is done."""

    def phase_finished(self, name: str) -> None:
        """The latest phase of that name is over, complete or not."""


class Unwatched:
    """No watcher."""

    def phase_started(self, name: str, parent: str | None, steps: int) -> None:
        """Nothing."""

    def step_done(self, name: str, step: int) -> None:
        """Nothing."""

    def phase_finished(self, name: str) -> None:
        """Nothing."""


@contextmanager
def phase(progress: BuildProgress, name: str) -> Iterator[None]:
    """One phase of one step around a block."""
    progress.phase_started(name, None, 1)
    try:
        yield
        progress.step_done(name, 0)
    finally:
        progress.phase_finished(name)


def progress_monitor(trt: Module, progress: BuildProgress, cancelled: threading.Event) -> Any:
    """An `IProgressMonitor` of that TensorRT module that tells `progress`, and stops the build once
    `cancelled` is set.

    The builder calls it from its own threads and must see no exception.
    """
    lock = threading.Lock()
    interface: Any = trt.IProgressMonitor

    class Monitor(interface):  # type: ignore[misc]
        def __init__(self) -> None:
            interface.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                progress.phase_started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                progress.step_done(phase_name, step)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                progress.phase_finished(phase_name)

    return Monitor()
