"""The memory of the GPUs that models are on, read beside the loop: NVML may wait for a driver that is
busy."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from sigd.daemon.runtime.cpu_affinity import leave_loop_core
from sigd.models.backend import OnGpu
from sigd.models.gpu.memory import Memory, MemoryReader

if TYPE_CHECKING:
    from sigd.models.backend import Backend

log = logging.getLogger(__name__)

EVERY_S: Final = 10.0
OLD_NS: Final = 60_000_000_000
"""What was read so long ago is told no more: NVML hangs, or the card is gone."""


class GpuWatch:
    """Reads every ten seconds, in a thread of its own, which holds the interpreter for as long as a scrape's
    step does.

    The thread is there from when a model is on a GPU, perhaps only after a reload; until then nothing is
    loaded.

    Args:
        backends: those that serve.
        cores: where the thread runs.

    Attributes:
        failures: how often a driver could not be asked.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        backends: Callable[[], Iterable[Backend]],
        cores: AbstractSet[int],
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._loop = loop
        self._backends = backends
        self._cores = cores
        self._clock = clock
        self._read: Mapping[str, Memory] = {}
        self._read_ns = 0
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.failures = 0

    def start(self) -> None:
        """Begin, as soon as there is a GPU to look at."""
        if self._cards():
            # It is not waited for at the end: it may hang in the driver.
            threading.Thread(target=self._watch, name="sigd-gpu-memory", daemon=True).start()
        else:
            self._timer = self._loop.call_later(EVERY_S, self.start)

    def stop(self) -> None:
        """End, when the thread comes to it."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def memory(self) -> Mapping[str, Memory]:
        """What was read last, by PCI bus id; nothing where that is too long ago."""
        return self._read if self._clock() - self._read_ns < OLD_NS else {}

    def _cards(self) -> set[str]:
        cards = {backend.pci_bus_id for backend in self._backends() if isinstance(backend, OnGpu)}
        return cards - {""}

    def _watch(self) -> None:
        leave_loop_core(self._cores)
        reader: MemoryReader | None = None
        failing = False
        while not self._stopped.is_set():
            try:
                reader = reader or MemoryReader()
                read = {card: reader.read(card) for card in sorted(self._cards())}
            except Exception as error:  # noqa: BLE001  NVML's errors have no name before it is loaded
                self.failures += 1
                # A driver that was exchanged wants to be greeted anew.
                reader = None
                if not failing:
                    log.warning(
                        "the memory of the GPU is not told to Prometheus until it can be read: %s", error
                    )
                failing = True
            else:
                failing = False
                self._read, self._read_ns = read, self._clock()
            self._stopped.wait(EVERY_S)
