"""What runs a model for the stand-in: a host function on the simulated driver, CUDA kernels on a real one."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

SIMULATED = hasattr(ctypes.CDLL("libcuda.so.1"), "simcuda_nothing")

if TYPE_CHECKING or SIMULATED:
    from tensorrt.kernel import Kernel, Launch
else:
    from tensorrt.dense import DenseKernel as Kernel
    from tensorrt.dense import DenseLaunch as Launch

__all__ = ["SIMULATED", "Kernel", "Launch"]
