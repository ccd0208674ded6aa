"""NVML, the driver's library that tells of graphics cards: the one way to ask it.

It is reached through the package nvidia-ml-py (its module is `pynvml`), which needs no CUDA.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final, Self

_UNANSWERABLE: Final = (
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_INVALID_ARGUMENT",
    "NVML_ERROR_FUNCTION_NOT_FOUND",
)


def load() -> Any:
    """The module `pynvml`. Raises ImportError where nvidia-ml-py is not installed."""
    return importlib.import_module("pynvml")


class Nvml:
    """A session with the driver, for use in a `with` block or as long as the process lives.

    Args:
        library: the module `pynvml`, or what stands in for it.

    Raises:
        Exception: the library's NVMLError: there is no driver, or it does not answer, now or at any call.
    """

    def __init__(self, library: Any) -> None:
        self.library = library
        library.nvmlInit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.library.nvmlShutdown()

    def call(self, function: str, *arguments: Any) -> Any:
        """The library's answer."""
        return getattr(self.library, function)(*arguments)

    def ask(self, function: str, *arguments: Any) -> Any:
        """The library's answer; None where it has none.

        Whatever a card does not support (GeForce cards lack much), an older driver does not know or the user
        may not see has no answer.
        """
        call: Callable[..., Any] | None = getattr(self.library, function, None)
        if call is None:  # an older or a newer nvidia-ml-py
            return None
        try:
            return call(*arguments)
        except self.library.NVMLError as error:
            if error.value in {getattr(self.library, name) for name in _UNANSWERABLE}:
                return None
            raise
