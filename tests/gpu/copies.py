"""Work for a device that takes no engine: a pinned array that is copied there and back."""

from __future__ import annotations

from typing import Any

import numpy as np


class Copies:
    """A pinned array that is copied to the device and back, in the current context. PyCUDA's objects.

    Attributes:
        source, target: four float32 each: ones and zeros.
        event: recorded behind the copies.
    """

    def __init__(self, pycuda: Any) -> None:
        self.pycuda = pycuda
        self.stream = pycuda.Stream(1)
        self.event = pycuda.Event(pycuda.event_flags.DISABLE_TIMING)
        self.source, self.target = (pycuda.pagelocked_empty((4,), np.float32) for _ in range(2))
        self.device = pycuda.mem_alloc(self.source.nbytes)
        self.source[:] = 1.0
        self.target[:] = 0.0

    def start(self) -> None:
        """There and back."""
        self.pycuda.memcpy_htod_async(self.device, self.source, self.stream)
        self.pycuda.memcpy_dtoh_async(self.target, self.device, self.stream)
        self.event.record(self.stream)


def good(answer: tuple[Any, ...]) -> Any:
    """The value in an answer of cuda-bindings, which must be a good one."""
    assert answer[0] == 0, answer[0]
    return answer[1] if len(answer) > 1 else None
