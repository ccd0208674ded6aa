"""How an engine is to run on a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How to run an engine.

    Attributes:
        gpu: its number, in CUDA's order.
        mapped_io: let the engine read and write the pinned arrays over the bus, and copy nothing. Measure it:
            it pays for small rows at most.
        device_timeout_ms: how long a batch may take before the GPU counts as hung. Another tenant of the card
            may hold it up for a long time slice, so this is far from any latency budget.
        keep_warm_us: after so long without a batch an empty one is run, to keep the GPU's clocks up; 0 is
            never.
    """

    gpu: int = 0
    mapped_io: bool = False
    device_timeout_ms: int = 1000
    keep_warm_us: int = 0

    def __post_init__(self) -> None:
        for what, least in (("gpu", 0), ("device_timeout_ms", 1), ("keep_warm_us", 0)):
            if getattr(self, what) < least:
                raise ValueError(f"{what} is {getattr(self, what)}, expected at least {least}")


DEFAULT_GPU_OPTIONS = GpuOptions()
