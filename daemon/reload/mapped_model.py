"""The bytes of a model that another process has validated, mapped while they are loaded.

Python's own mmap holds Python's lock while the kernel maps and unmaps, which takes 2 ms for 34 MB: the loop
would wait. Calls through ctypes.CDLL give the lock away. To get it back costs the loop about 0.1 ms each
time, so for small models they are made through ctypes.PyDLL, which keeps it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sigd.models.onnx.parts import OnnxParts

_LARGE_BYTES: Final = 4 << 20
_int, _size, _pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p


def _library(library: ctypes.CDLL) -> ctypes.CDLL:
    library.mmap.restype = _pointer
    library.mmap.argtypes = [_pointer, _size, _int, _int, _int, ctypes.c_long]
    library.munmap.argtypes = [_pointer, _size]
    return library


KEEPING_LOCK: Final = _library(ctypes.PyDLL(None, use_errno=True))
GIVING_LOCK_AWAY: Final = _library(ctypes.CDLL(None, use_errno=True))
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class MappedModel:
    """The parts of one model in a file of memory: the graph, then, from the next page on, the weights.

    Args:
        descriptor: of that file; it is closed with this object.
    """

    def __init__(self, descriptor: int, graph_bytes: int, weights_bytes: int) -> None:
        self._descriptor = descriptor
        self._graph_bytes = graph_bytes
        self._weights_bytes = weights_bytes

    def __del__(self) -> None:
        os.close(self._descriptor)

    @contextmanager
    def mapped(self) -> Iterator[OnnxParts]:
        """The parts, which are gone when the block is left.

        Raises:
            MemoryError: there is no room for them.
        """
        first = on_a_page(self._graph_bytes)
        size = first + self._weights_bytes
        libc = KEEPING_LOCK if size < _LARGE_BYTES else GIVING_LOCK_AWAY
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_PRIVATE, self._descriptor, 0)
        if address == _MAP_FAILED:
            raise MemoryError(os.strerror(ctypes.get_errno()))
        try:
            view = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
            yield OnnxParts(bytes(view[: self._graph_bytes]), view[first:])
        finally:
            libc.munmap(address, size)


def write_model(parts: OnnxParts) -> int:
    """A descriptor of such a file."""
    descriptor = os.memfd_create("sigd-model", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(parts.graph)
        file.write(bytes(on_a_page(len(parts.graph)) - len(parts.graph)))
        file.write(parts.weights)
    return descriptor


def on_a_page(size: int) -> int:
    """That many bytes, rounded up to whole pages."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
