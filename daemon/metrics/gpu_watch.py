"""The memory of the GPUs that models are on, read beside the loop: NVML may wait for a driver that is busy."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from sigd.models.backend import OnGpu
from sigd.models.gpu_memory import Memory, MemoryReader

if TYPE_CHECKING:
    from sigd.models.backend import Backend

log = logging.getLogger(__name__)

EVERY_S: Final = 10.0
OLD_NS: Final = 60_000_000_000
"""What was read so long ago is told no more: NVML hangs, or the card is gone."""


class GpuWatch:
    """Reads every ten seconds, in a thread of its own, which holds the interpreter for as long as a scrape's step does.

    Where no model is on a GPU there is no thread, and nothing is loaded.

    Args:
        backends: those that serve.
    """

    def __init__(
        self, backends: Callable[[], Iterable[Backend]], clock: Callable[[], int] = monotonic_ns
    ) -> None:
        self._backends = backends
        self._clock = clock
        self._read: Mapping[str, Memory] = {}
        self._read_ns = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin, if there is a GPU to look at."""
        if self._cards():
            # Nobody waits for it at the end: it may hang in the driver.
            threading.Thread(target=self._watch, name="sigd-gpu-memory", daemon=True).start()

    def stop(self) -> None:
        """End, when the thread comes to it."""
        self._stopped.set()

    def memory(self) -> Mapping[str, Memory]:
        """What was read last, by PCI bus id; nothing where that is too long ago."""
        return self._read if self._clock() - self._read_ns < OLD_NS else {}

    def _cards(self) -> set[str]:
        cards = {backend.pci_bus_id for backend in self._backends() if isinstance(backend, OnGpu)}
        return cards - {""}

    def _watch(self) -> None:
        try:
            reader = MemoryReader()
            while not self._stopped.is_set():
                self._read, self._read_ns = (
                    {card: reader.read(card) for card in sorted(self._cards())},
                    self._clock(),
                )
                self._stopped.wait(EVERY_S)
        except Exception as error:  # noqa: BLE001  NVML's errors have no name before it is loaded
            log.warning("the memory of the GPU is not told to Prometheus: %s", error)
