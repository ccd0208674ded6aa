"""What this processor can do, as far as a model that was optimised for it cares."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

_INSTRUCTION_SETS: Final = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Those by which ONNX Runtime chooses layouts and kernels, named as Linux names them."""


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Architecture and instruction sets, for example "x86_64 avx2 avx512f". Equal text: a layout fits
    both."""
    flags: set[str] = set()
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return " ".join([platform.machine(), *(name for name in _INSTRUCTION_SETS if name in flags)])
